from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from kappaseg_core.label_loss import AsymmetricLoss
from kappaseg_core.label_sample import LabelSample, draw_labels

B, K = 3, 8
#: labels 1 and 6 are there, 3 is known of no image, the other five are absent where known
TARGETS = torch.tensor([
    [0, 1, 0, -1, 0, 0, 0, 0],
    [0, 0, 0, -1, 0, -1, 1, 0],
    [0, -1, 0, -1, 0, 0, 1, 0],
]).float()  # fmt: skip
OTHERS = (0, 2, 4, 5, 7)


def loss_of(reduction: str) -> AsymmetricLoss:
    return AsymmetricLoss(2, 1, 0.05, focus_gradient=True, reduction=reduction)  # type: ignore[arg-type]


def with_gradient(loss: AsymmetricLoss, logits: Tensor, sample: LabelSample | None) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient on the logits of all labels."""
    logits = logits.clone().requires_grad_()
    value = loss(logits if sample is None else logits[:, sample.labels], TARGETS, sample)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_all_labels_that_are_there_are_taken_and_others_as_often_as_wanted() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        sample = draw_labels(TARGETS, 2)
        assert sample is not None
        labels = sample.labels.tolist()
        assert labels == sorted(set(labels)) and {1, 6} < set(labels) <= {1, 6, *OTHERS} and len(labels) == 4
        assert sample.weight.tolist() == [1.0 if label in (1, 6) else 2.5 for label in labels]


def test_draws_follow_the_seed_and_reach_every_absent_label() -> None:
    def drawn(seed: int) -> list[int]:
        torch.manual_seed(seed)
        sample = draw_labels(TARGETS, 1)
        assert sample is not None
        return sample.labels.tolist()

    assert drawn(5) == drawn(5)
    assert {label for seed in range(60) for label in drawn(seed)} == {1, 6, *OTHERS}


@pytest.mark.parametrize("negatives", [5, 6, 100, None])
def test_enough_negatives_are_no_sample_at_all(negatives: int | None) -> None:
    before = torch.random.get_rng_state()
    assert draw_labels(TARGETS, negatives) is None
    assert torch.equal(before, torch.random.get_rng_state())  # and nothing is drawn that dropout would miss


def test_without_a_label_that_is_there_or_a_known_one() -> None:
    sample = draw_labels(torch.zeros(2, 4), 1)
    assert sample is not None and sample.weight.tolist() == [4.0]
    assert draw_labels(-torch.ones(2, 4), 1) is None
    assert draw_labels(torch.ones(2, 4), 1) is None


@pytest.mark.parametrize("reduction", ["batch_mean", "mean"])
@pytest.mark.parametrize("negatives", [1, 2, 4])
def test_loss_and_gradient_are_on_average_those_of_all_labels(
    monkeypatch: pytest.MonkeyPatch, negatives: int, reduction: str
) -> None:
    """The mean over all draws there are, each as likely as the others: exact, and not only in the limit."""
    loss, logits = loss_of(reduction), 2 * torch.randn(B, K, generator=torch.Generator().manual_seed(0))
    found = []
    for chosen in combinations(range(len(OTHERS)), negatives):
        rest = [turn for turn in range(len(OTHERS)) if turn not in chosen]
        monkeypatch.setattr(torch, "randperm", lambda n, order=(*chosen, *rest), **_: torch.tensor(order))
        sample = draw_labels(TARGETS, negatives)
        assert sample is not None
        found.append(with_gradient(loss, logits, sample))
    values, gradients = zip(*found, strict=True)
    value, gradient = with_gradient(loss, logits, None)
    torch.testing.assert_close(torch.stack(values).mean(), value)
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient)
    assert torch.stack(values).std() > 1e-3  # the draws do differ


def test_draws_are_equally_likely() -> None:
    counts = torch.zeros(K)
    torch.manual_seed(0)
    for _ in range(2000):
        sample = draw_labels(TARGETS, 2)
        assert sample is not None
        counts[sample.labels] += 1
    assert counts[[1, 6]].tolist() == [2000, 2000] and counts[3] == 0
    assert ((counts[list(OTHERS)] / 2000 - 0.4).abs() < 0.05).all()  # 4.5 deviations
