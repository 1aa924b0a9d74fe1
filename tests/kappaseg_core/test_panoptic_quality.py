"""PQ, SQ, RQ: cases by hand for every rule, torchmetrics where its rules are the same, a plain form everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.detection import panoptic_quality

from kappaseg_core.panoptic_quality import PanopticSums
from kappaseg_core.ranking import IGNORE
from kappaseg_core.segments import VOID, Segments, segments_of

THINGS = (True, True, False)
K = len(THINGS)


def segments(rows: list[list[int]] | Tensor, labels: list[int], crowd: tuple[int, ...] = ()) -> Segments:
    """crowd: numbers of the crowd segments, from 1."""
    flags = [number in crowd for number in range(1, len(labels) + 1)]
    return Segments(torch.as_tensor(rows, dtype=torch.int32), torch.tensor(labels, dtype=torch.int64),
                    torch.tensor(flags, dtype=torch.bool))  # fmt: skip


def measured(prediction: Segments, truth: Segments) -> PanopticSums:
    sums = PanopticSums(THINGS)
    sums.update(prediction, truth)
    return sums


def counts(sums: PanopticSums) -> tuple[list[int], list[int], list[int]]:
    return sums.matched.tolist(), sums.extra.tolist(), sums.missed.tolist()


# By hand


def test_a_pair_above_one_half_matches_and_adds_its_iou() -> None:
    truth = segments([[1, 1, 1, 2, 2]], [0, 2])
    found = measured(segments([[1, 1, 2, 2, 2]], [0, 2]), truth)
    assert counts(found) == ([1, 0, 1], [0, 0, 0], [0, 0, 0])
    assert found.iou.tolist() == [2 / 3, 0, 2 / 3]


def test_an_iou_of_exactly_one_half_is_a_miss_and_an_extra_segment() -> None:
    found = measured(segments([[1, 0]], [0]), segments([[1, 1]], [0]))
    assert counts(found) == ([0, 0, 0], [1, 0, 0], [1, 0, 0])


def test_another_label_does_not_match_however_well_it_lies() -> None:
    found = measured(segments([[1, 1]], [1]), segments([[1, 1]], [0]))
    assert counts(found) == ([0, 0, 0], [0, 1, 0], [1, 0, 0])


def test_void_pixels_of_the_truth_do_not_count_against_a_prediction() -> None:
    found = measured(segments([[1, 1, 1, 1]], [0]), segments([[1, 0, 0, 0]], [0]))
    assert counts(found)[0] == [1, 0, 0] and found.iou[0] == 1


def test_void_pixels_of_the_prediction_count() -> None:
    found = measured(segments([[1, 1, 0, 0, 0]], [0]), segments([[1, 1, 1, 1, 1]], [0]))
    assert counts(found) == ([0, 0, 0], [1, 0, 0], [1, 0, 0])


@pytest.mark.parametrize(("void", "extra"), [(3, 0), (2, 1)])
def test_an_unmatched_prediction_is_ignored_where_more_than_half_of_it_is_void(void: int, extra: int) -> None:
    truth = [[VOID] * void + [1] * (4 - void) + [1] * 9]
    found = measured(segments([[1] * 4 + [0] * 9], [0]), segments(truth, [2]))
    assert counts(found) == ([0, 0, 0], [extra, 0, 0], [0, 0, 1])


def test_a_crowd_is_neither_matched_nor_missed_and_excuses_predictions_of_its_label_alone() -> None:
    truth = segments([[1, 1, 1, 1, 1, 1]], [0], crowd=(1,))
    assert counts(measured(segments([[1, 1, 1, 0, 0, 0]], [0]), truth)) == ([0, 0, 0], [0, 0, 0], [0, 0, 0])
    assert counts(measured(segments([[1, 1, 1, 1, 1, 1]], [0]), truth)) == ([0, 0, 0], [0, 0, 0], [0, 0, 0])
    assert counts(measured(segments([[1, 1, 1, 0, 0, 0]], [1]), truth)) == ([0, 0, 0], [0, 1, 0], [0, 0, 0])


def test_void_and_crowd_excuse_together() -> None:
    """2 of 7 pixels are void, 2 crowd, 3 neither: 4/7 > 1/2."""
    truth = segments([[0, 0, 1, 1, 2, 2, 2, 2, 2, 2]], [0, 2], crowd=(1,))
    assert counts(measured(segments([[1] * 7 + [0] * 3], [0]), truth))[1] == [0, 0, 0]
    assert counts(measured(segments([[1] * 8 + [0] * 2], [0]), truth))[1] == [1, 0, 0]


def test_of_several_crowds_of_a_label_the_last_one_excuses() -> None:
    truth = segments([[1, 1, 1, 2, 2, 2]], [0, 0], crowd=(1, 2))
    assert counts(measured(segments([[1, 1, 1, 0, 0, 0]], [0]), truth))[1] == [1, 0, 0]
    assert counts(measured(segments([[0, 0, 0, 1, 1, 1]], [0]), truth))[1] == [0, 0, 0]


@pytest.mark.parametrize("empty", ["prediction", "truth", "both"])
def test_images_without_segments_can_be_counted(empty: str) -> None:
    one, none = segments([[1, 1]], [1]), segments([[0, 0]], [])
    prediction, truth = (none if empty in (side, "both") else one for side in ("prediction", "truth"))
    missed = int(empty == "prediction")  # what is predicted where the truth says nothing is ignored
    assert counts(measured(prediction, truth)) == ([0, 0, 0], [0, 0, 0], [0, missed, 0])


def test_the_summary_is_the_mean_over_labels_in_some_segment() -> None:
    truth = segments([[1, 1, 1, 1, 2, 2, 3, 3]], [0, 0, 2])
    found = measured(segments([[1, 1, 1, 0, 2, 2, 3, 3]], [0, 1, 2]), truth).summary()
    pq_0, pq_2 = 0.75 / (1 + 0.5), 1.0  # label 0: one match, one miss; label 1: one extra
    assert found["PQ"] == pytest.approx((pq_0 + 0 + pq_2) / 3)
    assert found["PQ_things"] == pytest.approx(pq_0 / 2) and found["PQ_stuff"] == 1
    assert found["SQ"] == pytest.approx((0.75 + 0 + 1) / 3) and found["RQ"] == pytest.approx((1 / 1.5 + 0 + 1) / 3)
    assert (found["labels"], found["labels_things"], found["labels_stuff"]) == (3, 2, 1)


def test_a_label_in_no_segment_is_in_no_mean() -> None:
    sums = measured(segments([[1, 1]], [0]), segments([[1, 1]], [0]))
    assert sums.quality().isnan().tolist() == [[False, True, True]] * 3
    assert sums.summary()["PQ"] == 1
    assert sums.summary()["PQ_stuff"] != sums.summary()["PQ_stuff"]  # NaN


# Against other forms


def drawn(seed: int) -> tuple[Segments, Segments]:
    """Two cuttings of an image of blocks that agree here and there."""
    draw = torch.Generator().manual_seed(seed)

    def one(numbers: Tensor) -> Segments:
        there, index = numbers.unique(return_inverse=True)
        labels = torch.randint(K, (7,), generator=torch.Generator().manual_seed(seed))[there[there > 0]]
        crowd = torch.rand(len(labels), generator=draw) < 0.3
        return Segments((index + int(there[0] > 0)).int(), labels, crowd)

    numbers = torch.randint(7, (3, 4), generator=draw).repeat_interleave(3, 0).repeat_interleave(2, 1)
    other = torch.where(
        torch.rand(numbers.shape, generator=draw) < 0.2, torch.randint(7, (1,), generator=draw), numbers
    )
    truth, prediction = one(numbers), one(other)
    return Segments(prediction.map, prediction.labels, torch.zeros_like(prediction.crowd)), truth


def plain(prediction: Segments, truth: Segments) -> tuple[list[float], list[int], list[int], list[int]]:
    """The rules of panopticapi, segment by segment."""
    iou, matched, extra, missed = [0.0] * K, [0] * K, [0] * K, [0] * K
    void = truth.map == VOID
    right = set()
    for t, label in enumerate(truth.labels.tolist()):
        here, hit = truth.map == t + 1, False
        for p, other in enumerate(prediction.labels.tolist()):
            there = prediction.map == p + 1
            both, union = int((here & there).sum()), int(((here | there) & ~(there & void)).sum())
            if label == other and not truth.crowd[t] and both / union > 0.5:
                iou[label] += both / union
                matched[label] += 1
                hit = True
                right.add(p)
        missed[label] += not hit and not bool(truth.crowd[t])
    for p, label in enumerate(prediction.labels.tolist()):
        there, excused = prediction.map == p + 1, void
        crowds = [t for t, other in enumerate(truth.labels.tolist()) if other == label and truth.crowd[t]]
        if crowds:
            excused = void | (truth.map == crowds[-1] + 1)
        extra[label] += p not in right and not float((there & excused).sum()) / float(there.sum()) > 0.5
    return iou, matched, extra, missed


@given(st.integers(0, 100_000))
def test_the_sums_are_those_of_the_rules_segment_by_segment(seed: int) -> None:
    prediction, truth = drawn(seed)
    sums = measured(prediction, truth)
    iou, *rest = plain(prediction, truth)
    assert sums.iou.tolist() == pytest.approx(iou)
    assert counts(sums) == tuple(rest)


@given(st.integers(0, 100_000))
def test_torchmetrics_agrees_where_the_prediction_covers_the_image(seed: int) -> None:
    """Of pixels that the prediction leaves void it has rules of its own, and it knows no crowd."""
    draw = torch.Generator().manual_seed(seed)
    blocks = torch.randint(1, 7, (2, 3, 4), generator=draw).repeat_interleave(3, 1).repeat_interleave(2, 2)
    agree = torch.rand(blocks.shape[1:], generator=draw) < 0.8
    numbers = torch.stack([torch.where(agree, blocks[1], blocks[0]), blocks[1]])
    labels = torch.randint(K, (7,), generator=draw)[numbers]
    labels[1][torch.rand(agree.shape, generator=draw) < 0.2] = IGNORE
    prediction, truth = (segments_of(labels[i], numbers[i], torch.tensor(THINGS)) for i in range(2))
    colours = torch.stack([torch.where(labels == IGNORE, K, labels), numbers], -1)[:, None]
    wanted = panoptic_quality(*colours, things={0, 1}, stuffs={2}, allow_unknown_preds_category=True,
                              return_sq_and_rq=True, return_per_class=True)  # fmt: skip
    found = measured(prediction, truth).quality().nan_to_num()
    torch.testing.assert_close(found, wanted.view(K, 3).mT.double())


@given(st.integers(0, 100_000), st.integers(1, 4))
def test_images_counted_by_several_workers_add_up_to_the_same(seed: int, workers: int) -> None:
    images = [drawn(seed + number) for number in range(5)]
    alone, shares = PanopticSums(THINGS), [PanopticSums(THINGS) for _ in range(workers)]
    for number, image in enumerate(images):
        alone.update(*image)
        shares[number % workers].update(*image)
    names = [name for name, value in vars(alone).items() if isinstance(value, Tensor)]
    parts = iter([sum(vars(share)[name] for share in shares) for name in names])
    together = shares[0].reduced(lambda own: next(parts))
    assert together.things == THINGS
    assert counts(together) == counts(alone)
    torch.testing.assert_close(together.iou, alone.iou, rtol=1e-14, atol=0)


def test_the_truth_against_itself_is_one_and_memory_does_not_grow_with_the_square_of_the_labels() -> None:
    sums = PanopticSums([True] * 20_000)
    truth = Segments(torch.arange(12, dtype=torch.int32).view(3, 4), torch.arange(11) * 1800,
                     torch.zeros(11, dtype=torch.bool))  # fmt: skip
    sums.update(truth, truth)
    assert sums.summary()["PQ"] == 1 and sums.summary()["labels"] == 11
    assert max(value.numel() for value in vars(sums).values() if isinstance(value, Tensor)) == 20_000
