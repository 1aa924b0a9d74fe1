"""OUT/results.json and OUT/results.parquet, from what a benchmark's steps have left.

    results.parquet    one row a measurement (pipelines.benchmark.rows)
    results.json       means over seeds with their intervals, differences, claims, and what is missing

Made anew each time; nothing is trained or measured here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kappaseg_core.files import write_text
from pipelines.benchmark.claims import claims, roles
from pipelines.benchmark.compare import Comparison
from pipelines.benchmark.intervals import t_interval
from pipelines.benchmark.records import Measured, Records, Value, finite, read_records
from pipelines.benchmark.rows import GROUPS, MEASURES, PANOPTIC, Rows, frequency_groups, gathered

#: measures of a scheme at another κ
KAPPA_MEASURES = ("miou", "recall", "coverage", "class_coverage", "zero_iou_share", "pixel_accuracy", "kappa")
#: measures that are there for every scheme, null where nothing has measured them
ALWAYS = (
    "params", "macs", "macs_paper", "map", "recall", "coverage", "miou", "train_seconds", "peak_memory",
    "images_per_second", "latency_p50_ms", "latency_p95_ms",
)  # fmt: skip


def write_results(out: Path) -> Value:
    """Write both files and give what results.json holds. Raises UserError where `out` is no benchmark."""
    records = read_records(out)
    rows = gathered(records)
    results = finite(summarised(records, rows))
    rows.write(out / "results.parquet")
    write_text(out / "results.json", lists_in_lines(json.dumps(results, indent=1, ensure_ascii=False)) + "\n")
    return dict(results)


def lists_in_lines(text: str) -> str:
    """Indented JSON with each list of plain values in one line, for people who read it and for differences of it."""
    flat = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    return flat.sub(lambda found: "[" + re.sub(r",\n\s+", ", ", found[1]) + "]", text)


def summarised(records: Records, rows: Rows) -> Value:
    """What results.json holds."""
    comparison, plan = Comparison(records), records.plan
    schemes = {name: scheme_entry(records, rows, comparison, name) for name in records.schemes}
    return {
        "name": plan["name"], "commits": commits(records), "version": plan.get("version"), "machine": plan["machine"],
        "baseline": records.baseline, "data": data_entry(records), "schemes": schemes, "roles": roles(records),
        "claims": claims(records, comparison), "classes": class_entry(records), "runs": run_entries(records),
        "missing": records.missing,
    }  # fmt: skip


def commits(records: Records) -> list[str]:
    """The source trees that did the steps, in the order in which they first appear."""
    return list(dict.fromkeys(records.commit(step) for step in records.steps.values() if step.record))


def scheme_entry(records: Records, rows: Rows, comparison: Comparison, name: str) -> Value:
    """One scheme: what it is, the mean of each measure over seeds and its interval, and what has more parts."""
    planned, measured = records.schemes[name], records.of(name)
    entry: Value = {key: planned.get(key) for key in ("label", "source", "of", "ranker", "folds")}
    entry["test"] = planned.get("test") or planned["source"]
    entry["seeds"] = [found.seed for found in measured]
    entry["network"] = measured[0].values["network"] if measured else None
    entry["presence"] = measured[0].values["presence"] if measured else None
    entry |= dict.fromkeys(ALWAYS)
    for measure in measures_of(rows, name):
        entry |= mean_of(measure, list(rows.by_seed(name, measure).values()))
    difference = comparison.difference(name, records.baseline) if name != records.baseline else None
    entry["miou_difference"] = None if difference is None else difference.plain()
    entry["kappas"] = {
        str(kappa): {key: value for m in KAPPA_MEASURES for key, value in
                     mean_of(m, list(rows.by_seed(name, m, kappa).values())).items()}
        for kappa in sorted({k for scheme, k, _ in rows.found if scheme == name and k is not None})
    }  # fmt: skip
    entry["class_iou_gain"] = class_gains(measured, records.of(records.baseline)) if difference else None
    return entry | parts_of(measured)


def class_gains(ours: Sequence[Measured], theirs: Sequence[Measured]) -> list[float | None]:
    """IoU of each label minus the other scheme's, mean over the seeds that both have."""
    base = {found.seed: found.values["classes"]["iou"] for found in theirs}
    pairs = [(found.values["classes"]["iou"], base[found.seed]) for found in ours if found.seed in base]
    return column_means([[None if None in (a, b) else a - b for a, b in zip(*pair, strict=True)] for pair in pairs])


def measures_of(rows: Rows, scheme: str) -> list[str]:
    """Names of the measures of a scheme at its own κ, without those of the curves."""
    return [measure for name, kappa, measure in rows.found if name == scheme and kappa is None and "@" not in measure]


def mean_of(measure: str, values: Sequence[float]) -> Value:
    """The mean over seeds, and for a measure of the network's output its t interval."""
    if not values:
        return {}
    found: Value = {measure: float(np.mean(values))}
    if measure in MEASURES or measure in PANOPTIC or measure.startswith(("miou_", "recall_")):
        interval = t_interval(values)
        found[f"{measure}_interval"] = None if interval is None else list(interval)
    return found


def parts_of(measured: Sequence[Any]) -> Value:
    """Means over seeds of what has more parts than one: the ranking's curves, calibration, rank scale, IoU by label."""
    values = [found.values for found in measured]
    if not values:
        return {}
    curves = {key: column_means([v["curves"][key] for v in values]) for key in values[0]["curves"]}
    curves["kappa"] = values[0]["curves"]["kappa"]
    scales = [v["rank_scale"]["weight"] for v in values if v["rank_scale"]]
    return {
        "curves": curves,
        "calibration": None if values[0]["presence"] == "truth" else pooled([v["calibration"]["bins"] for v in values]),
        "rank_scale": column_means(scales) if scales else None,
        "class_iou": column_means([v["classes"]["iou"] for v in values]),
    }


def column_means(lists: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Place by place, the mean of the lists that have a number there; None where none has."""
    table = np.array(lists, dtype=float)
    there = ~np.isnan(table)
    total, count = np.where(there, table, 0.0).sum(0), there.sum(0)
    return [round(float(t / n), 6) if n else None for t, n in zip(total, count, strict=True)]


def pooled(runs: Sequence[Sequence[Value]]) -> list[Value]:
    """The calibration bins of several seeds as one diagram: bins of equal place become one."""
    places: dict[int, list[Value]] = {}
    for bins in runs:
        for one in bins:
            places.setdefault(one["bin"], []).append(one)
    merged = []
    for place, same in sorted(places.items()):
        count = sum(one["count"] for one in same)
        means = {key: sum(one["count"] * one[key] for one in same) / count for key in ("score", "observed")}
        merged.append({"bin": place, "count": count, **means})
    return merged


def data_entry(records: Records) -> Value:
    """The data set, as far as it can be told without naming places of the machine."""
    config = records.plan.get("config", {}).get("data", {})
    first = records.measured[0].values if records.measured else {}
    return {
        "kind": config.get("kind"), "name": Path(str(config.get("root", ""))).name, "split": first.get("split"),
        "images": first.get("images"), "num_classes": len(first.get("class_names", ())),
        "inputs": {key: value for key, value in first.get("inputs", {}).items() if key != "rankings"},
    }  # fmt: skip


def class_entry(records: Records) -> Value:
    """Names and frequencies of the labels, groups by frequency, and how many labels images have (Fig. 2)."""
    if not records.measured:
        return {}
    values = records.measured[0].values
    groups = frequency_groups(values)
    return {
        "names": values["class_names"], "train_images": values["train_images"],
        "val_images": values["classes"]["val_images"],
        "groups": {name: {"labels": len(groups[name]), "train_images": span(values, groups[name])} for name in GROUPS},
        "labels_per_image": {"train": values["train_labels_per_image"], "val": values["labels_per_image"]},
    }  # fmt: skip


def span(values: Value, labels: Sequence[int]) -> list[int] | None:
    """Fewest and most training images of some labels."""
    images = [values["train_images"][label] for label in labels]
    return [min(images), max(images)] if images else None


def run_entries(records: Records) -> list[Value]:
    """Every step with the directory that it made: where the numbers come from."""
    kept = ("seconds", "cpu_seconds", "peak_memory_mib", "attempts", "finished", "digest")
    return [
        {
            "step": step.id, "kind": step.kind, "scheme": step.scheme, "ranker": step.ranker, "seed": step.seed,
            "kappa": step.kappa, "run": step.folder, "fingerprint": step.fingerprint, "done": step.record is not None,
            **{key: (step.record or {}).get(key) for key in kept},
        }
        for step in records.steps.values()
    ]  # fmt: skip
