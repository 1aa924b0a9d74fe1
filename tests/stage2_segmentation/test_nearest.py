"""The host whose pixels learn from their nearest labels: against all of them at once, and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape
from kappaseg_core.ranking import IGNORE, Ranking, complete_ranking, top_kappa
from stage2_segmentation import nearest_loss as module
from stage2_segmentation.config import HostConfig, SourceConfig
from stage2_segmentation.hosts import build_host
from stage2_segmentation.losses import prediction_loss
from stage2_segmentation.nearest_loss import least_distance, nearest_ranks
from stage2_segmentation.structures import NearestPrediction, Seen
from stage2_segmentation.train import train_segmentation
from tests.stage2_segmentation.test_train import config_for
from tests.tensors import PRIME, Created

K, D, CELL = 6, 3, 4


def host_of(num_classes: int = K, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_host(
        "nearest", num_classes=num_classes, maps=[MapShape(5, CELL)], kappa=num_classes, options={"width": D, **options}
    )


def seen_of() -> tuple[Seen, Tensor]:
    """Two images of 7 × 10 pixels with some pixels that have no label, and their masks."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, K, (2, 7, 10), generator=generator)
    mask[0, 2:4, 3:] = IGNORE
    features = torch.randn(2, 5, 2, 3, generator=generator)
    return Seen(features, maps=(features,)), mask


def distances_of(prediction: NearestPrediction, stride: int = 1) -> Tensor:
    """From every (stride-th) pixel of 7 × 10 to every rank, [B, H, W, κ]."""
    sides = [-(-cells * CELL // stride) for cells in prediction.cells.shape[2:]]
    points = F.interpolate(prediction.cells, sides, mode="bilinear").movedim(1, 3)
    there = points[:, : len(range(stride // 2, 7, stride)), : len(range(stride // 2, 10, stride)), None]
    return (there - prediction.rows[:, None, None]).square().sum(-1).clamp_min(1e-12).sqrt()


@pytest.mark.parametrize("at_once", [2, 5, 512])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_nearest_labels_are_those_of_a_search_among_all(
    monkeypatch: pytest.MonkeyPatch, at_once: int, count: int
) -> None:
    monkeypatch.setattr(module, "LABELS_AT_ONCE", at_once)
    points, rows = torch.randn(11, D), torch.randn(8, D)
    valid = torch.tensor([True, True, False, True, True, True, False, True])
    expected = torch.cdist(points, rows).masked_fill(~valid, torch.inf).argsort(1)[:, :count]
    found = nearest_ranks(points, rows, valid, count)
    assert found.shape == (11, min(count, 8))
    assert torch.equal(found[:, :6], expected[:, :6])  # the order of what is not valid means nothing


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("nearest", [1, 2, K])
def test_the_loss_and_its_gradients_are_those_of_a_softmax_over_the_nearest_labels_and_the_own(
    nearest: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many as there are labels this is the plain softmax over all of them."""
    monkeypatch.setattr(module, "LABELS_AT_ONCE", 4)
    monkeypatch.setattr("stage2_segmentation.pixels.STRIP", {"cpu": 2 * 10 * 12})  # several strips
    (seen, mask), ranking = seen_of(), complete_ranking(2, K)
    found = []
    for ours in (True, False):
        host = host_of(nearest=nearest, margin=0.0)
        prediction = host(seen, ranking)
        if ours:
            loss, figures = prediction_loss(prediction, mask, ranking, K, cell=CELL, stride=stride)
        else:
            distances = distances_of(prediction, stride)
            target = mask[:, stride // 2 :: stride, stride // 2 :: stride]
            own = F.one_hot(target.clamp_min(0), K).bool()
            near = torch.zeros_like(own).scatter(3, distances.topk(nearest, largest=False).indices, True)
            logits = (-20.0 * distances).masked_fill(~(own | near), -torch.inf)
            loss = F.cross_entropy(logits.movedim(3, 1), target, ignore_index=IGNORE, reduction="sum") / target.numel()
            right = (distances.argmin(3) == target).sum() / (target != IGNORE).sum()
            assert figures["pixel_accuracy"].item() == pytest.approx(right.item())
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in host.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert all((gradient != 0).any() for gradient in found[0][1:])


def test_labels_that_the_ranking_missed_teach_nothing_and_padding_is_nobodys_neighbour() -> None:
    (seen, mask), host = seen_of(), host_of(nearest=3, margin=0.0)
    labels = torch.tensor([[4, 1, 3], [2, 0, 0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    ranking = Ranking(labels, torch.ones(2, 3), valid)
    loss, figures = prediction_loss(host(seen, ranking), mask, ranking, K, cell=CELL)
    kept = torch.stack([torch.isin(mask[0], labels[0]), mask[1] == 2])
    assert figures["kept"].item() == pytest.approx((kept.sum() / (mask != IGNORE).sum()).item())
    loss.backward()
    assert (host.cls_emb.grad != 0).any(1).tolist() == [False, True, False, True, True, False]  # type: ignore[union-attr, arg-type]


def test_the_best_logit_of_every_pixel_is_that_of_the_nearest_label() -> None:
    seen, _ = seen_of()
    prediction = host_of()(seen, complete_ranking(2, K))
    logits = F.interpolate(prediction.rank_logits, scale_factor=CELL, mode="bilinear")[..., :7, :10]
    assert torch.equal(logits.argmax(1), distances_of(prediction).argmin(3))


def test_the_two_nearest_labels_are_pushed_apart() -> None:
    (seen, mask), host = seen_of(), host_of(margin=0.5)
    ranking = top_kappa(torch.tensor([[9.0, 8, 7, 0, 0, 0], [0, 8, 7, 6, 0, 0]]), 3)  # labels 0 1 2 and 1 2 3
    with torch.no_grad():
        host.cls_emb.copy_(torch.arange(K)[:, None].square() * torch.eye(K, D)[0] + 1)  # type: ignore[operator, union-attr]
        host.cls_emb[5] = host.cls_emb[4]  # type: ignore[operator, index]  # nearer still, but not ranked
        host.cls_emb[2, 0] = 2.2  # type: ignore[operator, index]  # 1 is at 2
    prediction = host(seen, ranking)
    assert least_distance(prediction.rows, ranking).item() == pytest.approx(0.2, abs=1e-6)
    without = replace(prediction, margin=0.0)
    losses = [prediction_loss(each, mask, ranking, K, cell=CELL)[0] for each in (prediction, without)]
    assert (losses[0] - losses[1]).item() == pytest.approx(0.3, abs=1e-5)
    (losses[0] - losses[1]).backward()
    pushed = host.cls_emb.grad[:, 0]  # type: ignore[index, union-attr]
    torch.testing.assert_close(pushed, torch.tensor([0.0, 1, -1, 0, 0, 0]), rtol=0, atol=1e-4)
    alone = complete_ranking(2, 1)
    assert least_distance(torch.zeros(2, 1, D), alone) == torch.inf


def test_no_pixel_has_a_number_per_label() -> None:
    """All of 1,009 labels are candidates: what has an axis of them is no larger than their rows for two images."""
    host, (seen, mask), ranking = host_of(PRIME), seen_of(), complete_ranking(2, PRIME)
    with Created(host) as created:
        prediction_loss(host(seen, ranking), mask, ranking, PRIME, cell=CELL)[0].backward()
    assert max(torch.Size(shape).numel() for shape in created.shapes_with(PRIME)) <= 2 * PRIME * D


@pytest.mark.parametrize("source", [SourceConfig("complete"), SourceConfig("oracle")])
def test_a_network_is_trained_and_evaluated_without_a_ranking_or_with_one(source: SourceConfig, tmp_path: Path) -> None:
    config = config_for(tmp_path, source)
    summary = train_segmentation(replace(config, host=HostConfig("nearest", {"nearest": 2})))
    assert 0 <= summary.metrics["mIoU"] <= 1
