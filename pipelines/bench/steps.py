"""One step of a variant: training on images of random numbers, or images to label maps.

Legend: B images, K all labels, κ kept labels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from kappaseg_core.config import OptimConfig
from kappaseg_core.ranking import OwnRanking, Ranking, complete_ranking, to_label_space, to_rank_space, top_kappa
from kappaseg_core.structures import Batch
from pipelines.bench import eomt
from pipelines.bench.learning import Mark, autocast, learning, regions, untold
from pipelines.bench.published_way import attention_in_steps, loss_of_prediction, map_by_scatter, map_of_all_labels
from pipelines.bench.variants import Variant
from stage2_segmentation import losses
from stage2_segmentation.config import InferenceConfig, SourceConfig, Stage2Config
from stage2_segmentation.inference import in_cells, segmented
from stage2_segmentation.model import SegmentationModel, build_segmentation
from stage2_segmentation.pixels import both_axes
from stage2_segmentation.rank_maps import best_ranks
from stage2_segmentation.structures import NearestPrediction, Prediction, QueryPrediction
from stage2_segmentation.task import SegmentTask

#: share of the training that lies behind: no warm-up any more
LATE = 0.99


@dataclass(frozen=True)
class Given:
    """A source that gives the same ranking at every step."""

    ranking: Ranking | OwnRanking
    fingerprint: str = "benchmark"

    def __call__(
        self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None
    ) -> Ranking | OwnRanking:
        return self.ranking


def built(variant: Variant, mark: Mark) -> Callable[[], object]:
    """The step of a variant: its network, images and rankings on the variant's device, drawn from torch's generator."""
    if variant.way == "eomt":
        return eomt.built(variant)
    with torch.device(variant.device):
        model = network(variant)
        if model.class_tokens or model.backbone.wants.last_blocks:  # not through the backbone and then the host
            mark = untold
        images = torch.randn(variant.images, 3, variant.size, variant.size)
        ranking = complete_ranking(variant.images, variant.classes, variant.device)
        if variant.kappa:
            ranking = top_kappa(torch.rand(variant.images, variant.classes), variant.kappa)
        compute = (training if variant.train else inference)(variant, model, images, ranking, mark)

    def step() -> None:
        with ExitStack() as stack:
            if variant.way == "published":
                stack.enter_context(attention_in_steps())
            if variant.way == "strips":
                stack.enter_context(without_kernel())
            compute()

    return step


def network(variant: Variant) -> SegmentationModel:
    """The variant's network with random weights.

    The published one has dropout on the weights of its attention, and no label branch where all labels are taken.
    """
    config = variant.config
    options = dict(config.host.options)
    if variant.way == "published":
        options.pop("attention_dropout", None)
    return build_segmentation(
        replace(
            config,
            backbone=replace(config.backbone, weights=None, frozen=config.backbone.is_frozen),
            host=replace(config.host, options=options),
            augment=replace(config.augment, crop=variant.size),
            labels=config.labels if variant.kappa else replace(config.labels, head="none"),
            source=source(config, variant.kappa),
            optim=optim_of(variant),
        ),
        variant.classes,
    ).train(variant.train)


def source(config: Stage2Config, kappa: int | None) -> SourceConfig:
    """Where rankings come from, as far as the network depends on it: itself, elsewhere, or all labels."""
    if kappa is None:
        return replace(config.source, train="complete", test=None)
    own = config.labels.head != "none"
    return replace(config.source, train="joint" if own else "cache", test=None, kappa=kappa)


def optim_of(variant: Variant) -> OptimConfig:
    """The configured optimiser. It changes all rows where all labels are taken, and on "meta", where rows that are
    selected would be values."""
    optim = variant.config.optim
    if variant.kappa is None or variant.device == "meta":
        return replace(optim, selected_rows=False)
    return optim


@contextmanager
def without_kernel() -> Iterator[None]:
    """The loss strip by strip on a GPU, too, for the time of the block."""
    asked = losses.has_kernel
    losses.has_kernel = lambda cells: False
    try:
        yield
    finally:
        losses.has_kernel = asked


def watch(model: SegmentationModel, mark: Mark, *, alone: bool) -> None:
    """Mark the ends of backbone and decoder, and of the ways back to them. The decoder is all that lies between the
    backbone's maps and the logits, a label branch included.   alone: whether nothing follows the backbone."""

    def ended(part: str, behind: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(module: nn.Module, given: object, out: Any) -> None:
            mark(part)
            learned = [tensor for tensor in tensors_of(out) if tensor.requires_grad]
            if learned:
                register_multi_grad_hook(learned, lambda gradients: mark(f"{behind}, backward"))

        return hook

    model.backbone.network.register_forward_hook(ended("backbone", "loss" if alone else "decoder"))
    model.host.register_forward_hook(ended("decoder", "loss"))


def tensors_of(out: Tensor | Sequence[Tensor] | Prediction | QueryPrediction | NearestPrediction) -> list[Tensor]:
    """What a backbone's network gives, a map or several, or a host."""
    if isinstance(out, QueryPrediction):
        return [tensor for each in (out, *out.auxiliary) for tensor in (each.class_logits, each.mask_logits)]
    if isinstance(out, NearestPrediction):
        return [out.cells, out.rows]
    if isinstance(out, Prediction):
        return [out.rank_logits, *(each.rank_logits for each in out.auxiliary)]
    return [out] if isinstance(out, Tensor) else list(out)


def training(
    variant: Variant, model: SegmentationModel, images: Tensor, ranking: Ranking, mark: Mark
) -> Callable[[], object]:
    """One step of the configured optimiser."""
    config = variant.config
    mask = regions(images, ranking)
    own = model.branch is not None
    task = SegmentTask(
        model, Given(OwnRanking(ranking.kappa) if own else ranking), variant.classes, missed=config.source,
        labels=config.labels, loss_stride=config.loss.stride,
    )  # fmt: skip
    batch = Batch(tuple(map(str, range(len(images)))), image=images, mask=mask, progress=LATE)
    watch(model, mark, alone=variant.way == "backbone")

    def loss() -> Tensor:
        with autocast(variant):
            if variant.way == "backbone":
                return model.backbone(images).float().square().mean()
            if variant.way in ("ours", "strips"):
                return task(batch)[0]
            return loss_of_prediction(
                pixel_prediction(model, images, ranking), to_rank_space(mask, ranking, variant.classes)
            )

    return learning(task.parameter_groups(optim_of(variant)), optim_of(variant), loss, mark)


def inference(
    variant: Variant, model: SegmentationModel, images: Tensor, ranking: Ranking, mark: Mark
) -> Callable[[], object]:
    """Images to label maps."""
    height, width = images.shape[2:]
    size = (height, width)
    watch(model, mark, alone=variant.way == "backbone")

    def maps() -> Tensor:
        if variant.way in ("ours", "strips"):
            return label_maps(model, images, ranking, size)
        logits = pixel_prediction(model, images, ranking).rank_logits.float()
        if variant.way == "published" and variant.kappa:
            return map_by_scatter(logits, ranking.labels, variant.classes, size)
        return to_label_space(map_of_all_labels(logits, size), ranking)

    @torch.inference_mode()
    def step() -> object:
        with autocast(variant):
            if variant.way == "backbone":
                return model.backbone(images)
            found = maps()
        mark("label map")
        return found

    return step


def pixel_prediction(model: SegmentationModel, images: Tensor, ranking: Ranking) -> Prediction:
    """Of the networks that are computed in other ways, too (`variants.known_ways`)."""
    prediction = model(images, ranking)
    assert not isinstance(prediction, QueryPrediction)
    return prediction


def label_maps(model: SegmentationModel, images: Tensor, ranking: Ranking, size: tuple[int, int]) -> Tensor:
    """i64 [B, H, W] the way this project makes them; several images go through the network together."""
    own = model.branch is not None
    if len(images) == 1:
        plan = InferenceConfig()
        return segmented(model, images[0], OwnRanking(ranking.kappa) if own else ranking, plan, size=size).label_map
    seen = model.look(images)
    if seen.label_logits is not None:
        ranking = top_kappa(seen.label_logits.float().sigmoid(), ranking.kappa)
    ranks = []
    for cells, piece in in_cells(model.segment(seen, ranking)):
        rows, columns = both_axes(cells.shape[:2], model.cell, size, cells)
        ranks.append(best_ranks([[piece(cells, rows, columns, alone=True)]], size))
    return to_label_space(torch.stack(ranks), ranking)
