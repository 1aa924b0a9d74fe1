from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1_multilabel.quality import KAPPAS, SELECTION_METRIC, ranking_quality

# Three images, three labels. Label 0 is everywhere in training, label 2 nowhere in the images evaluated.
TRUTH = np.array([[8, 2, 0], [0, 5, 0], [9, 0, 0]], np.int32)
TRAIN = np.array([[4, 0, 0], [7, 1, 0], [5, 0, 0], [1, 9, 2]], np.int32)
SCORES = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.6, 0.7], [0.3, 0.1, 0.6]])


def test_a_case_worked_by_hand() -> None:
    found = ranking_quality(SCORES, TRUTH, TRAIN)
    assert found == {
        "mAP_envelope": 1.0,  # label 0: images 0, 2 before 1; label 1: images 0, 1 before 2
        "mAP_raw": 1.0,
        "mAP_labels": 2.0,
        "recall@1": pytest.approx(1 / 4),  # first labels are 0, 2, 2
        "pixel_coverage@1": pytest.approx(8 / 24),
        "class_coverage@1": pytest.approx((8 / 17 + 0 / 7) / 2),
        "kappa_99": 2.0,
        "mean_class_coverage": pytest.approx(4 / 17),
        "prior_mAP": pytest.approx(2 / 3),  # both labels are in two of the three images
        "prior_recall@1": pytest.approx(2 / 4),  # first label is 0 everywhere
        "prior_pixel_coverage@1": pytest.approx(17 / 24),
        "prior_class_coverage@1": pytest.approx((1 + 0) / 2),
        "prior_kappa_99": 2.0,
        "prior_mean_class_coverage": pytest.approx(1 / 2),
    }


def test_the_recall_of_a_shortlist_is_that_of_the_first_ranks() -> None:
    found = ranking_quality(SCORES, TRUTH, TRAIN, shortlist=2)  # the first two labels are 0 1, 2 1 and 2 0
    assert found["shortlist_recall"] == 1 and found["recall@1"] == 1 / 4
    assert ranking_quality(-SCORES, TRUTH, TRAIN, shortlist=2)["shortlist_recall"] == 3 / 4  # 2 1, 0 1 and 1 0


def test_perfect_precision_may_hide_rankings_worse_than_the_prior() -> None:
    found = ranking_quality(SCORES, TRUTH, TRAIN)
    assert found["mAP_raw"] == 1 and found[SELECTION_METRIC] < found[f"prior_{SELECTION_METRIC}"]


def many(images: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    shape, common = (images, num_classes), np.linspace(0.9, 0.05, num_classes)
    return tuple(random.integers(1, 50, shape) * (random.random(shape) < common) for _ in range(2))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_scores_by_frequency_are_as_good_as_the_prior(seed: int) -> None:
    truth, train = many(4, 12, seed)
    by_frequency = torch.from_numpy((train > 0).mean(0)).float().expand(len(truth), -1)
    found = ranking_quality(by_frequency, truth, train)
    for name, value in found.items():
        if f"prior_{name}" in found:
            assert value == pytest.approx(found[f"prior_{name}"], nan_ok=True), name


def test_a_classifier_that_knows_the_truth_beats_the_prior() -> None:
    truth, train = many(6, 12, 0)
    found = ranking_quality(torch.from_numpy(truth > 0).float(), truth, train)
    assert found["mAP_envelope"] == found["mAP_raw"] == 1
    for kappa in (5, 10):
        for measure in ("recall", "pixel_coverage", "class_coverage"):
            assert found[f"{measure}@{kappa}"] >= found[f"prior_{measure}@{kappa}"]
    assert found[SELECTION_METRIC] > found[f"prior_{SELECTION_METRIC}"]
    assert found["kappa_99"] < found["prior_kappa_99"]


def test_the_selection_metric_is_the_mean_over_the_kappas_below_all_labels() -> None:
    truth, train = many(6, 21, 1)
    found = ranking_quality(torch.rand(6, 21, generator=torch.Generator().manual_seed(0)), truth, train)
    kappas = [kappa for kappa in KAPPAS if kappa < 21]
    assert kappas == [5, 10, 20]
    assert [name for name in found if name.startswith("recall@")] == [f"recall@{kappa}" for kappa in kappas]
    mean = sum(found[f"class_coverage@{kappa}"] for kappa in kappas) / len(kappas)
    assert found[SELECTION_METRIC] == pytest.approx(mean)


def test_all_numbers_are_floats_that_a_record_can_hold() -> None:
    found = ranking_quality(SCORES, TRUTH, TRAIN)
    assert all(type(value) is float for value in found.values())


def test_without_any_truth_the_numbers_are_not_numbers_and_no_error() -> None:
    found = ranking_quality(SCORES, np.zeros_like(TRUTH), TRAIN, shortlist=2)
    assert found.pop("mAP_labels") == 0
    assert all(math.isnan(value) for value in found.values())
