from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from kappaseg_core import metrics
from kappaseg_core.metrics import average_precision, frequency_prior, mean_average_precision

N, K = 12, 5
BOTH: tuple[Literal["raw", "envelope"], ...] = ("raw", "envelope")


def example(seed: int, levels: int = 4) -> tuple[Tensor, Tensor]:
    """Scores with many equal ones, and targets in which every label has a positive."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(N, K, generator=generator) < 0.3
    targets[0] = True
    return torch.randint(levels, (N, K), generator=generator) / levels, targets


def test_a_case_worked_by_hand() -> None:
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.5]])
    targets = torch.tensor([[True], [False], [True], [True], [False]])
    raw = average_precision(scores, targets, definition="raw")
    envelope = average_precision(scores, targets, definition="envelope")
    assert raw.tolist() == [pytest.approx((1 + 2 / 3 + 3 / 4) / 3)]
    assert envelope.tolist() == [pytest.approx((1 + 3 / 4 + 3 / 4) / 3)]


def test_images_with_equal_scores_are_retrieved_together() -> None:
    scores, targets = torch.tensor([[0.9], [0.5], [0.5], [0.1]]), torch.tensor([[False], [True], [False], [True]])
    for definition in BOTH:  # after the pair: 1 of 3 right; after all: 2 of 4
        value = average_precision(scores, targets, definition=definition)
        assert value.tolist() == [pytest.approx(((1 / 3 if definition == "raw" else 1 / 2) + 1 / 2) / 2)]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([2, 4, 1000]))
def test_raw_precision_is_that_of_torchmetrics(seed: int, levels: int) -> None:
    scores, targets = example(seed, levels)
    expected = multilabel_average_precision(scores, targets.long(), num_labels=K, average="none")
    found = average_precision(scores, targets, definition="raw")
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)
    assert mean_average_precision(found)[0] == pytest.approx(float(expected.mean()), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(N)))
def test_the_order_of_the_images_does_not_matter(seed: int, order: list[int]) -> None:
    scores, targets = example(seed)
    for definition in BOTH:
        before = average_precision(scores, targets, definition=definition)
        after = average_precision(scores[order], targets[order], definition=definition)
        torch.testing.assert_close(after, before, rtol=1e-12, atol=0)  # sums in another order differ in the last bit


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_only_the_order_of_the_scores_matters_and_the_envelope_is_never_lower(seed: int) -> None:
    scores, targets = example(seed)
    raw, envelope = (average_precision(scores, targets, definition=definition) for definition in BOTH)
    assert (envelope >= raw - 1e-12).all() and (raw > 0).all() and (envelope <= 1).all()
    shifted = torch.logit(scores * 0.9 + 0.05) + torch.arange(K)
    assert torch.equal(average_precision(shifted, targets, definition="raw"), raw)


def test_all_positives_first_is_perfect() -> None:
    _, targets = example(0)
    for definition in BOTH:
        assert (average_precision(targets.float(), targets, definition=definition) == 1).all()


def test_scores_that_do_not_differ_give_the_share_of_positives() -> None:
    _, targets = example(0)
    scores = torch.rand(K).expand(N, K)
    for definition in BOTH:
        found = average_precision(scores, targets, definition=definition)
        torch.testing.assert_close(found, targets.double().mean(0))


def test_a_label_that_no_image_has_is_not_a_number_and_not_counted() -> None:
    scores, targets = example(0)
    whole = average_precision(scores, targets)
    targets[:, 2] = False
    found = average_precision(scores, targets)
    assert found.isnan().tolist() == [False, False, True, False, False]
    value, labels = mean_average_precision(found)
    assert labels == K - 1 and value == pytest.approx(float(whole[[0, 1, 3, 4]].mean()))


def test_without_images_or_positives_there_is_no_number() -> None:
    for images in (0, 3):
        per_class = average_precision(torch.rand(images, K), torch.zeros(images, K, dtype=torch.bool))
        assert per_class.shape == (K,) and per_class.isnan().all()
        value, labels = mean_average_precision(per_class)
        assert math.isnan(value) and labels == 0


def test_labels_sorted_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = example(0)
    whole = average_precision(scores, targets)
    monkeypatch.setattr(metrics, "ELEMENTS_AT_ONCE", 2 * N)
    assert torch.equal(average_precision(scores, targets), whole)


def test_the_frequency_prior_is_the_same_for_all_images() -> None:
    ranking = frequency_prior(torch.tensor([2, 0, 8, 2, 1]), 3)
    assert ranking.labels.tolist() == [[2, 0, 3, 4, 1]] * 3
    torch.testing.assert_close(ranking.scores[1], torch.tensor([1.0, 0.25, 0.25, 0.125, 0.0]))
    assert frequency_prior(torch.zeros(K, dtype=torch.int64), 1).scores.tolist() == [[0.0] * K]
