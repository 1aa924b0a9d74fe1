"""docs/results.md from the result files.

python benchmarks/results.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.results_doc import (
    Cell,
    ResultTable,
    Section,
    format_percent,
    format_spread,
    read_results,
    write_results,
)

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "results.md"


@dataclass(frozen=True)
class Row:
    """A row of a stage-two table: run folder, ranking at test (None = as in training), and what it is called."""

    run: str
    name: str
    test: str | None = None


@dataclass(frozen=True)
class Study:
    """One experiment's part of the document."""

    name: str
    title: str
    kappa: int
    about: str
    rows: tuple[Row, ...]
    rankers: tuple[tuple[str, str], ...]


MAIN = (
    Row("stage2-complete", "complete: all labels"),
    Row("stage2-cache", "cache: the κ best ranked"),
    Row("stage2-oracle", "oracle: the labels present"),
    Row("stage2-complete", "complete, oracle at test only", "oracle"),
)
ON_PHOTOS = (
    *MAIN,
    Row("stage2-complete", "complete, cache at test only", "cache"),
    Row("stage2-out-of-fold", "cache, training images out of fold"),
    Row("stage2-out-of-fold-forced", "the same, missed labels forced in"),
    Row("stage2-pooled-ranker", "cache of the pooled linear ranker"),
)
RANKERS = (("stage1", "Query2Label, one layer"), ("pooled/stage1", "pooled linear"))

STUDIES = (
    Study(
        "cocostuff171_mini", "COCO-Stuff, 171 classes, 184 + 50 photos", 25,
        "Frozen MobileNetV2 features; trained on 184 photos, measured on the 50 validation photos at full resolution.",
        ON_PHOTOS, RANKERS,
    ),
    Study(
        "ccp59", "Clothing Co-Parsing, 59 classes, 800 + 204 photos", 20,
        "Frozen MobileNetV2 features; trained on 800 photos, measured on the 204 validation photos at full resolution.",
        ON_PHOTOS, RANKERS,
    ),
    Study(
        "synthetic512", "Synthetic scenes, 512 labels", 50,
        "4,000 training and 400 validation scenes of 64 pixels with about six labels each, made by the program; the "
        "scenes were fixed before any method was run on them. Everything is trained from random numbers, with the same "
        "number of stage-two steps for every source. Each seed draws new weights and a new order of the same scenes.",
        MAIN, (("stage1", "linear, soft maximum"),),
    ),
)  # fmt: skip


def main() -> None:
    write_results(DOCUMENT, [introduction(), *(part for study in STUDIES for part in sections(study)), kills()])


def introduction() -> Section:
    machines = {name: read(name)["machine"] for name in [study.name for study in STUDIES]}
    text = sorted({f"{m['cpu']}, {m['threads']} thread per run, torch {m['torch']}" for m in machines.values()})
    return Section(
        "How to read this",
        (
            "Every figure is read from the files in `benchmarks/results/`, which the commands shown wrote. "
            f"Machine: {'; '.join(text)}. Two experiments ran side by side; seconds are wall time on that machine.",
            "Shares are in %. *Pixel coverage@κ* is the share of pixels whose label is among the κ best ranked, *class "
            "coverage@κ* its mean over classes; pixel accuracy and mIoU cannot be higher than these. The *prior* ranks "
            "by frequency in the training images, the same for every image. ± is the sample standard deviation over "
            "seeds; rows without it are one run.",
            "Networks are small and trained for minutes: compare rows of a table with each other, and nothing else. "
            "Settings were chosen on the same validation images (there is no third split).",
        ),
    )


def sections(study: Study) -> Iterator[Section]:
    """A study's two tables and what follows from them."""
    results = read(study.name)
    chains, file = results["chains"], f"benchmarks/results/{study.name}.json"
    seeds = ", ".join(str(chain["seed"]) for chain in chains)
    stage1 = ResultTable(
        ("ranker", "mAP", "raw", *coverage_columns(study), "seconds", "MiB"),
        tuple(stage1_row(name, [c["runs"][run] for c in chains if run in c["runs"]], study.kappa)
              for run, name in study.rankers if run in chains[0]["runs"]),
        commands(chains, ("run-stage1", "rank")), (file,),
        "mAP: with the envelope, and raw; classes without a validation image are left out.",
    )  # fmt: skip
    rows = [row for row in study.rows if row.run in chains[0]["runs"]]
    stage2 = ResultTable(
        ("ranking in training and test", "mIoU", "≤", "pixel accuracy", "≤", "classes at 0", "seconds", "MiB"),
        tuple(stage2_row(row, [c["runs"][row.run] for c in chains if row.run in c["runs"]]) for row in rows),
        commands(chains, ("run-stage2", "evaluate")), (file,),
        "≤: the bound by class and by pixel coverage. Seconds and MiB: of training, with the evaluation at its end.",
    )  # fmt: skip
    about = (study.about, f"Seeds: {seeds}.", ranking_verdict(study, chains))
    yield Section(f"{study.title}: ranking", about, (stage1,))
    yield Section(f"{study.title}: segmentation", verdicts(study, chains), (stage2,))


def coverage_columns(study: Study) -> tuple[str, ...]:
    return (f"pixel coverage@{study.kappa}", "prior", f"class coverage@{study.kappa}", "prior")


def stage1_row(name: str, runs: Sequence[Mapping[str, Any]], kappa: int) -> tuple[Cell, ...]:
    keys = ("mAP_envelope", "mAP_raw", f"pixel_coverage@{kappa}", f"prior_pixel_coverage@{kappa}",
            f"class_coverage@{kappa}", f"prior_class_coverage@{kappa}")  # fmt: skip
    shares = (spread([run["metrics"][key] for run in runs]) for key in keys)
    return (name, *shares, *costs(runs))


def stage2_row(row: Row, runs: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    keys = ("mIoU", "class_coverage", "pixel_accuracy", "pixel_coverage", "zero_iou_share")
    shares = (spread([measured(run, row.test)[key] for run in runs]) for key in keys)
    return (row.name, *shares, *(costs(runs) if row.test is None else ("–", "–")))


def measured(run: Mapping[str, Any], test: str | None) -> Mapping[str, Any]:
    """The evaluation with that ranking at test (None: the one in training)."""
    found = [e for e in run["evaluations"] if e["source"]["test"] == (test or e["source"]["train"])]
    return found[0]


def spread(shares: Sequence[float]) -> str:
    return format_spread([100 * share for share in shares])


def costs(runs: Sequence[Mapping[str, Any]]) -> tuple[Cell, Cell]:
    return round(sum(run["seconds"] for run in runs) / len(runs)), max(run["peak_memory_mib"] for run in runs)


def commands(chains: Sequence[Mapping[str, Any]], verbs: Sequence[str]) -> tuple[str, ...]:
    """The commands of these verbs, as given for each $SEED; those of the first seed include the ones done once."""
    return tuple(s["command"] for s in chains[0]["steps"] if s["command"].split()[1] in verbs)


def ranking_verdict(study: Study, chains: Sequence[Mapping[str, Any]]) -> str:
    key = f"class_coverage@{study.kappa}"
    gains = [c["runs"]["stage1"]["metrics"][key] - c["runs"]["stage1"]["metrics"][f"prior_{key}"] for c in chains]
    beaten = sum(gain > 0 for gain in gains)
    return (
        f"Class coverage@{study.kappa} beats the frequency prior for {beaten} of {len(chains)} seeds, by "
        f"{format_spread([100 * gain for gain in gains])} points."
    )


def verdicts(study: Study, chains: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the segmentation table says, in sentences that follow from its figures."""
    mious = {run: [measured(c["runs"][run], None)["mIoU"] for c in chains] for run in (r.run for r in MAIN)}
    against = [
        (name, [100 * (a - b) for a, b in zip(mious[run], mious["stage2-complete"], strict=True)])
        for run, name in (("stage2-oracle", "The known labels"), ("stage2-cache", "The cached ranking"))
    ]
    lines = [
        f"{name} against all labels: {format_spread(gains)} points of mIoU, better for {sum(g > 0 for g in gains)} of "
        f"{len(gains)} seeds."
        for name, gains in against
    ]
    cache = against[1][1]
    if sum(gain > 0 for gain in cache) < len(cache):
        lines.append(why(study, chains))
    return (*lines, time_spent(chains))


def why(study: Study, chains: Sequence[Mapping[str, Any]]) -> str:
    """Where the ranking does not win: how much of the truth it keeps in training and in validation."""
    curves = chains[0]["caches"]["labels"]
    at = curves["val"]["kappa"].index(study.kappa)
    train, val = (format_percent(curves[s]["class_coverage"][at]) for s in ("train", "val"))
    return (
        f"Why it does not always win: the ranking keeps {train} % of the mean class in the training images, which its "
        f"classifier has seen, and {val} % in validation images. The network learns to trust a list that is then "
        "worse, and what the list lacks is lost; the plain baseline has neither handicap."
    )


def time_spent(chains: Sequence[Mapping[str, Any]]) -> str:
    def mean(run: str) -> float:
        return sum(c["runs"][run]["seconds"] for c in chains) / len(chains)

    cache, complete, ranker = mean("stage2-cache"), mean("stage2-complete"), mean("stage1")
    return (
        f"Training among the kept labels took {cache / complete:.2f} times as long as among all; with the training of "
        f"the ranker counted in, {(cache + ranker) / complete:.2f} times."
    )


def kills() -> Section:
    results = read("kill")
    rows = tuple(
        (name, step["kills"], step["killed_while_running"], step["files"], len(step["different"]), step["seconds"])
        for name, step in results["steps"].items()
    )
    columns = ("step", "kills", "while it ran", "files compared", "files that differ", "undisturbed seconds")
    table = ResultTable(columns, rows, (results["command"],), ("benchmarks/results/kill.json",))
    return Section(
        "Killed and started again",
        ("Each step was killed with SIGKILL at random moments and started again with the same command; every file it "
         "leaves must be the same, byte by byte, as of an undisturbed run (the log, seconds and memory excepted).",),
        (table,),
    )  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return read_results(HERE / "results" / f"{name}.json")


if __name__ == "__main__":
    main()
