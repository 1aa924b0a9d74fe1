"""Queries → segments: cases by hand, and the published steps with all pixels at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.ranking import Ranking
from kappaseg_core.segments import VOID, Segments
from stage2_segmentation import pixels
from stage2_segmentation.panoptic import Queries, SegmentRule, View, segments_of_queries

# Labels 0 1 2 3 (K = 4); the image keeps 3, 1, 2 (κ = 3). 1 and 3 are things.
THINGS = torch.tensor([False, True, False, True])
RANKING = Ranking(torch.tensor([[3, 1, 2]]), torch.tensor([[0.9, 0.8, 0.7]]), torch.ones(1, 3, dtype=torch.bool))
CELLS = View(cell=1, seen=(1, 6), size=(1, 6))  # a cell is a pixel
MASKFORMER = SegmentRule(least=0.0)


def logits(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).logit()


def query(rank: int, score: float, *mask: float) -> tuple[Tensor, Tensor]:
    """Class logits [κ + 1] whose best, `rank` (κ = no object), has probability `score`, and mask logits [1, w]."""
    others = torch.full((4,), (1 - score) / 3)
    others[rank] = score
    return others.log(), logits(*mask)[None]


def found(*queries: tuple[Tensor, Tensor], rule: SegmentRule | None = None, ranking: Ranking = RANKING) -> Segments:
    classes, masks = zip(*queries, strict=True)
    return segments_of_queries(Queries(torch.stack(classes), torch.stack(masks)), ranking, THINGS, CELLS, rule)


def seen(segments: Segments) -> tuple[list[int], list[int]]:
    return segments.map[0].tolist(), segments.labels.tolist()


# By hand


def test_a_rank_becomes_its_label_and_pixels_outside_every_mask_are_void() -> None:
    segments = found(query(0, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1), query(2, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1))
    assert seen(segments) == ([1, 1, VOID, 2, 2, VOID], [3, 2])
    assert segments.crowd.tolist() == [False, False]


def test_two_queries_of_a_thing_are_two_objects_and_two_of_stuff_are_one_segment() -> None:
    left, right = (0.9, 0.9, 0.1, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.1, 0.9, 0.9)
    assert seen(found(query(1, 0.9, *left), query(1, 0.9, *right))) == ([1, 1, 0, 0, 2, 2], [1, 1])
    assert seen(found(query(2, 0.9, *left), query(2, 0.9, *right))) == ([1, 1, 0, 0, 1, 1], [2])


def test_no_object_and_doubtful_queries_are_left_out() -> None:
    mask = (0.9,) * 6
    assert seen(found(query(3, 0.99, *mask))) == ([VOID] * 6, [])
    assert seen(found(query(0, 0.79, *mask))) == ([VOID] * 6, [])
    assert seen(found(query(0, 0.81, *mask))) == ([1] * 6, [3])


def test_a_pixel_goes_to_the_larger_product_of_label_and_mask_probability() -> None:
    """0.95 · 0.8 = 0.76 > 0.85 · 0.85 = 0.7225, and < 0.85 · 0.95 = 0.8075."""
    one = query(0, 0.95, 0.8, 0.8, 0.8, 0.8, 0.8, 0.1)
    other = query(1, 0.85, 0.1, 0.1, 0.1, 0.1, 0.95, 0.95)
    assert seen(found(one, other)) == ([1, 1, 1, 1, 2, 2], [3, 1])


def test_a_query_that_owns_less_than_most_of_its_mask_goes_and_its_pixels_are_void() -> None:
    """Of the five pixels of the second mask it owns three, 60 %, below the usual 80 %; of four 80 % is enough."""
    first = query(0, 0.95, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1)
    second = query(1, 0.85, 0.1, 0.6, 0.6, 0.9, 0.9, 0.9)
    assert seen(found(first, second)) == ([1, 1, 1, 0, 0, 0], [3])
    assert seen(found(first, second, rule=SegmentRule(overlap=0.6))) == ([1, 1, 1, 2, 2, 2], [3, 1])


def test_pixels_that_a_query_owns_outside_its_mask_are_kept_as_in_maskformer_only() -> None:
    only = query(0, 0.9, 0.9, 0.9, 0.9, 0.4, 0.4, 0.4)
    assert seen(found(only)) == ([1, 1, 1, 0, 0, 0], [3])
    assert seen(found(only, rule=MASKFORMER)) == ([1] * 6, [3])


def test_a_query_whose_mask_is_nowhere_above_one_half_is_no_segment() -> None:
    assert seen(found(query(0, 0.9, *[0.4] * 6), rule=MASKFORMER)) == ([VOID] * 6, [])


def test_padding_ranks_win_nothing() -> None:
    padded = Ranking(torch.tensor([[3, 0, 0]]), torch.zeros(1, 3), torch.tensor([[True, False, False]]))
    classes, mask = query(1, 0.98, *[0.9] * 6)  # the rest of 0.02 is shared by rank 0, rank 2 and no object
    assert seen(found((classes, mask), ranking=padded)) == ([VOID] * 6, [])
    strong = torch.tensor([5.0, 9.0, 9.0, 0.0]), mask
    assert seen(found(strong, ranking=padded)) == ([1] * 6, [3])


# Against the published steps with everything at once


def at_once(queries: Queries, view: View, rule: SegmentRule) -> tuple[Tensor, list[int]]:
    """MaskFormer's and Mask2Former's steps, query by query over maps of the full size."""
    probabilities, ranks = queries.class_logits.softmax(-1).max(-1)
    whole = [side * view.cell for side in queries.mask_logits.shape[1:]]
    masks = F.interpolate(queries.mask_logits[None], whole, mode="bilinear", align_corners=False)
    masks = masks[..., : view.seen[0], : view.seen[1]]
    masks = F.interpolate(masks, view.size, mode="bilinear", align_corners=False)[0].sigmoid()
    kept = [q for q in range(len(ranks)) if ranks[q] < RANKING.kappa and probabilities[q] > rule.score]
    segment, labels, stuff = torch.zeros(view.size, dtype=torch.int32), list[int](), dict[int, int]()
    if not kept:
        return segment, labels
    owner = (probabilities[kept, None, None] * masks[kept]).argmax(0)
    for place, q in enumerate(kept):
        label, mine, inside = int(RANKING.labels[0, ranks[q]]), owner == place, masks[q] >= 0.5
        pixels = mine & (masks[q] >= rule.least)
        if not inside.any() or not pixels.any() or mine.sum() / inside.sum() < rule.overlap:
            continue
        if THINGS[label] or label not in stuff:
            labels.append(label)
            stuff[label] = len(labels)
        segment[pixels] = len(labels) if THINGS[label] else stuff[label]
    return segment, labels


@pytest.mark.parametrize("rule", [SegmentRule(0.4, 0.4), SegmentRule(0.4, 0.3, 0.0), SegmentRule(0.0, 0.0)])
@pytest.mark.parametrize("seed", range(4))
def test_strips_give_what_all_queries_at_full_size_give(
    seed: int, rule: SegmentRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded input, a size that is no multiple of anything, strips of a row or two."""
    monkeypatch.setattr(pixels, "STRIP", {"cpu": 400})
    draw = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(1, 9, 2, 3, generator=draw), (5, 7), mode="bilinear")[0]
    queries = Queries(3 * torch.randn(9, 4, generator=draw), 6 * smooth)
    view = View(cell=4, seen=(18, 25), size=(31, 37))
    segments = segments_of_queries(queries, RANKING, THINGS, view, rule)
    wanted, labels = at_once(queries, view, rule)
    assert segments.labels.tolist() == labels and len(labels) > 0
    assert segments.map.equal(wanted)


def test_memory_is_that_of_a_strip_and_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that is made holds a strip, not N x H x W = 60 x 96 x 128."""
    monkeypatch.setattr(pixels, "STRIP", {"cpu": 2**14})
    largest = 0
    sigmoid = Tensor.sigmoid

    def noting(self: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, self.numel())
        return sigmoid(self)

    monkeypatch.setattr(Tensor, "sigmoid", noting)
    draw = torch.Generator().manual_seed(0)
    classes = torch.randn(60, 4, generator=draw)
    queries = Queries(classes - 9 * F.one_hot(torch.full((60,), 3), 4), torch.randn(60, 6, 8, generator=draw))
    segments_of_queries(queries, RANKING, THINGS, View(16, (96, 128), (96, 128)), SegmentRule(0.0, 0.0))
    assert 0 < largest <= 2**14
