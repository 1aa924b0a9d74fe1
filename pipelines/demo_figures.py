"""Curves and tables of a demo. Legend: κ kept labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from label_cache import quality
from pipelines.curves import Curve
from pipelines.demo_chain import Chain
from pipelines.report import Table
from pipelines.results_doc import Cell

#: κ of the coverage curves and of the ranking table, as far as there are as many labels
CURVE_KAPPAS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 64)
TABLE_KAPPAS = (5, 10, 20, 32)


def curves(chain: Chain) -> tuple[Curve, ...]:
    """Loss of both stages, coverage over κ, and what stage two gains while it trains."""
    runs = {name: chain.run(name).metrics() for name in chain.stage2}
    return (
        coverage_curve(chain),
        Curve(
            "mIoU on unseen images while stage two trains", "step", "mIoU, %",
            {name: logged(lines, "val", "mIoU", 100) for name, lines in runs.items()},
        ),
        Curve("Loss of stage one", "step", "loss, summed over labels",
              {"classifier": logged(chain.classifier.metrics(), "train", "loss")}),
        Curve(
            "Loss of stage two", "step", "cross-entropy per pixel",
            {name: logged(lines, "train", "loss") for name, lines in runs.items()},
            note="Not comparable in height: each is over another number of labels, and pixels whose label was not "
            "ranked count as zero.",
        ),
    )  # fmt: skip


def logged(
    lines: Sequence[Mapping[str, Any]], kind: str, key: str, factor: float = 1.0
) -> tuple[list[float], list[float]]:
    """(steps, values) of one measure in metrics.jsonl."""
    found = [line for line in lines if line["kind"] == kind]
    return [line["step"] for line in found], [factor * line[key] for line in found]


def coverage_curve(chain: Chain) -> Curve:
    """Pixel coverage over κ of the classifier's ranking, on both splits, and of the frequency prior."""
    cache, data = chain.cache, chain.rank.data
    kappas = [kappa for kappa in CURVE_KAPPAS if kappa <= cache.k]
    val, train = cache.read_split(data.val), cache.read_split(data.train)
    series = {
        "unseen images": quality.coverage_at(val, kappas),
        "training images": quality.coverage_at(train, kappas),
        "unseen images, frequency prior": quality.coverage_at(quality.frequency_prior(train, val), kappas),
    }
    shares = {name: (kappas, [100 * share for share in found.micro]) for name, found in series.items()}
    return Curve("Pixels whose label is among the best κ", "κ", "pixel coverage, %", shares, (0, 102), "log",
                 note="The frequency prior ranks by how common a label is and looks at no image.")  # fmt: skip


def prior_coverage(chain: Chain, kappa: int) -> float:
    """Pixel coverage of the κ most common labels, in 0..1."""
    cache, data = chain.cache, chain.rank.data
    prior = quality.frequency_prior(cache.read_split(data.train), cache.read_split(data.val))
    return quality.coverage_at(prior, [kappa]).micro[0]


def ranking_table(chain: Chain) -> Table:
    """Stage one beside the frequency prior, on unseen images."""
    cache, data, metrics = chain.cache, chain.rank.data, chain.classifier.summary().metrics
    kappas = [kappa for kappa in TABLE_KAPPAS if kappa <= cache.k]
    val, train = cache.read_split(data.val), cache.read_split(data.train)
    rows: list[tuple[Cell, ...]] = []
    for name, columns in (("classifier", val), ("frequency prior", quality.frequency_prior(train, val))):
        recall, coverage = quality.recall_at(columns, kappas), quality.coverage_at(columns, kappas)
        for measure, shares in (
            ("labels found", recall.micro), ("pixel coverage", coverage.micro), ("class coverage", coverage.class_mean)
        ):  # fmt: skip
            rows.append((f"{name}: {measure}", *(100 * share for share in shares)))
    return Table(
        "Stage one: share of the truth among the best κ labels, %",
        ("on unseen images", *(f"κ = {kappa}" for kappa in kappas)),
        tuple(rows),
        f"mAP {100 * metrics['mAP_raw']:.1f} ({100 * metrics['mAP_envelope']:.1f} with the precision envelope), over "
        f"{metrics['mAP_labels']:.0f} labels that occur. {kappa_99(metrics)}",
    )


def kappa_99(metrics: Mapping[str, float]) -> str:
    own, prior = metrics["kappa_99"], metrics["prior_kappa_99"]
    return f"99 % of the pixels are covered from κ = {own:.0f} on, with the prior from κ = {prior:.0f} on."
