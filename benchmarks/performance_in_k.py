"""What docs/performance.md says of Segmenter as the vocabulary grows (benchmarks/cost_in_k.py)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.results_doc import Cell, ResultTable, Section, read_results

FILE = "benchmarks/results/cost_in_k.json"

PUBLISHED, OURS, HALF, BACKBONE = "published", "kept labels, ours", "kept labels, ours, bf16", "backbone alone"


@dataclass(frozen=True)
class Aim:
    """What was aimed at. of, over: variants; the ratio over / of is to be at least, or at most, so much."""

    comparison: str
    what: str
    of: str
    over: str
    figure: str
    wanted: float
    at_least: bool = True


TINY, BASE = "vit_tiny_patch16_384", "vit_base_patch16_384"
TINY_TRAINING, TINY_USE = "training, ViT-T, K = 847, κ = 100", "inference, ViT-T, K = 847, κ = 100"
BASE_TRAINING, BASE_USE = "training, ViT-B, K = 1,284, κ = 100", "inference, ViT-B, K = 1,284, κ = 100"
FLAT_USE = ("inference, ViT-T, κ = 100, by K", "inference, ViT-B, κ = 100, by K")
AIMS = (
    Aim(TINY_TRAINING, "time, published / ours", OURS, PUBLISHED, "time", 9),
    Aim(TINY_TRAINING, "time, published / ours in bf16", HALF, PUBLISHED, "time", 16),
    Aim(TINY_TRAINING, "memory, published / ours", OURS, PUBLISHED, "memory", 15),
    Aim(TINY_USE, "time, published / ours", OURS, PUBLISHED, "time", 3.5),
    Aim(TINY_USE, "time, published / ours in bf16", HALF, PUBLISHED, "time", 6),
    Aim(BASE_TRAINING, "time, published / ours", OURS, PUBLISHED, "time", 3.3),
    Aim(BASE_TRAINING, "time, published / ours in bf16", HALF, PUBLISHED, "time", 6.5),
    Aim(BASE_TRAINING, "memory, published / ours", OURS, PUBLISHED, "memory", 7),
    Aim(BASE_USE, "time, published / ours", OURS, PUBLISHED, "time", 2.3),
    Aim(BASE_USE, "time, published / ours in bf16", HALF, PUBLISHED, "time", 4.5),
    Aim(BASE_USE, "time, ours / backbone alone", BACKBONE, OURS, "time", 1.2, at_least=False),
    Aim(BASE_TRAINING, "time, ours / backbone alone", BACKBONE, OURS, "time", 1.25, at_least=False),
    *(
        Aim(f"{mode}, κ = 100, by K", f"{figure}, K = 20,000 / K = 150", "K = 150", "K = 20,000", figure, 1.05, False)
        for mode in ("training, ViT-T", "inference, ViT-T", "inference, ViT-B") for figure in ("time", "memory")
    ),
)  # fmt: skip


def sections() -> Iterator[Section]:
    comparisons: dict[str, Any] = read_results(Path(__file__).parents[1] / FILE)["comparisons"]
    yield introduction(comparisons)
    yield aims(comparisons)
    yield from profile(comparisons)
    for name, comparison in comparisons.items():
        yield section(name, comparison)


def introduction(comparisons: Mapping[str, Any]) -> Section:
    machines = sorted({f"{each['machine']['cpu']}, {each['threads']} threads" for each in comparisons.values()})
    return Section(
        "What is measured",
        (
            "Segmenter with random weights on images of 512 x 512. *Published* is the network with all K labels as "
            "the published code computes it: attention with all of its weights held, K maps at full resolution, then "
            "cross-entropy or arg-max (`pipelines/bench/published_way.py`); in inference also RankSeg's published way, "
            "which writes κ maps into K channels. *Plain* has kept labels, attention and products as ours, and "
            "upsamples all ranks at once. *Ours* is what this project runs: loss and label map strip by strip "
            "(`stage2_segmentation/pixels.py`), attention in blocks that stay in the cache and, on this processor, "
            "products in fp32 by the faster of torch's two libraries (`kappaseg_core/attention.py`, `products.py`). So "
            "is the backbone alone, which makes a harder measure of it than torch's own. A step of training is on two "
            "images of ViT-T or one of ViT-B, inference of one.",
            "Variants run in processes of their own, in turns (A B C A B C); times are processor time over all "
            "threads, medians; memory is what a step needs beyond weights, gradients and momentum. "
            f"Machine: {'; '.join(machines)}.",
        ),
    )  # fmt: skip


def aims(comparisons: Mapping[str, Any]) -> Section:
    rows = tuple(aim_row(aim, comparisons[aim.comparison]) for aim in AIMS if aim.comparison in comparisons)
    missed = sum(1 for row in rows if row[-1] == "no")
    bounds = [bound(comparisons[name]) for name in (TINY_TRAINING, BASE_TRAINING) if name in comparisons]
    return Section(
        "What was aimed at",
        (
            f"{len(rows) - missed} of {len(rows)} are reached.",
            "Where training misses its aim, the backbone is what is left. As times faster than the published step: "
            + "; ".join(bounds)
            + ".",
            "No tensor of a network in use has an axis of K (`tests/contracts/test_hosts.py`). Where its memory misses "
            "the aim, what is compared is small, and processes differ: "
            + "; ".join(f"{name} {memories(comparisons[name])} MiB" for name in FLAT_USE if name in comparisons)
            + ".",
        ),
        (table(("comparison", "ratio", "aim", "found", "in turns", "reached"), rows),),
    )


def memories(comparison: Mapping[str, Any]) -> str:
    """MiB of each variant."""
    return ", ".join(str(variant["memory_mib"]) for variant in comparison["variants"])


def bound(comparison: Mapping[str, Any]) -> str:
    """How fast a step is, and would be with a head that costs nothing."""
    taken = {variant["name"]: seconds(variant) for variant in comparison["variants"]}
    first, model = comparison["variants"][0], {TINY: "ViT-T", BASE: "ViT-B"}
    return (
        f"{model[first['backbone']]} {taken[PUBLISHED] / taken[OURS]:.1f}, with a head for nothing "
        f"{taken[PUBLISHED] / taken[BACKBONE]:.1f}"
    )


#: parts of a step of training, as `kappaseg bench` marks them → what they are called here, in the order of the step
PARTS = {
    "backbone": "backbone", "decoder": "decoder", "loss": "loss", "loss, backward": "loss",
    "decoder, backward": "decoder, backward", "backbone, backward": "backbone, backward", "optimiser": "optimiser",
}  # fmt: skip


def profile(comparisons: Mapping[str, Any]) -> Iterator[Section]:
    """Where the steps of training spend their time."""
    columns = ("network", "variant", "processor seconds", *(f"{part}, %" for part in dict.fromkeys(PARTS.values())))
    trained = (TINY_TRAINING, BASE_TRAINING)
    names = [name for name in trained if all("parts" in variant for variant in comparisons[name]["variants"])]
    rows = tuple(
        (name.removeprefix("training, "), variant["name"], seconds(variant), *shares(variant["parts"]))
        for name in names
        for variant in comparisons[name]["variants"]
    )
    if rows:
        yield Section(
            "Where a step of training spends its time",
            (
                "Shares of the processor time between marks in the same processes. *Decoder* is the mask transformer "
                "over image and class tokens; *loss* is upsampling and cross-entropy, with their gradient (which ours "
                "computes at once); *optimiser* is SGD with momentum, and setting gradients to zero.",
                *(profiled(name, comparisons[name]) for name in names),
            ),
            (table(columns, rows),),
        )


def shares(parts: Mapping[str, float]) -> list[str]:
    """Percent of each of PARTS."""
    found = dict.fromkeys(PARTS.values(), 0.0)
    for part, taken in parts.items():
        found[PARTS[part]] += taken
    return [f"{100 * taken / sum(found.values()):.1f}" for taken in found.values()]


def profiled(name: str, comparison: Mapping[str, Any]) -> str:
    """What the profile says of a network's aims."""
    (ours,) = (variant for variant in comparison["variants"] if variant["name"] == OURS)
    parts = dict(zip(dict.fromkeys(PARTS.values()), map(float, shares(ours["parts"])), strict=True))
    backbone = parts["backbone"] + parts["backbone, backward"]
    decoder = parts["decoder"] + parts["decoder, backward"]
    return (
        f"{name}: of our step {backbone:.0f} % are the backbone, {decoder:.0f} % the mask transformer, "
        f"{parts['loss']:.0f} % the loss and {parts['optimiser']:.0f} % the optimiser. Without loss and optimiser it "
        f"would be {100 / (backbone + decoder):.2f} times faster, without the decoder as well "
        f"{100 / backbone:.2f} times."
    )


def aim_row(aim: Aim, comparison: Mapping[str, Any]) -> tuple[Cell, ...]:
    variants = {variant["name"]: variant for variant in comparison["variants"]}
    over, of = variants[aim.over], variants[aim.of]
    if aim.figure == "memory":
        found, spread = over["memory_mib"] / of["memory_mib"], "–"
    else:
        turns = sorted(a / b for a, b in zip(over["cpu_seconds"], of["cpu_seconds"], strict=True))
        found, spread = seconds(over) / seconds(of), f"{turns[0]:.2f} to {turns[-1]:.2f}"
    reached = found >= aim.wanted if aim.at_least else found <= aim.wanted
    sign = "≥" if aim.at_least else "≤"
    return (aim.comparison, aim.what, f"{sign} {aim.wanted:g}", f"{found:.2f}", spread, "yes" if reached else "no")


def section(name: str, comparison: Mapping[str, Any]) -> Section:
    variants: Sequence[Mapping[str, Any]] = comparison["variants"]
    first = variants[0]
    rows = tuple(
        (
            variant["name"], seconds(variant), seconds(first) / seconds(variant), variant["memory_mib"],
            first["memory_mib"] / max(1, variant["memory_mib"]),
        )
        for variant in variants
    )  # fmt: skip
    columns = ("variant", "processor seconds", "times faster", "memory, MiB", "times less")
    note = f"Medians of {comparison['rounds']} turns; ratios to the first row."
    return Section(name[0].upper() + name[1:], (), (table(columns, rows, note=note, only=name),))


def table(
    columns: tuple[str, ...], rows: tuple[tuple[Cell, ...], ...], *, note: str = "", only: str = ""
) -> ResultTable:
    words = f' --only "{only}"' if only else ""
    return ResultTable(columns, rows, (f"OMP_NUM_THREADS=2 python benchmarks/cost_in_k.py{words}",), (FILE,), note)


def seconds(variant: Mapping[str, Any]) -> float:
    return statistics.median(variant["cpu_seconds"])
