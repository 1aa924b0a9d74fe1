"""What a demo found: its run directories, cache and evaluations → one page and some plain sentences.

Every figure is read from what the steps left behind; only the label maps shown are made again.
Legend: κ kept labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from kappaseg_core.checkpoint import Summary
from kappaseg_core.placement import place
from pipelines.demo_chain import Chain
from pipelines.demo_figures import curves, prior_coverage, ranking_table
from pipelines.demo_words import NAMES, findings
from pipelines.draw import paint, photograph, ranking_panel, side_by_side
from pipelines.report import Example, RankedLabel, Report, Step, Table
from pipelines.results_doc import Cell
from stage2_segmentation.evaluate import load_segmentation, open_test_scenes, segment_image
from stage2_segmentation.train import source_for

RANKS_SHOWN = 10


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
        footer=f"Written by kappaseg demo: torch {torch.__version__}, device {place(chain.stage1.loop).device.type}, "
        f"seed {chain.stage1.loop.seed}.",
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
    rows: list[tuple[Cell, ...]] = []
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


def overview(example: Example, class_names: Sequence[str]) -> Image.Image:
    """One example as one picture: the scene, its ranked labels, the truth, and the maps of two schemes."""
    maps = {"the truth": example.truth, "found among all": example.maps["complete"],
            "found among the kept": example.maps["cache"]}  # fmt: skip
    painted = [(title, paint(example.image, labels, opacity=1.0)) for title, labels in maps.items()]
    ranked = ranking_panel(
        [class_names[rank.label] for rank in example.ranking], [rank.score for rank in example.ranking],
        [rank.present for rank in example.ranking], labels=[rank.label for rank in example.ranking],
        height=painted[0][1].height,
    )  # fmt: skip
    return side_by_side([("a scene", photograph(example.image)), ("its labels, ranked", ranked), *painted])


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
        maps.append(segment_image(model.to(here.device), image, ranking, config.inference, here).label_map.numpy())
    return maps


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
