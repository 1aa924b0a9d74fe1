"""Cross-entropy over the kept labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.ranking import IGNORE, PADDING_LOGIT, Ranking, complete_ranking, oracle_ranking, top_kappa
from stage2_segmentation.losses import segmentation_loss
from tests.tensors import PRIME, Created

K, KAPPA, CELL = 5, 3, 2
HEIGHT, WIDTH = 6, 10  # of the label maps, in pixels; 3x5 cells


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(kappa: int = KAPPA, images: int = 2) -> Tensor:
    return torch.randn(images, kappa, HEIGHT // CELL, WIDTH // CELL, generator=generator()) * 2


def mask_of(images: int = 2) -> Tensor:
    """Random labels of all K and some IGNORE."""
    return torch.randint(IGNORE, K, (images, HEIGHT, WIDTH), generator=generator(1))


def ranking_of(kappa: int = KAPPA, images: int = 2) -> Ranking:
    return top_kappa(torch.rand(images, K, generator=generator(2)), kappa)


def plain(rank_logits: Tensor, mask: Tensor, ranking: Ranking) -> Tensor:
    """The documented sum, pixel by pixel."""
    pixels = F.interpolate(rank_logits, mask.shape[1:], mode="bilinear", align_corners=False)
    total = pixels.new_zeros(())
    for image, labels in enumerate(ranking.labels.tolist()):
        for y, row in enumerate(mask[image].tolist()):
            for x, label in enumerate(row):
                if label in labels:
                    z = pixels[image, :, y, x]
                    total = total - (z[labels.index(label)] - z.logsumexp(0))
    return total / mask.numel()


def test_two_by_two_pixels_by_hand() -> None:
    """Kept labels 2 and 0. Pixels: 2 with probability 3/4, 0 with probability 1/3, 1 not kept, one without a label."""
    logits = torch.tensor([[math.log(3), math.log(2)], [5.0, 5.0]]), torch.tensor([[0.0, 0.0], [1.0, 9.0]])
    mask = torch.tensor([[[2, 0], [1, IGNORE]]])
    ranking = Ranking(torch.tensor([[2, 0]]), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    loss, figures = segmentation_loss(torch.stack(logits)[None], mask, ranking, 4, cell=1)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(3)) / 4)
    assert figures["kept"].item() == pytest.approx(2 / 3)
    assert figures["pixel_accuracy"].item() == pytest.approx(1 / 3)


def test_loss_and_gradient_are_those_of_the_plain_sum() -> None:
    ours, theirs = logits_of().requires_grad_(), logits_of().requires_grad_()
    loss, _ = segmentation_loss(ours, mask_of(), ranking_of(), K, cell=CELL)
    expected = plain(theirs, mask_of(), ranking_of())
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_unselected_pixels_are_ignored() -> None:
    """Neither an unselected label nor a pixel without one moves a logit, whatever stands there."""
    ranking, mask = ranking_of(), mask_of()
    kept = torch.stack([torch.isin(m, labels) for m, labels in zip(mask, ranking.labels, strict=True)])
    pixels = torch.randn(2, KAPPA, HEIGHT, WIDTH, requires_grad=True, generator=generator())
    loss, _ = segmentation_loss(pixels, mask, ranking, K, cell=1)
    (gradient,) = torch.autograd.grad(loss, pixels)
    assert torch.equal(gradient.abs().sum(1) > 0, kept)
    elsewhere = torch.where(kept[:, None], pixels, 100 * pixels)
    assert segmentation_loss(elsewhere, mask, ranking, K, cell=1)[0].item() == pytest.approx(loss.item())


def test_the_denominator_is_all_pixels() -> None:
    """Half of the pixels ignored: half the loss, not the same."""
    mask, logits = torch.ones(1, 2, 4, dtype=torch.int64), torch.zeros(1, 2, 2, 4)
    ranking = complete_ranking(1, 2)
    whole, _ = segmentation_loss(logits, mask, ranking, 2, cell=1)
    mask[:, :, 2:] = IGNORE
    half, _ = segmentation_loss(logits, mask, ranking, 2, cell=1)
    assert whole.item() == pytest.approx(math.log(2))
    assert half.item() == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("missing", ["unselected", "unlabelled", "without any rank"])
def test_nothing_selected_gives_exactly_zero(missing: str) -> None:
    logits = logits_of()
    mask = torch.full((2, HEIGHT, WIDTH), IGNORE if missing == "unlabelled" else K - 1)
    ranking = complete_ranking(2, KAPPA)  # of labels 0..2
    if missing == "without any rank":
        ranking = oracle_ranking(torch.zeros(2, K, dtype=torch.bool))
        logits = torch.full((2, 1, 3, 5), PADDING_LOGIT)
    logits.requires_grad_()
    loss, figures = segmentation_loss(logits, mask, ranking, K, cell=CELL)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert (gradient == 0).all()
    assert {name: value.item() for name, value in figures.items()} == {"kept": 0, "pixel_accuracy": 0}


def test_with_all_labels_kept_it_is_the_usual_cross_entropy() -> None:
    """κ = K in a random order; summed over labelled pixels, divided by all."""
    ranking, logits, mask = ranking_of(K), logits_of(K), mask_of()
    full = torch.empty_like(logits)
    for image in range(2):
        full[image, ranking.labels[image]] = logits[image]
    full = F.interpolate(full, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, mask, ignore_index=IGNORE, reduction="sum") / mask.numel()
    loss, figures = segmentation_loss(logits, mask, ranking, K, cell=CELL)
    torch.testing.assert_close(loss, expected)
    assert figures["kept"].item() == 1
    right = (full.argmax(1) == mask) & (mask != IGNORE)
    assert figures["pixel_accuracy"].item() == pytest.approx(right.sum().item() / (mask != IGNORE).sum().item())


def test_padding_ranks_do_not_change_the_loss() -> None:
    logits, ranking, mask = logits_of(images=1), ranking_of(images=1), mask_of(images=1)
    padding = torch.full((1, 2, *logits.shape[2:]), PADDING_LOGIT)
    none = torch.zeros(1, 2)
    padded = Ranking(
        torch.cat([ranking.labels, none.long()], 1), torch.cat([ranking.scores, none], 1),
        torch.cat([ranking.valid, none.bool()], 1),
    )  # fmt: skip
    short, figures = segmentation_loss(logits, mask, ranking, K, cell=CELL)
    long, padded_figures = segmentation_loss(torch.cat([logits, padding], 1), mask, padded, K, cell=CELL)
    assert long.item() == pytest.approx(short.item())
    assert figures == padded_figures


@pytest.mark.parametrize("stride", [3, 5])
def test_a_stride_takes_every_strideth_pixel(stride: int) -> None:
    """From the middle of the first block on: 3, 3 + stride, ... along each axis. One cell is one pixel here."""
    logits = torch.randn(1, KAPPA, 15, 15, generator=generator())
    mask, ranking = torch.randint(IGNORE, K, (1, 15, 15), generator=generator(1)), ranking_of(images=1)
    some = slice(stride // 2, None, stride)
    expected = segmentation_loss(logits[:, :, some, some], mask[:, some, some], ranking, K, cell=1)
    torch.testing.assert_close(segmentation_loss(logits, mask, ranking, K, cell=1, stride=stride), expected)


@pytest.mark.parametrize("stride", [2, 3, 4, 7])
@pytest.mark.parametrize("side", [7, 8])
def test_any_stride_fits_any_mask(side: int, stride: int) -> None:
    """A mask smaller than its padded map of 2x2 cells of 4 pixels, strides that divide neither."""
    logits = torch.zeros(1, KAPPA, 2, 2)
    mask = complete_ranking(1, K).labels[0, 1].expand(1, side, side)
    loss, _ = segmentation_loss(logits, mask, complete_ranking(1, KAPPA), K, cell=4, stride=stride)
    assert loss.item() == pytest.approx(math.log(KAPPA))


def test_half_precision_logits_give_a_single_precision_loss() -> None:
    logits = logits_of().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = segmentation_loss(logits, mask_of(), ranking_of(), K, cell=CELL)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, segmentation_loss(logits.float(), mask_of(), ranking_of(), K, cell=CELL)[0])


def test_no_floating_tensor_has_an_axis_of_all_labels() -> None:
    """Neither forward nor backward; the look-up table of K ranks is of whole numbers."""
    logits, mask = logits_of().requires_grad_(), mask_of()
    ranking = top_kappa(torch.rand(2, PRIME, generator=generator()), KAPPA)
    with Created() as created:
        segmentation_loss(logits, mask, ranking, PRIME, cell=CELL)[0].backward()
    assert len(created.tensors) > 5
    assert created.shapes_with(PRIME) == []
