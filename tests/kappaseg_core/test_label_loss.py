from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.label_loss import AsymmetricLoss, binary_cross_entropy

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def asymmetric(gamma_neg: float = 0.0, gamma_pos: float = 0.0, clip: float = 0.0, **options: object) -> AsymmetricLoss:
    return AsymmetricLoss(gamma_neg, gamma_pos, clip, **{"focus_gradient": True, "reduction": "batch_mean", **options})


def value_and_gradient(loss: torch.nn.Module, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, targets)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def example(seed: int = 0, images: int = 3, labels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, labels, generator=generator)
    return logits, (torch.rand(images, labels, generator=generator) < 0.3).float()


def test_without_asymmetry_it_is_binary_cross_entropy() -> None:
    logits, targets = example()
    for reduction, divisor in (("mean", targets.numel()), ("batch_mean", len(targets))):
        expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / divisor
        torch.testing.assert_close(binary_cross_entropy(reduction=reduction)(logits, targets), expected)


def test_a_case_worked_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), math.log(3.0)]])  # p = 3/4
    targets = torch.tensor([[1.0, 0.0]])
    present = -(0.25**1) * math.log(0.75)
    absent = -(0.70**2) * math.log(0.25 + 0.05)
    assert asymmetric(2, 1, 0.05)(logits, targets).item() == pytest.approx(present + absent, rel=1e-6)


@pytest.mark.parametrize("focus_gradient", [True, False])
@pytest.mark.parametrize("gammas_and_clip", [(4, 1, 0.05), (2, 0, 0.0), (0, 0, 0.05), (1.5, 0.5, 0.1)])
def test_value_and_gradient_equal_the_loss_in_timm(
    gammas_and_clip: tuple[float, float, float], focus_gradient: bool
) -> None:
    gamma_neg, gamma_pos, clip = gammas_and_clip
    logits, targets = example(images=7, labels=11)
    ours = asymmetric(gamma_neg, gamma_pos, clip, focus_gradient=focus_gradient)
    theirs = AsymmetricLossMultiLabel(
        gamma_neg, gamma_pos, clip, eps=1e-8, disable_torch_grad_focal_loss=not focus_gradient, reduction="batchmean"
    )
    for one, other in zip(
        value_and_gradient(ours, logits, targets), value_and_gradient(theirs, logits, targets), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gammas", [(0, 0), (2, 0), (4, 1), (0.5, 0.5)])
@pytest.mark.parametrize("focus_gradient", [True, False])
def test_logits_of_60_on_the_wrong_side_have_a_finite_loss_and_a_whole_gradient(
    dtype: torch.dtype, gammas: tuple[float, float], focus_gradient: bool
) -> None:
    logits, targets = torch.tensor([[-60.0, 60.0]], dtype=dtype), torch.tensor([[1.0, 0.0]])
    value, gradient = value_and_gradient(asymmetric(*gammas, focus_gradient=focus_gradient), logits, targets)
    assert value.item() == pytest.approx(120.0)
    assert gradient.dtype == dtype
    assert gradient.tolist() == [[pytest.approx(-1.0), pytest.approx(1.0)]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("settings_of", [(0, 0, 0.0), (2, 0, 0.0), (4, 1, 0.05), (0.5, 0.5, 0.05)])
def test_logits_of_60_on_the_right_side_cost_nothing_and_are_left_alone(
    dtype: torch.dtype, settings_of: tuple[float, float, float]
) -> None:
    logits, targets = torch.tensor([[60.0, -60.0]], dtype=dtype), torch.tensor([[1.0, 0.0]])
    value, gradient = value_and_gradient(asymmetric(*settings_of), logits, targets)
    assert 0 <= value.item() < 1e-20
    assert gradient.isfinite().all() and gradient.float().abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_clip_surely_wrong_labels_stay_finite_and_are_still_pushed_down(dtype: torch.dtype) -> None:
    for logit in (5.0, 20.0, 60.0):
        logits = torch.tensor([[logit]], dtype=dtype)
        value, gradient = value_and_gradient(asymmetric(4, 1, 0.05), logits, torch.zeros(1, 1))
        assert 0 < value.item() < -math.log(0.05)
        assert gradient.item() > 0


def test_absent_labels_below_the_clip_cost_nothing() -> None:
    value, gradient = value_and_gradient(asymmetric(2, 0, 0.05), torch.tensor([[-4.0]]), torch.zeros(1, 1))
    assert value.item() == 0 and gradient.item() == 0


@settings(deadline=None, max_examples=40)
@given(
    logit=st.floats(-30, 30),
    present=st.booleans(),
    gammas=st.tuples(st.floats(0, 5), st.floats(0, 5)),
    clip=st.sampled_from([0.0, 0.05]),
    focus_gradient=st.booleans(),
)
def test_the_gradient_never_points_away_from_the_truth(
    logit: float, present: bool, gammas: tuple[float, float], clip: float, focus_gradient: bool
) -> None:
    # the weight falls as the truth gets likelier, so its own gradient points the same way
    targets = torch.tensor([[float(present)]])
    loss = asymmetric(*gammas, clip, focus_gradient=focus_gradient)
    value, gradient = value_and_gradient(loss, torch.tensor([[logit]]), targets)
    assert value.item() >= 0
    assert gradient.item() <= 0 if present else gradient.item() >= 0


def test_the_gradient_is_that_of_the_value() -> None:
    logits, targets = example()
    loss = asymmetric(3, 1, 0.05)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits.double().requires_grad_())


def test_without_focus_gradient_the_weight_is_a_constant() -> None:
    logits, targets = example()
    value, gradient = value_and_gradient(asymmetric(2, 1, focus_gradient=False), logits, targets)
    p = logits.sigmoid()
    weight = torch.where(targets > 0, 1 - p, p**2)
    torch.testing.assert_close(gradient, weight * (p - targets) / len(logits))
    torch.testing.assert_close(value, value_and_gradient(asymmetric(2, 1), logits, targets)[0])


def test_unknown_labels_are_ignored_but_keep_their_place_in_the_denominator() -> None:
    logits, targets = example()
    targets[0, 1] = targets[2, 4] = -1
    known = targets >= 0
    for reduction, divisor in (("mean", targets.numel()), ("batch_mean", len(targets))):
        loss = asymmetric(2, 0, reduction=reduction)
        value, gradient = value_and_gradient(loss, logits, targets)
        alone = sum(loss(logits[i : i + 1, k : k + 1], targets[i : i + 1, k : k + 1]) for i, k in known.nonzero())
        torch.testing.assert_close(value, alone / divisor)
        assert (gradient[~known] == 0).all() and (gradient[known] != 0).all()


def test_unknown_labels_with_extreme_logits_do_no_harm() -> None:
    value, gradient = value_and_gradient(
        asymmetric(0.5, 0.5, 0.05), torch.tensor([[60.0, -60.0, 0.0]]), torch.tensor([[-1.0, -1.0, 1.0]])
    )
    assert value.isfinite() and gradient[0, :2].tolist() == [0, 0] and gradient[0, 2] < 0


def test_nothing_known_gives_zero() -> None:
    value, gradient = value_and_gradient(asymmetric(2, 0), torch.randn(2, 3), -torch.ones(2, 3))
    assert value.item() == 0 and (gradient == 0).all()


def test_integer_targets_work_as_float_ones() -> None:
    logits, targets = example()
    assert asymmetric(2, 0)(logits, targets.long()) == asymmetric(2, 0)(logits, targets)


def test_a_batch_mean_does_not_depend_on_the_number_of_easy_labels() -> None:
    logits, targets = example()
    more = torch.cat([logits, torch.full((3, 100), -60.0)], dim=1), torch.cat([targets, torch.zeros(3, 100)], dim=1)
    torch.testing.assert_close(binary_cross_entropy()(*more), binary_cross_entropy()(logits, targets))
