"""What docs/hosts.md says of accuracy: every host plain, joint, independent and with known labels, in one study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hosts_words import study_rows

from pipelines.benchmark.intervals import t_quantile
from pipelines.results_doc import Cell, ResultTable, Section, read_results

ROOT = Path(__file__).parents[1]
FILE = "benchmarks/results/cocostuff171_mini_hosts_benchmark.json"
COMMAND = (
    "kappaseg benchmark configs/cocostuff171_mini/benchmark_hosts.yaml --data.root $DATA/cocostuff171_mini --out $OUT "
    "--backbone.weights $WEIGHTS"
)
SCHEMES = {
    "baseline": "all labels", "joint": "joint", "independent": "independent", "oracle": "the labels present",
}  # fmt: skip
OBJECTS_FILE = "benchmarks/results/cocostuff171_mini_panoptic_benchmark.json"
OBJECTS_COMMAND = (
    "kappaseg benchmark configs/cocostuff171_mini/benchmark_panoptic.yaml --data.root $DATA/cocostuff171_mini "
    "--data.options.things $PWD/configs/cocostuff171_mini/things.txt --out $OUT --backbone.weights $WEIGHTS"
)
#: measure of a panoptic study → its column
PANOPTIC = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ, things", "pq_stuff": "PQ, stuff"}

Entries = Mapping[str, Mapping[str, Any]]


def entries() -> Entries | None:
    """scheme → its entry in the study's results.json; None before it has been run."""
    return read_results(ROOT / FILE)["schemes"] if (ROOT / FILE).exists() else None


def sections() -> Iterator[Section]:
    found = entries()
    if found is None:
        words = f"This study has not been run yet:\n\n```sh\n{COMMAND}\n```"
        yield Section("Accuracy: every host, every scheme", (words,))
        return
    results = read_results(ROOT / FILE)
    seeds = sorted({len(entry["seeds"]) for entry in found.values() if entry["seeds"]})
    about = (
        f"COCO-Stuff, {results['data']['num_classes']} classes, {results['data']['images']} validation photos, "
        f"{steps_of(found)} steps, {' or '.join(map(str, seeds))} seeds: networks that "
        "are small and trained for minutes, on frozen features or a small ViT behind them. What such a study shows is "
        "what ranking changes for a host; hosts among each other stand on different maps. Everything else that was "
        "measured is in [results.md](results.md)."
    )
    note = (
        "mIoU in %, mean ± sample standard deviation over seeds; in brackets the difference to all labels of the same "
        "host, points. *The labels present* are those of the truth, which nobody knows in use: the bound for rankings."
    )
    columns = ("host", *SCHEMES.values())
    table = ResultTable(columns, tuple(rows(found)), (COMMAND,), (FILE,), note)
    yield Section("Accuracy: every host, every scheme", (about, *verdicts(found), *lever(found)), (table,))


def objects() -> Iterator[Section]:
    """The study of panoptic quality."""
    title = "Objects: panoptic quality"
    if not (ROOT / OBJECTS_FILE).exists():
        yield Section(title, (f"This study has not been run yet:\n\n```sh\n{OBJECTS_COMMAND}\n```",))
        return
    results = read_results(ROOT / OBJECTS_FILE)
    about = (
        f"COCO, things and stuff, {results['data']['num_classes']} classes, {results['data']['images']} validation "
        f"photos, {steps_of(results['schemes'])} steps. So short a training is seldom sure, and the published "
        "thresholds find no segment: the settings have lower ones. A segment counts if its IoU with one of the truth "
        "of its label is above 0.5; RQ says how few do. SQ is 0 for a label of which none does."
    )
    best = sorted((entry["pq"], entry["label"]) for entry in results["schemes"].values() if entry.get("pq"))[::-1]
    told = f"PQ, best first: {'; '.join(f'{label} {100 * value:.2f}' for value, label in best)} %."
    table = ResultTable(
        ("network", "mIoU", *PANOPTIC.values()), tuple(panoptic_rows(results["schemes"])), (OBJECTS_COMMAND,),
        (OBJECTS_FILE,), "In %, mean over seeds; mIoU and PQ ± sample standard deviation.",
    )  # fmt: skip
    yield Section(title, (about, told), (table,))


def steps_of(found: Entries) -> str:
    """How long the networks of a study were trained, in words."""
    steps = sorted({entry["network"]["steps"] for entry in found.values() if entry["network"]})
    return " or ".join(f"{count:,}" for count in steps)


def rows(found: Entries) -> Iterator[tuple[Cell, ...]]:
    """A row for each host that the study has."""
    for key, title in study_rows():
        if any(f"{key}-{scheme}" in found for scheme in SCHEMES):
            plain = miou(found, f"{key}-baseline")
            yield (title, *(cell(found, f"{key}-{scheme}", plain) for scheme in SCHEMES))


def cell(found: Entries, scheme: str, plain: float | None) -> Cell:
    value = miou(found, scheme)
    if value is None:
        return None
    text = with_deviation(found[scheme], "miou")
    is_plain = scheme.endswith("-baseline") or plain is None
    return text if is_plain or plain is None else f"{text} ({points(value - plain)})"


def with_deviation(entry: Mapping[str, Any], name: str) -> str | None:
    """A measure of a scheme in %, ± the deviation over seeds where there are several."""
    value = entry.get(name)
    if value is None:
        return None
    spread = deviation(entry, name)
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def miou(found: Entries, scheme: str) -> float | None:
    value = found.get(scheme, {}).get("miou")
    return None if value is None else float(value)


def deviation(entry: Mapping[str, Any], name: str) -> float | None:
    """Sample standard deviation over seeds, out of the 95 % t interval that results.json holds; None for one seed."""
    interval, count = entry.get(f"{name}_interval"), len(entry["seeds"])
    if interval is None or count < 2:
        return None
    reach = (interval[1] - interval[0]) / 2
    return float(reach * math.sqrt(count) / t_quantile(0.975, count - 1))


def gains(found: Entries, scheme: str) -> dict[str, float]:
    """host → mIoU of a scheme less that of the same host with all labels, as shares."""
    both = {title: (miou(found, f"{key}-{scheme}"), miou(found, f"{key}-baseline")) for key, title in study_rows()}
    return {title: ours - plain for title, (ours, plain) in both.items() if ours is not None and plain is not None}


def verdicts(found: Entries) -> Iterator[str]:
    """How often ranking helped, scheme by scheme."""
    for scheme in ("joint", "independent", "oracle"):
        by_host = gains(found, scheme)
        if by_host:
            up = [title for title, gain in by_host.items() if gain > 0]
            down = [title for title, gain in by_host.items() if gain <= 0]
            low, high = min(by_host.values()), max(by_host.values())
            names = f" (not of {', '.join(down)})" if up and down else ""
            yield (
                f"{SCHEMES[scheme].capitalize()}: the mean mIoU is above that of all labels for {len(up)} of "
                f"{len(by_host)} hosts{names}; differences of {points(low)} to {points(high)} points."
            )


def lever(found: Entries) -> Iterator[str]:
    """What share of the labels present the rankings of each scheme keep: what bounds its gain."""
    told = []
    for scheme in ("joint", "independent"):
        entries_of = [found.get(f"{key}-{scheme}", {}) for key, _ in study_rows()]
        measured = [entry for entry in entries_of if entry.get("recall") is not None]
        if measured:
            recalls = [round(100 * entry["recall"]) for entry in measured]
            low, high = min(recalls), max(recalls)
            kappa = " or ".join(f"{count:g}" for count in sorted({entry["kappa"] for entry in measured}))
            share = f"{low} %" if low == high else f"{low} to {high} %"
            told.append(f"{share} in the {SCHEMES[scheme]} scheme (κ = {kappa})")
    if told:
        yield (
            f"Why the schemes differ: of the labels present their rankings keep {', '.join(told)}, and a label that is "
            "not kept is lost for the whole image. The label branch of the joint scheme learns beside the masks in "
            "the same few steps; the classifier of the independent one is trained for itself."
        )


def panoptic_rows(found: Entries) -> Iterator[tuple[Cell, ...]]:
    for entry in found.values():
        others = (None if entry.get(name) is None else 100 * entry[name] for name in PANOPTIC if name != "pq")
        yield (entry["label"], with_deviation(entry, "miou"), with_deviation(entry, "pq"), *others)
