"""The scale per rank: formulas, fewer and more ranks than parameters, padding."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from kappaseg_core.rank_scale import Kind, RankScale

KINDS = get_args(Kind)
KAPPA = 3


def scale_of(kind: Kind, *, unbiased: bool = False) -> RankScale:
    """A scale whose parameters all differ."""
    scale = RankScale(KAPPA, kind, unbiased=unbiased)
    with torch.no_grad():
        for parameter in scale.parameters():
            parameter.copy_(torch.arange(1.0, len(parameter) + 1) * 0.7)
    return scale


def plain(scale: RankScale, scores: list[float]) -> list[float]:
    """The documented formula for one pixel, one number at a time."""
    weight, n = scale.weight.tolist(), len(scores)
    at = [weight[min(rank, len(weight) - 1)] for rank in range(n)]
    if scale.kind in ("rank", "shared"):
        return [w * q for w, q in zip(at, scores, strict=True)]
    biases = [0.0] if scale.bias is None else scale.bias.tolist()
    bias = [biases[min(rank, len(biases) - 1)] for rank in range(n)]
    mean = sum(scores) / n
    variance = sum((q - mean) ** 2 for q in scores) / max(1, n - 1 if scale.unbiased else n)
    return [
        w * (q - mean) / math.sqrt(variance + scale.eps) + b for w, q, b in zip(at, scores, bias, strict=True)
    ]  # fmt: skip


def pixels(n: int) -> Tensor:
    """Cosines f32 [2, 4, n] of two images with four cells."""
    return torch.rand(2, 4, n, generator=torch.Generator().manual_seed(n)) * 2 - 1


@pytest.mark.parametrize("n", [1, 2, KAPPA, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_follow_the_formula_for_any_number_of_ranks(kind: Kind, n: int) -> None:
    scale, scores = scale_of(kind), pixels(n)
    expected = [[plain(scale, row) for row in image] for image in scores.tolist()]
    torch.testing.assert_close(scale(scores), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, KAPPA, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_no_object_is_scaled_with_the_ranks_and_has_parameters_of_its_own(kind: Kind, n: int) -> None:
    """Whatever the number of ranks; those of one value for all ranks serve it as well."""
    scale, scores = RankScale(KAPPA, kind, no_object=True), pixels(n + 1)
    with torch.no_grad():
        for parameter in scale.parameters():
            parameter.copy_(torch.arange(1.0, len(parameter) + 1) * 0.7)
    plain_scale = RankScale(n + 1, kind)
    at = [*(min(rank, KAPPA - 1) for rank in range(n)), KAPPA] if len(scale.weight) > 1 else [0]
    with torch.no_grad():
        for parameter, values in zip(plain_scale.parameters(), scale.parameters(), strict=True):
            parameter.copy_(values[at])
    assert len(scale.weight) == (KAPPA + 1 if kind in ("rank", "layer_norm") else 1)
    torch.testing.assert_close(scale(scores), plain_scale(scores))


@pytest.mark.parametrize("n", [2, KAPPA, 5])
def test_unbiased_divides_by_one_less(n: int) -> None:
    scale, scores = scale_of("layer_norm", unbiased=True), pixels(n)
    expected = [[plain(scale, row) for row in image] for image in scores.tolist()]
    torch.testing.assert_close(scale(scores), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scale(scores), scale_of("layer_norm")(scores), atol=1e-3)


@pytest.mark.parametrize("unbiased", [False, True])
def test_one_rank_alone_gets_its_bias(unbiased: bool) -> None:
    scale = scale_of("layer_norm", unbiased=unbiased)
    assert scale.bias is not None
    torch.testing.assert_close(scale(pixels(1)), scale.bias[:1].expand(2, 4, 1))


def test_layer_norm_over_as_many_ranks_as_parameters_is_torchs() -> None:
    scale, scores = scale_of("layer_norm"), pixels(KAPPA)
    expected = torch.nn.functional.layer_norm(scores, (KAPPA,), scale.weight, scale.bias, scale.eps)
    torch.testing.assert_close(scale(scores), expected)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_ranks_leave_the_valid_ones_as_they_were(kind: Kind, unbiased: bool) -> None:
    """Two images with 4 and 2 valid ranks of 5, the padding as large as a number can sensibly be."""
    scale, scores = scale_of(kind, unbiased=unbiased), pixels(5)
    counts = (4, 2)
    valid = torch.arange(5) < torch.tensor(counts)[:, None, None]
    scaled = scale(torch.where(valid, scores, 1e4), valid)
    for image, count in enumerate(counts):
        torch.testing.assert_close(scaled[image, :, :count], scale(scores[image, :, :count]))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_gets_no_gradient_from_valid_ranks(kind: Kind) -> None:
    scale, scores = scale_of(kind), pixels(5).requires_grad_()
    valid = torch.tensor([True, True, True, False, False])
    (gradient,) = torch.autograd.grad(scale(scores, valid)[..., :3].square().sum(), scores)
    assert (gradient[..., 3:] == 0).all()
    assert (gradient[..., :3] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_valid_ranks_comes_out_finite(kind: Kind) -> None:
    valid = torch.tensor([[True] * 5, [False] * 5])[:, None]
    assert scale_of(kind)(pixels(5), valid).isfinite().all()


def test_equal_scores_come_out_finite_with_finite_gradient() -> None:
    scale, scores = scale_of("layer_norm"), torch.ones(2, 4, KAPPA, requires_grad=True)
    logits = scale(scores)
    (gradient,) = torch.autograd.grad(logits.sum(), scores)
    assert scale.bias is not None
    torch.testing.assert_close(logits, scale.bias.expand_as(logits))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_scaled_in_single_precision(kind: Kind) -> None:
    scale, scores = scale_of(kind), pixels(KAPPA).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scaled = scale(scores)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, scale(scores.float()))


def test_every_kind_has_the_parameters_it_is_named_for() -> None:
    sizes = {kind: [len(p) for p in RankScale(KAPPA, kind).parameters()] for kind in KINDS}
    assert sizes == {"shared": [1], "rank": [KAPPA], "layer_norm": [KAPPA, KAPPA], "shared_norm": [1]}
