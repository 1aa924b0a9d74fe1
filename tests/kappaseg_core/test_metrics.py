from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from kappaseg_core.metrics import ConfusionSums, CoverageSums, Curve, label_pixels
from kappaseg_core.ranking import (
    IGNORE,
    Ranking,
    oracle_ranking,
    presence,
    rank_lookup,
    to_label_space,
    to_rank_space,
    top_kappa,
)

B, K, H, W = 2, 5, 3, 4

# Two images of ten pixels; label 4 is nowhere, label 3 is ranked last and its image has it.
PIXELS = torch.tensor([[6, 4, 0, 0, 0], [0, 1, 2, 7, 0]])
RANKING = Ranking(torch.tensor([[0, 2, 1], [4, 1, 2]]), torch.tensor([[0.9, 0.8, 0.7]] * 2), torch.ones(2, 3) > 0)


def coverage(pixels: Tensor, ranking: Ranking, *kappas: int) -> CoverageSums:
    sums = CoverageSums(K, kappas)
    sums.update(pixels, rank_lookup(ranking, K))
    return sums


def confusion(prediction: Tensor, target: Tensor) -> ConfusionSums:
    sums = ConfusionSums(K)
    sums.update(prediction, target)
    return sums


def random_maps(seed: int, images: int = B) -> tuple[Tensor, Tensor]:
    """Prediction and truth in which some pixels have no label and some labels no pixel."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(IGNORE, K - 1, (images, H, W), generator=generator)
    return torch.randint(K, (images, H, W), generator=generator), target


def beside(other: Any) -> Callable[[Tensor], Tensor]:
    """An all-reduce with one other worker, who holds `other`."""
    theirs = iter([value for value in vars(other).values() if isinstance(value, Tensor)])
    return lambda ours: ours + next(theirs)


def test_pixels_are_counted_per_image_and_label() -> None:
    mask = torch.tensor([[[0, 0, 4], [IGNORE, 2, 0]], [[IGNORE] * 3] * 2])
    assert label_pixels(mask, K).tolist() == [[3, 0, 1, 0, 1], [0] * K]


def test_coverage_worked_by_hand() -> None:
    sums = coverage(PIXELS, RANKING, 1, 3)
    assert sums.curve("recall").tolist() == pytest.approx([1 / 5, 2 / 5, 4 / 5, 4 / 5, 4 / 5])
    assert sums.curve("image_recall").tolist() == pytest.approx([1 / 4, (1 / 2 + 1 / 3) / 2] + [(1 + 2 / 3) / 2] * 3)
    assert sums.curve("pixel_coverage").tolist() == pytest.approx([6 / 20, 7 / 20, 13 / 20, 13 / 20, 13 / 20])
    assert sums.class_recall(1).nan_to_num(-1).tolist() == [1, 0, 0, 0, -1]
    assert sums.class_recall(3).nan_to_num(-1).tolist() == [1, 1, 1, 0, -1]
    assert sums.class_coverage(1).nan_to_num(-1).tolist() == [1, 0, 0, 0, -1]


def test_a_large_image_counts_more_only_among_pixels() -> None:
    even, uneven = coverage(PIXELS, RANKING, 1), coverage(PIXELS * torch.tensor([[3], [1]]), RANKING, 1)
    shares = [(6 / 10 + 0) / 2, (6 / 10 + 1 / 10) / 2, (1 + 3 / 10) / 2]
    for sums in (even, uneven):
        assert sums.curve("image_coverage")[:3].tolist() == pytest.approx(shares)
    assert uneven.curve("pixel_coverage")[:3].tolist() == pytest.approx([18 / 40, 19 / 40, 33 / 40])


def test_the_summary_holds_every_measure_at_every_kappa() -> None:
    sums = coverage(PIXELS, RANKING, 2, 3)
    values = sums.summary()
    assert values["recall@2"] == pytest.approx(2 / 5)
    assert values["image_recall@3"] == pytest.approx(5 / 6)
    assert values["pixel_coverage@3"] == pytest.approx(13 / 20)
    assert values["class_recall@2"] == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert values["class_coverage@2"] == pytest.approx((1 + 1 / 5 + 0 + 0) / 4)
    assert values["kappa_99"] is None  # label 3 is in no ranking
    assert len(values) == 2 * 6 + 1


def test_the_smallest_kappa_that_covers_a_share_is_found() -> None:
    sums = coverage(PIXELS, RANKING, 1)
    assert [sums.kappa_for(share) for share in (0.0, 0.3, 0.31, 0.65, 0.66)] == [1, 1, 2, 3, None]
    assert coverage(PIXELS, oracle_ranking(PIXELS > 0), 1).kappa_for(0.99) == 3


def test_kappa_beyond_all_labels_is_all_labels() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]] * 2)
    sums = coverage(PIXELS, top_kappa(scores, K), K, 100)
    values = sums.summary()
    for measure in (*get_args(Curve), "class_recall", "class_coverage"):
        assert values[f"{measure}@{K}"] == values[f"{measure}@100"] == 1


def test_an_image_without_labels_changes_nothing() -> None:
    empty = torch.cat([PIXELS, torch.zeros(1, K, dtype=torch.int64)])
    ranking = Ranking(*(torch.cat([field, field[:1]]) for field in (RANKING.labels, RANKING.scores, RANKING.valid)))
    assert coverage(empty, ranking, 1, 3).summary() == coverage(PIXELS, RANKING, 1, 3).summary()


def test_without_any_truth_there_is_no_coverage() -> None:
    values = CoverageSums(K, (2,)).summary()
    assert values.pop("kappa_99") is None
    assert values and all(value is not None and math.isnan(value) for value in values.values())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_coverage_grows_with_kappa_up_to_everything(seed: int) -> None:
    _, target = random_maps(seed)
    sums = coverage(label_pixels(target, K), top_kappa(torch.rand(B, K), K), *range(1, K + 1))
    for measure in get_args(Curve):
        curve = sums.curve(measure)
        assert (curve.diff() >= 0).all() and curve[-1] == pytest.approx(1.0)
    per_class = torch.stack([sums.class_coverage(kappa) for kappa in sums.kappas])
    assert (per_class.diff(dim=0).nan_to_num() >= 0).all() and (per_class[-1].nan_to_num(1.0) == 1).all()


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), kappa=st.integers(1, K), skill=st.floats(0, 1))
def test_no_prediction_among_the_kept_labels_beats_their_coverage(seed: int, kappa: int, skill: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    _, target = random_maps(seed)
    assume((target != IGNORE).any())
    ranking = top_kappa(torch.rand(B, K, generator=generator), kappa)
    perfect, guess = to_rank_space(target, ranking, K), torch.randint(kappa, target.shape, generator=generator)
    knows = (torch.rand(target.shape, generator=generator) < skill) & (perfect != IGNORE)
    found = confusion(to_label_space(torch.where(knows, perfect, guess), ranking), target).summary()
    bound = coverage(label_pixels(target, K), ranking, kappa).summary()
    assert found["mIoU"] <= found["mIoU_in_truth"] + 1e-12
    assert found["mIoU_in_truth"] <= found["class_accuracy"] + 1e-12
    assert found["class_accuracy"] <= bound[f"class_coverage@{kappa}"] + 1e-12
    assert found["pixel_accuracy"] <= bound[f"pixel_coverage@{kappa}"] + 1e-12


def test_a_perfect_choice_among_the_kept_labels_reaches_their_coverage() -> None:
    _, target = random_maps(3)
    ranking = top_kappa(torch.rand(B, K, generator=torch.Generator().manual_seed(0)), 2)
    best = to_label_space(to_rank_space(target, ranking, K).clamp(min=0), ranking)
    found, bound = confusion(best, target).summary(), coverage(label_pixels(target, K), ranking, 2).summary()
    assert found["pixel_accuracy"] == pytest.approx(bound["pixel_coverage@2"])
    assert found["class_accuracy"] == pytest.approx(bound["class_coverage@2"])


def test_iou_worked_by_hand() -> None:
    prediction, target = torch.tensor([[0, 0, 1, 3, 2]]), torch.tensor([[0, 1, 1, 1, IGNORE]])
    sums = confusion(prediction, target)
    assert sums.iou().nan_to_num(-1).tolist() == pytest.approx([1 / 2, 1 / 3, -1, 0, -1])
    assert sums.class_accuracy().nan_to_num(-1).tolist() == pytest.approx([1, 1 / 3, -1, -1, -1])
    values = sums.summary()
    assert values == {
        "mIoU": pytest.approx((1 / 2 + 1 / 3 + 0) / 3),
        "mIoU_in_truth": pytest.approx((1 / 2 + 1 / 3) / 2),
        "pixel_accuracy": pytest.approx(2 / 4),
        "class_accuracy": pytest.approx((1 + 1 / 3) / 2),
        "zero_iou": 0.0,
        "labels_in_truth": 2,
        "labels_absent": 3,
    }


def test_labels_without_a_pixel_in_the_truth_are_listed() -> None:
    assert confusion(torch.tensor([4, 4, 4, 4]), torch.tensor([1, 3, IGNORE, 1])).absent() == [0, 2, 4]
    assert ConfusionSums(K).absent() == [0, 1, 2, 3, 4]


def test_the_share_of_labels_that_are_never_found_is_reported() -> None:
    assert confusion(torch.tensor([0, 0, 3, 4]), torch.tensor([0, 1, 3, 2])).summary()["zero_iou"] == 0.5


def test_a_prediction_of_no_label_is_wrong_and_counts_for_none() -> None:
    sums = confusion(torch.tensor([IGNORE, 0, IGNORE]), torch.tensor([0, 0, IGNORE]))
    assert sums.iou()[0] == 0.5 and int(sums.predicted.sum()) == 1 and sums.summary()["pixel_accuracy"] == 0.5


def test_without_labelled_pixels_there_are_no_numbers_and_no_errors() -> None:
    for sums in (ConfusionSums(K), confusion(torch.zeros(3, dtype=torch.int64), torch.full((3,), IGNORE))):
        values = sums.summary()
        assert (values.pop("labels_in_truth"), values.pop("labels_absent")) == (0, K)
        assert len(values) == 5 and all(math.isnan(value) for value in values.values())


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_iou_and_accuracy_are_those_of_torchmetrics(seed: int) -> None:
    prediction, target = random_maps(seed)
    sums = confusion(prediction, target)
    options: dict[str, Any] = {"num_classes": K, "ignore_index": IGNORE, "average": "none"}
    seen, true = ~sums.iou().isnan(), ~sums.class_accuracy().isnan()
    iou, accuracy = (f(prediction, target, **options) for f in (multiclass_jaccard_index, multiclass_accuracy))
    torch.testing.assert_close(sums.iou()[seen].float(), iou[seen])
    torch.testing.assert_close(sums.class_accuracy()[true].float(), accuracy[true])
    expected = multiclass_jaccard_index(prediction, target, num_classes=K, ignore_index=IGNORE, average="macro")
    if seen.any():
        assert sums.summary()["mIoU"] == pytest.approx(float(expected), rel=1e-5)


def test_batches_add_up_to_the_whole() -> None:
    prediction, target = random_maps(0, images=4)
    ranking, pixels = top_kappa(torch.rand(4, K), 2), label_pixels(target, K)
    coverages, confusions = CoverageSums(K, (1, 2)), ConfusionSums(K)
    for rows in (slice(0, 1), slice(1, 4)):
        coverages.update(pixels[rows], rank_lookup(ranking[rows], K))
        confusions.update(prediction[rows], target[rows])
    assert coverages.summary() == pytest.approx(coverage(pixels, ranking, 1, 2).summary())
    assert confusions.summary() == pytest.approx(confusion(prediction, target).summary())


def test_the_sums_of_all_workers_are_those_of_one_that_saw_everything() -> None:
    prediction, target = random_maps(0, images=4)
    ranking, pixels = top_kappa(torch.rand(4, K), 2), label_pixels(target, K)
    first, second = slice(0, 3), slice(3, 4)
    ours, theirs = (coverage(pixels[rows], ranking[rows], 1, 2) for rows in (first, second))
    before = ours.summary()
    assert ours.reduced(beside(theirs)).summary() == pytest.approx(coverage(pixels, ranking, 1, 2).summary())
    assert ours.summary() == before
    mine, others = (confusion(prediction[rows], target[rows]) for rows in (first, second))
    assert mine.reduced(beside(others)).summary() == pytest.approx(confusion(prediction, target).summary())


def test_counts_beyond_the_precision_of_floats_stay_exact() -> None:
    sums = ConfusionSums(K)
    sums.right += 2**53
    sums.truth += 2**53
    sums.predicted += 2**53
    sums.update(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert int(sums.right[0]) == 2**53 + 1
    whole = coverage(PIXELS * 2**50, RANKING, 1)
    assert int(whole.pixel_ranks.sum()) == 20 * 2**50


def test_presence_and_pixel_counts_agree() -> None:
    _, target = random_maps(1)
    assert torch.equal(label_pixels(target, K) > 0, presence(target, K))
