"""What docs/performance.md says of label heads as the vocabulary grows: their cost, what they find, what they add.

It reads the files of benchmarks/label_heads.py, label_recall.py and label_heads_on_backbone.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.results_doc import Cell, ResultTable, Section, format_percent, format_spread, read_results

FOLDER = "benchmarks/results"
AIM = 1.10  # of the backbone's time, for the linear branch at 20,000 labels


def sections() -> Iterator[Section]:
    yield costs(read("label_heads"))
    yield recalls(read("label_recall"))
    yield on_backbone(read("label_heads_on_backbone"))


def costs(found: Mapping[str, Any]) -> Section:
    rows = tuple(
        (row["head"], f"{row['classes']:,}", row["macs"] / 1e9, 1e3 * row["seconds"], row["memory_mib"],
         *((1e3 * row["training_seconds"], row["training_memory_mib"]) if row["training_seconds"] else ("–", "–")))
        for row in found["heads"]
    )  # fmt: skip
    columns = ("label branch", "K", "MACs, G", "ms", "MiB", "training step, ms", "MiB")
    note = f"–: does not fit into {found['limit_gib']:g} GiB. Milliseconds are processor time of one image on one core."
    about = (
        "The branch alone, on the map of a ViT-B/16 at 512 pixels; *encoder* looks at 8 × 8 cells of it, *decoder* and "
        "*group* at 16 × 16. The published encoder layer lets all K class tokens attend to each other, which is "
        "quadratic in K; with `attend: patches` the same parameters are linear in K, as all others are. A step on "
        "sampled negatives includes the ranking that the joint scheme selects by, without gradient: of all labels, or "
        "of those on the short-list. Stage one ranks nothing while it trains, and its step costs less than that.",
    )
    return Section("Label heads: time and memory", about, (table(columns, rows, found, "label_heads", note),))


def recalls(found: Mapping[str, Any]) -> Section:
    kept: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for run in found["runs"]:
        kept.setdefault((run["classes"], run["head"]), []).append(run)
    rows = tuple(
        (f"{classes:,}", head, format_spread([100 * run["recall"] for run in runs]),
         format_percent(statistics.fmean(run["rare_recall"] for run in runs)),
         format_percent(statistics.fmean(run["picked_recall"] for run in runs)),
         1e3 * statistics.fmean(run["seconds_per_step"] for run in runs), len(runs))
        for (classes, head), runs in kept.items()
    )  # fmt: skip
    kappa, picks = found["kappa"], sorted({run["picks"] for run in found["runs"]})
    columns = ("K", "head", f"recall@{kappa}, %", "of rare labels, %", "recall@S, %", "training step, ms", "seeds")
    note = (
        f"S = {' or '.join(map(str, picks))}, the smaller one for 171 labels. Recall of a linear layer at S is that of "
        "its short-list. Rare: less frequent than the labels that half of all draws fall on."
    )
    about = (
        f"A small training with known truth: features made of label prototypes and noise, {found['steps']} steps of "
        f"{found['batch']} images for every head, {found['tested']:,} other images to test on. It compares heads with "
        "each other, not with published numbers: here a label is what its cells look like, which suits a linear layer "
        "at every cell.",
        price_of_negatives(kept),
    )
    return Section("Label heads: what they find", about, (table(columns, rows, found, "label_recall", note),))


def price_of_negatives(kept: Mapping[tuple[int, str], Sequence[Mapping[str, Any]]]) -> str:
    """What sampled negatives cost and save, at each K at which both were trained."""
    said = []
    for (classes, head), sampled in kept.items():
        if head.endswith("negatives"):
            whole = kept[classes, "query head"]
            lost, time = (
                [statistics.fmean(run[figure] for run in runs) for runs in (whole, sampled)]
                for figure in ("recall", "seconds_per_step")
            )
            said.append(
                f"at K = {classes:,} {100 * (lost[0] - lost[1]):.1f} points, "
                f"a step being {time[0] / time[1]:.0f} times as fast"
            )
    return f"At equal steps, sampled negatives lose {'; '.join(said)}."


def on_backbone(found: Mapping[str, Any]) -> Section:
    alone = {each["mode"]: each["cpu_seconds"] for each in found["variants"] if each["name"] == "backbone alone"}
    rows = tuple(
        (each["mode"], each["name"], statistics.median(each["cpu_seconds"]),
         *ratios(each["cpu_seconds"], alone[each["mode"]]))
        for each in found["variants"]
    )  # fmt: skip
    columns = ("mode", "branch", "processor seconds", "times the backbone", "in turns")
    worst = max(row[3] for row in rows if row[1] == "pooled")
    about = (
        f"ViT-B/16 at {found['size']} pixels with {found['classes']:,} labels; training is a step of AdamW. The linear "
        f"branch was to take at most {AIM:.2f} times the backbone's time; {worst:.2f} is "
        f"{'within that' if worst <= AIM else 'above that'}.",
    )
    shown = table(columns, rows, found, "label_heads_on_backbone", "", threads=2)
    return Section("Label heads: what they add to a backbone", about, (shown,))


def ratios(seconds: Sequence[float], alone: Sequence[float]) -> tuple[float, str]:
    """Ratio of the medians, and the smallest and largest of one turn."""
    turns = sorted(a / b for a, b in zip(seconds, alone, strict=True))
    return statistics.median(seconds) / statistics.median(alone), f"{turns[0]:.2f} to {turns[-1]:.2f}"


def table(
    columns: tuple[str, ...], rows: tuple[tuple[Cell, ...], ...], found: Mapping[str, Any], name: str, note: str,
    *, threads: int = 1,
) -> ResultTable:  # fmt: skip
    return ResultTable(
        columns, rows, (f"OMP_NUM_THREADS={threads} {found['command']}",), (f"{FOLDER}/{name}.json",), note
    )


def read(name: str) -> dict[str, Any]:
    return read_results(Path(__file__).parents[1] / FOLDER / f"{name}.json")
