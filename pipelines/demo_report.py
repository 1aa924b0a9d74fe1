"""What a demo found: its run directories, cache and evaluations → one page and some plain sentences.

Nothing is measured here; every figure is read from what the steps left behind. Legend: K all labels, κ kept labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kappaseg_core.checkpoint import RunDirectory, Summary
from kappaseg_core.placement import place
from label_cache import LabelCache, quality
from pipelines.curves import Curve
from pipelines.demo_words import NAMES, findings
from pipelines.report import Example, RankedLabel, Report, Step, Table
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import (
    Evaluation,
    load_segmentation,
    open_test_scenes,
    segment_image,
)
from stage2_segmentation.train import source_for

#: κ of the coverage curves and of the ranking table, as far as there are as many labels
CURVE_KAPPAS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 64)
TABLE_KAPPAS = (5, 10, 20, 32)
RANKS_SHOWN = 10


@dataclass(frozen=True)
class Chain:
    """A finished chain. stage2: source of rankings → configuration.

    scores: evaluations by source, and "told": the network trained on complete rankings, given the true labels at test.
    commands: step → shell line.   costs: step → seconds and peak_memory_mib, for steps that keep no record themselves.
    """

    out: Path
    stage1: Stage1Config
    rank: RankConfig
    stage2: Mapping[str, Stage2Config]
    scores: Mapping[str, Evaluation]
    commands: Mapping[str, str]
    costs: Mapping[str, Mapping[str, float]]

    @property
    def classifier(self) -> RunDirectory:
        return RunDirectory(self.out / "stage1")

    @property
    def cache(self) -> LabelCache:
        return LabelCache.open(self.out / "labels")

    @property
    def kappa(self) -> int:
        return round(self.scores["cache"].mean_kappa)

    def run(self, source: str) -> RunDirectory:
        return RunDirectory(self.out / self.stage2[source].run_name)


def demo_report(chain: Chain, *, pictures: int, quick: bool) -> Report:
    """The page: result and findings first, then pictures, curves, tables and every step with its command and cost.

    pictures: validation images shown, the first ones.   quick: say that the numbers mean nothing.
    """
    seconds = {"stage1": chain.classifier.summary().seconds}
    seconds |= {name: chain.run(name).summary().seconds for name in chain.stage2}
    found = findings(
        chain.scores, prior_coverage=prior_coverage(chain, chain.kappa), kappa=chain.kappa,
        num_classes=len(chain.cache.class_names), seconds=seconds,
    )  # fmt: skip
    warning = ("This was a quick run: it shows that everything works, and its numbers mean nothing.",) if quick else ()
    return Report(
        title="kappaseg demo: rank the labels first, then classify pixels",
        intro=(*warning, introduction(chain)),
        headline=headline(chain),
        findings=found,
        examples=examples(chain, pictures),
        curves=curves(chain),
        tables=(ranking_table(chain),),
        steps=steps(chain),
        class_names=chain.cache.class_names,
        footer=f"Written by kappaseg demo; torch {torch.__version__}, {place(chain.stage1.loop).device.type}, "
        f"{torch.get_num_threads()} threads, seed {chain.stage1.loop.seed}.",
    )  # fmt: skip


def introduction(chain: Chain) -> str:
    options = chain.stage1.data.options
    return (
        f"Synthetic scenes of {options['size']} × {options['size']} pixels with a vocabulary of {options['classes']} "
        f"labels, 4 to 8 of them in an image; {options['train']:,} images to learn from, {options['val']:,} others to "
        "measure on. Stage one learns which labels an image holds and ranks them; stage two names each pixel, "
        f"choosing among all {options['classes']} labels, among the best {chain.kappa} of the ranking, or among those "
        "that are really there."
    )


def headline(chain: Chain) -> Table:
    """The three schemes (and the baseline told the truth) side by side."""
    rows = []
    for name, score in chain.scores.items():
        run = chain.run("complete" if name == "told" else name).summary()
        shares = (score.mIoU, score.class_coverage, score.pixel_accuracy, score.zero_iou_share)
        labels = f"{score.mean_kappa:.1f}".removesuffix(".0")
        rows.append((NAMES[name], *(100 * share for share in shares), labels, round(run.seconds)))
    columns = ("chooses among", "mIoU", "at most", "pixels right", "labels never found", "labels per image")
    return Table(
        "Stage two on images it has not seen, %",
        (*columns, "training, s"),
        tuple(rows),
        f"Same network, same {chain.stage2['cache'].loop.steps:,} steps, one seed each. “At most”: the mean share of a "
        "label's pixels whose label was among the choices; no mIoU can be higher. Choosing among the best ranked also "
        f"needs stage one ({chain.classifier.summary().seconds:.0f} s of training).",
    )


def examples(chain: Chain, pictures: int) -> tuple[Example, ...]:
    """The first validation images, their ranking from the cache, and the map of each scheme."""
    maps = {name: predicted(chain, name, pictures) for name in chain.stage2}
    _, config, names = load_segmentation(chain.run("cache").path)
    scenes = open_test_scenes(config, names)
    shown = []
    for index in range(pictures):
        scene = scenes[index]
        row = chain.cache.lookup([scene.image_id], min(RANKS_SHOWN, chain.cache.k))
        present = set(np.unique(scene.mask).tolist())
        ranking = tuple(
            RankedLabel(int(label), float(score), int(label) in present)
            for label, score in zip(row.labels[0], row.scores[0], strict=True)
        )
        made = {name: images[index] for name, images in maps.items()}
        shown.append(Example(scene.image_id, scene.image, scene.mask, made, ranking))
    return tuple(shown)


def predicted(chain: Chain, source: str, pictures: int) -> list[np.ndarray]:
    """The label maps that a run makes of the first validation images, as `kappaseg evaluate` makes them."""
    model, config, names = load_segmentation(chain.run(source).path)
    scenes, here = open_test_scenes(config, names), place(config.loop)
    ranks = source_for(config, scenes, at_test=True)
    maps = []
    for index in range(pictures):
        scene = scenes[index]
        ranking = ranks([scene.image_id], torch.from_numpy(scene.mask).long()[None])
        image = torch.from_numpy(scene.image)
        maps.append(segment_image(model.to(here.device), image, ranking, config.inference, here).numpy())
    return maps


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
    rows = []
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


def steps(chain: Chain) -> tuple[Step, ...]:
    """Every command with what it cost and what it says."""
    classifier, cache = chain.classifier.summary(), chain.cache
    size = sum(part.bytes for part in cache.manifest.parts) / 2**20
    metrics, kappa = classifier.metrics, chain.kappa
    made = [
        trained("Stage one: train the classifier", chain.commands["stage1"], classifier, {
            "mAP, %": 100 * metrics["mAP_raw"],
            f"pixel coverage@{kappa}, %": 100 * chain.scores["cache"].pixel_coverage,
            f"frequency prior@{kappa}, %": 100 * prior_coverage(chain, kappa),
        }),
        costed(chain, "rank", "Rank the labels of every image", {
            "images": sum(part.rows for part in cache.manifest.parts), "ranks stored": cache.k, "Parquet, MiB": size,
        }),
    ]  # fmt: skip
    for name in chain.stage2:
        numbers = {"mIoU, %": 100 * chain.scores[name].mIoU, "pixels right, %": 100 * chain.scores[name].pixel_accuracy}
        title = f"Stage two: choose among {NAMES[name]}"
        made.append(trained(title, chain.commands[name], chain.run(name).summary(), numbers))
    told = {"mIoU, %": 100 * chain.scores["told"].mIoU}
    made.append(costed(chain, "evaluate", "Measure all three", {"images": chain.scores["cache"].images}))
    made.append(costed(chain, "told", "Tell the plain network which labels are there", told))
    made.append(costed(chain, "predict", "Predict images that no data set holds", {}))
    return tuple(made)


def trained(title: str, command: str, summary: Summary, numbers: Mapping[str, float | str]) -> Step:
    size = {"steps": summary.steps, "parameters": summary.parameters}
    return Step(title, command, summary.seconds, summary.peak_memory_mib, {**size, **numbers})


def costed(chain: Chain, step: str, title: str, numbers: Mapping[str, float | str]) -> Step:
    cost = chain.costs[step]
    return Step(title, chain.commands[step], cost["seconds"], cost["peak_memory_mib"], numbers)
