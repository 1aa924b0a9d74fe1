"""A step of every variant, and the published way to compute the same."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kappaseg_core.config import BackboneConfig
from kappaseg_core.products import is_ours
from kappaseg_core.ranking import complete_ranking, to_rank_space, top_kappa
from pipelines.bench import steps
from pipelines.bench.learning import PRESENT
from pipelines.bench.needs import needs
from pipelines.bench.published_way import (
    NOT_KEPT,
    attention_in_steps,
    loss_of_all_pixels,
    loss_of_prediction,
    map_by_scatter,
    map_of_all_labels,
)
from pipelines.bench.variants import WAYS, Variant
from stage2_segmentation import losses
from stage2_segmentation.config import HostConfig
from stage2_segmentation.losses import prediction_loss, segmentation_loss
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.structures import Auxiliary, Prediction


@pytest.mark.parametrize("mask", [None, torch.arange(5)[None] < 3, torch.linspace(-2, 0, 5)[None]])
def test_attention_in_steps_is_the_attention_that_it_stands_for(mask: torch.Tensor | None) -> None:
    queries, keys, values = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    fused = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    with attention_in_steps():
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    assert torch.allclose(found, fused, atol=1e-6)
    assert F.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


def test_the_published_loss_is_ours() -> None:
    logits, mask = torch.randn(2, 3, 4, 5), torch.randint(-1, 7, (2, 16, 20))
    ranking = top_kappa(torch.rand(2, 7), 3)
    ours, _ = segmentation_loss(logits, mask, ranking, 7, cell=4)
    assert math.isclose(loss_of_all_pixels(logits, to_rank_space(mask, ranking, 7)), ours, rel_tol=1e-5)


def test_the_published_loss_counts_auxiliary_logits_as_ours_does() -> None:
    beside = Auxiliary(torch.randn(2, 3, 2, 3), cell=8, weight=0.4)
    prediction = Prediction(torch.randn(2, 3, 4, 6), (beside,))
    mask, ranking = torch.randint(-1, 7, (2, 16, 24)), top_kappa(torch.rand(2, 7), 3)
    ours, _ = prediction_loss(prediction, mask, ranking, 7, cell=4)
    target = to_rank_space(mask, ranking, 7)
    assert math.isclose(loss_of_prediction(prediction, target), ours, rel_tol=1e-5)
    assert not math.isclose(loss_of_all_pixels(prediction.rank_logits, target), ours, rel_tol=1e-2)


@pytest.mark.parametrize("host", ["upernet", "deeplabv3"])
@pytest.mark.parametrize("way", ["published", "ours"])
def test_hosts_with_auxiliary_logits_and_several_maps_have_parts_too(tiny: Variant, host: str, way: str) -> None:
    options = {"width": 8, "auxiliary_width": 8}
    config = replace(
        tiny.config, backbone=BackboneConfig(name="resnet10t"), host=HostConfig(kind=host, options=options)
    )
    kappa = 3 if WAYS[way].keeps else None
    marked: list[str] = []
    steps.built(replace(tiny, config=config, way=WAYS[way].way, kappa=kappa), marked.append)()
    back = ["loss, backward", "decoder, backward", "backbone, backward"]
    assert marked == ["optimiser", "backbone", "decoder", "loss", *back, "optimiser"]


@pytest.mark.parametrize("way", ["published", "ours"])
def test_a_host_of_points_has_parts_too(tiny: Variant, way: str) -> None:
    config = replace(tiny.config, host=HostConfig(kind="nearest", options={"width": 3, "nearest": 2}))
    marked: list[str] = []
    steps.built(replace(tiny, config=config, way=WAYS[way].way), marked.append)()
    assert marked[:4] == ["optimiser", "backbone", "decoder", "loss"] and marked.count("optimiser") == 2


def test_an_optimiser_of_selected_rows_changes_those_of_the_kept_labels(
    tiny: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All where no label is chosen; and what is needed is estimated with all."""
    config = replace(tiny.config, optim=replace(tiny.config.optim, selected_rows=True))
    made: list[SegmentationModel] = []
    network = steps.network

    def noting(variant: Variant) -> SegmentationModel:
        made.append(network(variant))
        return made[-1]

    monkeypatch.setattr(steps, "network", noting)
    changed = []
    for kappa in (3, None):
        variant = replace(tiny, config=config, kappa=kappa, images=1)
        step = steps.built(variant, steps.untold)
        table = made[-1].host.cls_emb
        before = table.detach().clone()  # type: ignore[operator, union-attr]
        step()
        step()
        changed.append(int((table != before).any(1).sum()))  # type: ignore[union-attr]
        assert needs(variant).step > 0
    assert changed == [3, tiny.classes]


def test_scattering_finds_the_labels_that_the_ranks_mean() -> None:
    logits, ranking = torch.randn(2, 3, 4, 5), top_kappa(torch.rand(2, 7), 3)
    ranks = map_of_all_labels(logits, (16, 20))
    wanted = ranking.labels.gather(1, ranks.flatten(1)).view_as(ranks)
    assert torch.equal(map_by_scatter(logits, ranking.labels, 7, (16, 20)), wanted)
    assert logits.min() > NOT_KEPT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_way_makes_a_step_and_says_where_its_parts_end(
    tiny: Variant, way: str, train: bool, precision: str
) -> None:
    kappa = 3 if WAYS[way].keeps else None
    variant = replace(tiny, way=WAYS[way].way, kappa=kappa, train=train, precision=precision)
    marked: list[str] = []
    step = steps.built(variant, marked.append)
    assert not marked
    step()
    parts = ["backbone", *([] if way == "backbone" else ["decoder"])]
    if not train:
        assert marked == parts + ([] if way == "backbone" else ["label map"])
        return
    back = ["loss, backward", *([] if way == "backbone" else ["decoder, backward"]), "backbone, backward"]
    assert marked == ["optimiser", *parts, "loss", *back, "optimiser"]


def test_a_step_of_training_changes_the_network_unless_it_is_frozen(
    tiny: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(variant: Variant) -> list[bool]:
        made: list[SegmentationModel] = []
        monkeypatch.setattr(steps, "network", lambda given: made.append(network(given)) or made[0])
        step = steps.built(variant, lambda part: None)
        before = [p.clone() for p in made[0].backbone.parameters()]
        step()
        return [not torch.equal(p, old) for p, old in zip(made[0].backbone.parameters(), before, strict=True)]

    network = steps.network
    assert any(moved(tiny))
    frozen = replace(tiny.config, backbone=replace(tiny.config.backbone, frozen=True))
    assert not any(moved(replace(tiny, config=frozen)))


def test_several_images_get_the_maps_that_they_get_alone(tiny: Variant) -> None:
    model = steps.network(replace(tiny, train=False))
    images, ranking = torch.randn(3, 3, 32, 40), top_kappa(torch.rand(3, 7), 3)
    with torch.inference_mode():
        together = steps.label_maps(model, images, ranking, (32, 40))
        alone = [steps.label_maps(model, images[i : i + 1], ranking[i : i + 1], (32, 40)) for i in range(3)]
    assert torch.equal(together, torch.stack(alone)) and len(together.unique()) > 1


def test_the_published_network_drops_weights_of_its_attention_and_ours_does_not(tiny: Variant) -> None:
    ours, published = steps.network(tiny), steps.network(replace(tiny, way="published", kappa=None))
    assert ours.host.blocks[0].attn.dropout == 0.0 and published.host.blocks[0].attn.dropout == 0.1
    assert (ours.all_labels, published.all_labels) == (None, 7)


def test_a_network_that_ranks_for_itself_is_measured_with_its_branch(tiny: Variant) -> None:
    config = replace(tiny.config, labels=replace(tiny.config.labels, head="pooled", warm_up=0.5))
    joint = replace(tiny, config=config)
    marked: list[str] = []
    steps.built(joint, marked.append)()
    assert "decoder, backward" in marked  # behind the warm-up, the segmentation loss is there
    assert steps.network(joint).branch is not None
    assert steps.network(replace(joint, kappa=None)).branch is None
    for images in (1, 2):
        steps.built(replace(joint, train=False, images=images), marked.append)()


def test_class_tokens_in_the_backbone_have_no_parts(tiny: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[str] = []
    network = steps.network

    def joined(variant: Variant) -> SegmentationModel:
        model = network(variant)
        model.class_tokens = True
        monkeypatch.setattr(model, "look", lambda images, labels: model.read(model.backbone.maps(images)))
        return model

    monkeypatch.setattr(steps, "network", joined)
    steps.built(tiny, marked.append)()
    assert not marked


def test_without_its_kernel_the_loss_is_computed_strip_by_strip_for_the_time_of_the_block() -> None:
    asked = losses.has_kernel
    with steps.without_kernel():
        assert not losses.has_kernel(torch.empty(1, 1, 1, 1))
    assert losses.has_kernel is asked


def test_the_labels_in_the_masks_are_kept_ones() -> None:
    ranking = top_kappa(torch.rand(2, 7), 3)
    mask = steps.regions(torch.empty(2, 3, 16, 24), ranking)
    assert mask.shape == (2, 16, 24)
    assert all(set(one.unique().tolist()) <= set(row.tolist()) for one, row in zip(mask, ranking.labels, strict=True))
    assert steps.regions(torch.empty(1, 3, 8, 8), complete_ranking(1, 2)).unique().tolist() == [0, 1]


def test_images_of_a_step_show_a_few_labels_however_many_are_kept() -> None:
    mask = steps.regions(torch.empty(1, 3, 64, 64), complete_ranking(1, 500))
    assert 1 < len(mask.unique()) <= PRESENT and mask.max() < PRESENT


def test_the_published_way_leaves_products_and_attention_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kappaseg_core.products.mkl_is_slow", lambda: True)
    asked = torch.ones(1, 3, 700, 64)
    with attention_in_steps():
        assert not is_ours(asked)
    assert is_ours(asked)
