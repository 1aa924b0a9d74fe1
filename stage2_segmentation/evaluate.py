"""Measuring a segmentation network on a split, at full resolution, all labelled pixels counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kappaseg_core.checkpoint import flatten, load_model, read_record
from kappaseg_core.config import build
from kappaseg_core.errors import UserError
from kappaseg_core.handover import Normalisation
from kappaseg_core.metrics import (
    ConfusionSums,
    CoverageSums,
    average_precision,
    known,
    label_pixels,
    mean_average_precision,
)
from kappaseg_core.panoptic_quality import PanopticSums
from kappaseg_core.placement import Placement
from kappaseg_core.progress import Meter
from kappaseg_core.ranking import OwnRanking, Ranking, rank_lookup
from kappaseg_core.scenes import open_scenes, things_of
from kappaseg_core.segments import Segments, scene_segments
from kappaseg_core.structures import Scene, SceneSet
from label_cache import class_difference
from stage2_segmentation.augment import resized, scaled_size
from stage2_segmentation.config import InferenceConfig, Stage2Config
from stage2_segmentation.inference import Segmented, own_ranking, segmented
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.objects import segmented_objects
from stage2_segmentation.sources import Source, scene_ranking


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a split. Shares in 0..1.

    mIoU: mean over classes with a pixel in the truth or the prediction (as mmsegmentation); mIoU_in_truth: over those
    in the truth.   class_coverage: mean share of a class's pixels whose label the ranking kept; mIoU ≤ class_coverage
    always.   pixel_coverage: share of all pixels, which bounds pixel_accuracy likewise; image_coverage: the same share
    of each image's pixels, and then the mean.   zero_iou_share: share of the
    classes in the truth that are never right.   absent: classes without a pixel in the truth.   label_mAP: mean average
    precision of the label branch (envelope); None without one.
    panoptic: of a network that learns objects, PQ, SQ and RQ over all labels in some segment, true or found, and the
    same of things and of stuff (PanopticSums.summary); class_PQ: of each label. None where there is none.
    """

    images: int
    mIoU: float
    mIoU_in_truth: float
    pixel_accuracy: float
    mean_class_accuracy: float
    zero_iou_share: float
    pixel_coverage: float
    image_coverage: float
    class_coverage: float
    mean_kappa: float
    class_iou: dict[str, float | None]
    absent: tuple[str, ...]
    label_mAP: float | None = None
    panoptic: dict[str, float | None] | None = None
    class_PQ: dict[str, float | None] | None = None

    def numbers(self) -> dict[str, float]:
        """The scalars, for logs and tables."""
        every = {**asdict(self), **(self.panoptic or {})}
        return {name: value for name, value in every.items() if isinstance(value, float)}


def load_segmentation(
    run: Path, device: torch.device | str = "cpu"
) -> tuple[SegmentationModel, Stage2Config, tuple[str, ...]]:
    """A finished stage-two run: network, configuration (with `out` where the run lies now), class names."""
    record = read_record(run)
    if record["model"] != "stage2_segmentation.model":
        raise UserError(f"{run} holds no segmentation network; give a folder that run-stage2 wrote (OUT/stage2-…)")
    model, record = load_model(run, device)
    assert isinstance(model, SegmentationModel)
    config = build(Stage2Config, record["config"], source=str(run / "run.yaml"))
    return model, replace(config, out=str(run.parent)), tuple(record["class_names"])


def open_test_scenes(config: Stage2Config, class_names: tuple[str, ...]) -> SceneSet:
    """The validation split of a run's data. Raises UserError where its classes are not the run's."""
    scenes = open_scenes(config.data, config.data.val)
    if difference := class_difference(class_names, scenes.class_names):
        raise UserError(
            f"the run was trained on another class list than {config.data.root or config.data.kind}: {difference}; "
            "evaluate on the data set of the run"
        )
    return scenes


def evaluate_model(
    model: SegmentationModel, scenes: SceneSet, source: Source, inference: InferenceConfig, here: Placement,
    keep: Callable[[str, Segments], None] | None = None,
) -> Evaluation:  # fmt: skip
    """Segment the split's images with the source's rankings and compare with the truth; workers share the images.

    keep: called with the name of each of this worker's images and its segments, of a network that learns objects.
    """
    names = scenes.class_names
    confusion, coverage, kappas = ConfusionSums(len(names)), CoverageSums(len(names), [len(names)]), torch.zeros(1)
    labels = None if model.branch is None else torch.zeros(2, len(scenes), len(names))  # its scores, and the truth
    objects = PanopticSums(things_of(scenes)) if model.learns_objects else None
    for index, scene, found in segmented_scenes(model, scenes, source, inference, here):
        mask = torch.from_numpy(scene.mask).long()[None]
        pixels = label_pixels(mask, len(names))
        confusion.update(found.label_map[None], mask)
        coverage.update(pixels, rank_lookup(found.ranking, len(names)))
        kappas += found.ranking.valid.sum()
        if labels is not None and found.label_scores is not None:
            labels[:, index] = torch.stack([found.label_scores, (pixels[0] > 0).float()])
        if objects is not None and found.segments is not None:
            objects.update(found.segments, scene_segments(scene, objects.things))
            if keep is not None:
                keep(scene.image_id, found.segments)
    confusion, coverage = confusion.reduced(here.total), coverage.reduced(here.total)
    ious = [known(iou) for iou in confusion.iou().tolist()]
    scores, kept, everywhere = confusion.summary(), coverage.summary(), len(names)
    objects = None if objects is None else objects.reduced(here.total)
    return Evaluation(
        images=len(scenes), mIoU=scores["mIoU"], mIoU_in_truth=scores["mIoU_in_truth"],
        pixel_accuracy=scores["pixel_accuracy"], mean_class_accuracy=scores["class_accuracy"],
        zero_iou_share=scores["zero_iou"], pixel_coverage=float(kept[f"pixel_coverage@{everywhere}"] or 0.0),
        image_coverage=float(kept[f"image_coverage@{everywhere}"] or 0.0),
        class_coverage=float(kept[f"class_coverage@{everywhere}"] or 0.0),
        mean_kappa=float(here.total(kappas)) / max(1, len(scenes)),
        label_mAP=None if labels is None else branch_precision(*here.total(labels)),
        class_iou=dict(zip(names, ious, strict=True)),
        absent=tuple(names[label] for label in confusion.absent()),
        panoptic=None if objects is None else {name: known(value) for name, value in objects.summary().items()},
        class_PQ=None if objects is None else dict(zip(names, map(known, objects.quality()[0].tolist()), strict=True)),
    )  # fmt: skip


def branch_precision(scores: Tensor, truth: Tensor) -> float:
    """mAP (envelope) of the label branch's scores f32 [N, K]; truth: 1 for the labels present, else 0."""
    return mean_average_precision(average_precision(scores, truth > 0, definition="envelope"))[0]


def segmented_scenes(
    model: SegmentationModel, scenes: SceneSet, source: Source, inference: InferenceConfig, here: Placement
) -> Iterator[tuple[int, Scene, Segmented]]:
    """This worker's share of the split: (index, scene, what the network makes of it), on the CPU."""
    mine = range(here.worker, len(scenes), here.world)
    things = things_of(scenes) if model.learns_objects else None
    with Meter(f"evaluating on {scenes.split}", len(mine), unit="image") as meter:
        for index in mine:
            scene = scenes[index]
            ranking = scene_ranking(source, scene)
            yield index, scene, segment_image(model, torch.from_numpy(scene.image), ranking, inference, here, things)
            meter.advance()


def segment_image(
    model: SegmentationModel, image: Tensor, ranking: Ranking | OwnRanking, inference: InferenceConfig, here: Placement,
    things: Sequence[bool] | None = None,
) -> Segmented:  # fmt: skip
    """One image u8 [3, H, W], segmented at its own size among the labels of its one ranking, on the CPU.

    things: which of the K labels are, for a network that learns objects; its segments are then made too.
    """
    choice = ranking if isinstance(ranking, OwnRanking) else ranking.to(here.device)
    with torch.inference_mode(), here.autocast():
        size, view = (image.shape[-2], image.shape[-1]), prepared(model, image, inference, here)
        if things is None:
            found = segmented(model, view, choice, inference, size=size)
        else:
            kinds = torch.tensor(things, device=here.device)
            found = segmented_objects(model, view, choice, inference, size=size, things=kinds)
    scores = None if found.label_scores is None else found.label_scores.cpu()
    segments = None if found.segments is None else found.segments.to("cpu")
    return Segmented(found.label_map.cpu(), found.ranking.to("cpu"), scores, segments)


def label_ranking(
    model: SegmentationModel, image: Tensor, ranking: Ranking | OwnRanking, inference: InferenceConfig, here: Placement
) -> Ranking:
    """The ranking of one image u8 [3, H, W] without its segmentation: as given, or the network's own."""
    if isinstance(ranking, Ranking):
        return ranking
    with torch.inference_mode(), here.autocast():
        return own_ranking(model, prepared(model, image, inference, here), ranking, inference).to("cpu")


def prepared(model: SegmentationModel, image: Tensor, inference: InferenceConfig, here: Placement) -> Tensor:
    """An image u8 [3, H, W] as the network takes it: resized, then normalised on its device."""
    if inference.short_side is not None:
        image = resized(image, scaled_size((image.shape[-2], image.shape[-1]), inference.short_side))
    normalise = Normalisation(model.backbone.mean, model.backbone.std)
    return normalise(image.contiguous().to(here.device))


def evaluation_name(config: Stage2Config, training: Stage2Config, chosen: str = "") -> str:
    """File name of an evaluation: what differs from the run's own settings is part of it.

    chosen: how labels are chosen for each image; empty = all that the source knows of.
    """
    words = [config.source.at_test, *([chosen] if chosen else [])]
    if config.source.at_test == "cache" and config.source.cache != training.source.cache:
        words.append(f"from-{'_'.join(Path(str(config.source.cache)).parts[-2:])}")
    if config.source.at_test == "service" and config.source.service_cache is not None:
        words.append(f"from-{config.source.service_cache}")
    before, now = (flatten(asdict(one.inference)) for one in (training, config))
    words += [f"{name}-{value}" for name, value in now.items() if value != before[name]]
    words += [config.data.val] if config.data.val != training.data.val else []
    return "evaluation-" + "-".join(str(w).replace(" ", "").replace("/", "_") for w in words) + ".json"
