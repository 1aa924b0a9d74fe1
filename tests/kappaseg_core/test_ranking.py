from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kappaseg_core.ranking import (
    IGNORE,
    Ranking,
    complete_ranking,
    force_missed,
    mix_missed,
    oracle_ranking,
    presence,
    rank_lookup,
    to_label_space,
    to_rank_space,
    top_kappa,
)

B, K, H, W = 2, 5, 3, 4
NO_LIMIT = settings(deadline=None, max_examples=60)


def tied_scores(images: int = B, classes: int = K) -> st.SearchStrategy[Tensor]:
    """Scores of four values only, so that many are equal."""
    row = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=classes, max_size=classes)
    return st.lists(row, min_size=images, max_size=images).map(torch.tensor)


def masks(images: int = B, classes: int = K) -> st.SearchStrategy[Tensor]:
    size = images * H * W
    pixels = st.lists(st.integers(IGNORE, classes - 1), min_size=size, max_size=size)
    return pixels.map(lambda ids: torch.tensor(ids).view(images, H, W))


def presences() -> st.SearchStrategy[Tensor]:
    row = st.lists(st.booleans(), min_size=K, max_size=K)
    return st.lists(row, min_size=B, max_size=B).map(torch.tensor)


def padded(lists: list[list[int]], scores: list[list[float]]) -> Ranking:
    """A ranking of some labels per image, padded as Ranking says."""
    kappa = max(map(len, lists))
    valid = torch.tensor([[rank < len(row) for rank in range(kappa)] for row in lists])
    labels = torch.tensor([row + [0] * (kappa - len(row)) for row in lists])
    return Ranking(labels, torch.tensor([row + [0.0] * (kappa - len(row)) for row in scores]), valid)


def kept(ranking: Ranking) -> list[list[int]]:
    """The labels of each image's valid ranks."""
    return [labels[valid].tolist() for labels, valid in zip(ranking.labels, ranking.valid, strict=True)]


def assert_well_formed(ranking: Ranking) -> None:
    """What Ranking promises."""
    for labels, scores, valid in zip(ranking.labels, ranking.scores, ranking.valid, strict=True):
        count = int(valid.sum())
        assert valid.tolist() == [True] * count + [False] * (ranking.kappa - count)
        assert len(set(labels[:count].tolist())) == count
        assert (scores[:count].diff() <= 0).all() and scores.min() >= 0 and scores.max() <= 1
        assert (labels[count:] == 0).all() and (scores[count:] == 0).all()


def test_a_ranking_worked_by_hand() -> None:
    ranking = top_kappa(torch.tensor([[0.1, 0.9, 0.4, 0.0, 0.6], [0.3, 0.2, 0.3, 0.8, 0.3]]), 3)
    assert ranking.labels.tolist() == [[1, 4, 2], [3, 0, 2]]
    torch.testing.assert_close(ranking.scores, torch.tensor([[0.9, 0.6, 0.4], [0.8, 0.3, 0.3]]))
    assert ranking.valid.all() and ranking.kappa == 3 and len(ranking) == 2


@NO_LIMIT
@given(scores=tied_scores(), kappa=st.integers(1, K + 2))
def test_the_kappa_highest_come_in_order_of_score_then_label(scores: Tensor, kappa: int) -> None:
    ranking = top_kappa(scores, kappa)
    for row, labels in zip(scores.tolist(), ranking.labels.tolist(), strict=True):
        assert labels == sorted(range(K), key=lambda label: (-row[label], label))[:kappa]
    assert torch.equal(ranking.scores, scores.gather(1, ranking.labels))
    assert_well_formed(ranking)


def test_kappa_beyond_all_labels_keeps_all_labels() -> None:
    ranking = top_kappa(torch.rand(B, K), K + 3)
    assert ranking.labels.shape == (B, K) and ranking.labels.sort().values.tolist() == [[0, 1, 2, 3, 4]] * B


def test_scores_of_half_precision_become_single() -> None:
    assert top_kappa(torch.rand(B, K).half(), 2).scores.dtype == torch.float32


@NO_LIMIT
@given(scores=tied_scores(), kappa=st.integers(1, K), smaller=st.integers(1, K + 2))
def test_the_top_of_a_ranking_is_the_ranking_of_a_smaller_kappa(scores: Tensor, kappa: int, smaller: int) -> None:
    first, second = top_kappa(scores, kappa).top(smaller), top_kappa(scores, min(kappa, smaller))
    assert torch.equal(first.labels, second.labels) and torch.equal(first.scores, second.scores)
    assert torch.equal(first.valid, second.valid)


def test_some_images_of_a_ranking_are_their_rankings() -> None:
    ranking = padded([[3, 1], [2], [4, 0]], [[0.9, 0.1], [0.5], [1.0, 0.2]])
    assert kept(ranking[1:]) == [[2], [4, 0]]
    assert ranking[1:].scores.tolist() == ranking.scores[1:].tolist()
    assert ranking.to("meta").labels.is_meta and ranking.to("meta").valid.is_meta


def test_a_complete_ranking_changes_no_label_map() -> None:
    ranking = complete_ranking(B, K)
    mask = torch.randint(IGNORE, K, (B, H, W))
    assert torch.equal(to_rank_space(mask, ranking, K), mask)
    assert ranking.labels.tolist() == [[0, 1, 2, 3, 4]] * B
    assert ranking.valid.all() and (ranking.scores == 1).all()


def test_one_pixel_makes_a_label_present() -> None:
    mask = torch.tensor([[[IGNORE, 4], [0, 0]], [[IGNORE, IGNORE], [IGNORE, IGNORE]]])
    assert presence(mask, K).tolist() == [[True, False, False, False, True], [False] * K]


@NO_LIMIT
@given(present=presences())
def test_the_oracle_ranks_what_is_there_by_label_and_pads_the_rest(present: Tensor) -> None:
    ranking = oracle_ranking(present)
    assert kept(ranking) == [row.nonzero().flatten().tolist() for row in present]
    assert ranking.kappa == max(1, int(present.sum(1).max()))
    assert (ranking.scores == ranking.valid.float()).all()
    assert_well_formed(ranking)


def test_the_oracle_of_images_without_labels_has_one_rank_that_is_padding() -> None:
    ranking = oracle_ranking(torch.zeros(B, K, dtype=torch.bool))
    assert ranking.labels.tolist() == [[0]] * B and not ranking.valid.any()


def test_ranks_are_found_by_label_and_padding_claims_none() -> None:
    table = rank_lookup(padded([[3, 1, 4], [2]], [[0.9, 0.5, 0.1], [0.7]]), K)
    assert table.tolist() == [[-1, 1, -1, 0, 2], [-1, -1, 0, -1, -1]]


@NO_LIMIT
@given(mask=masks(), scores=tied_scores(), kappa=st.integers(1, K))
def test_ranks_and_labels_name_the_same_pixels(mask: Tensor, scores: Tensor, kappa: int) -> None:
    ranking = top_kappa(scores, kappa)
    ranks = to_rank_space(mask, ranking, K)
    selected = (mask[..., None] == ranking.labels[:, None, None]).any(-1)
    assert torch.equal(ranks != IGNORE, selected)
    back = to_label_space(ranks.clamp(min=0), ranking)
    assert torch.equal(back[selected], mask[selected])


@NO_LIMIT
@given(mask=masks())
def test_the_oracle_loses_no_pixel(mask: Tensor) -> None:
    ranking = oracle_ranking(presence(mask, K))
    ranks = to_rank_space(mask, ranking, K)
    assert torch.equal(ranks == IGNORE, mask == IGNORE)
    assert torch.equal(torch.where(mask == IGNORE, IGNORE, to_label_space(ranks.clamp(min=0), ranking)), mask)


def test_images_are_ranked_apart() -> None:
    mask, scores = torch.randint(IGNORE, K, (B, H, W)), torch.rand(B, K)
    alone = [to_rank_space(mask[i : i + 1], top_kappa(scores[i : i + 1], 3), K) for i in range(B)]
    assert torch.equal(to_rank_space(mask, top_kappa(scores, 3), K), torch.cat(alone))


def test_missed_labels_replace_the_lowest_ranks_that_hold_absent_ones() -> None:
    ranking = padded([[0, 1, 2, 3]], [[0.9, 0.8, 0.7, 0.6]])
    present = torch.tensor([[False, True, False, True, True]])  # 4 is missed; 2 is the lowest absent one
    forced = force_missed(ranking, present)
    assert forced.labels.tolist() == [[0, 1, 3, 4]]
    torch.testing.assert_close(forced.scores, torch.tensor([[0.9, 0.8, 0.6, 0.0]]))


def test_padding_makes_room_for_missed_labels_first() -> None:
    ranking = padded([[0, 1, 2], [3]], [[0.9, 0.8, 0.7], [0.6]])
    present = torch.tensor([[True, True, True, False, False], [False, True, False, False, True]])
    forced = force_missed(ranking, present)
    assert kept(forced) == [[0, 1, 2], [3, 1, 4]]


@NO_LIMIT
@given(scores=tied_scores(), present=presences(), kappa=st.integers(1, K), counts=st.tuples(*[st.integers(0, K)] * B))
def test_forcing_keeps_every_present_label_that_there_is_room_for(
    scores: Tensor, present: Tensor, kappa: int, counts: tuple[int, ...]
) -> None:
    full = top_kappa(scores, kappa)
    valid = torch.arange(kappa) < torch.tensor(counts)[:, None]
    ranking = Ranking(full.labels * valid, full.scores * valid, valid)
    forced = force_missed(ranking, present)
    assert forced.labels.shape == ranking.labels.shape
    assert_well_formed(forced)
    for before, after, row in zip(kept(ranking), kept(forced), present, strict=True):
        there = set(row.nonzero().flatten().tolist())
        assert len(there & set(after)) == min(kappa, len(there))
        assert there & set(before) <= set(after)
        assert [label for label in before if label in after] == after[: len([x for x in after if x in before])]
        entered = [label for label in after if label not in before]
        assert set(entered) <= there and entered == sorted(entered)
        room = kappa - len(before)
        assert len(set(before) - set(after)) == max(0, len(entered) - room)
    again = force_missed(forced, present)
    assert torch.equal(again.labels, forced.labels) and torch.equal(again.scores, forced.scores)


@NO_LIMIT
@given(scores=tied_scores(), kappa=st.integers(1, K))
def test_forcing_changes_nothing_where_nothing_was_missed(scores: Tensor, kappa: int) -> None:
    ranking = top_kappa(scores, kappa)
    present = rank_lookup(ranking, K) != IGNORE
    forced = force_missed(ranking, present)
    assert torch.equal(forced.labels, ranking.labels) and torch.equal(forced.scores, ranking.scores)
    assert torch.equal(forced.valid, ranking.valid)


@NO_LIMIT
@given(scores=tied_scores(), present=presences(), kappa=st.integers(1, K), counts=st.tuples(*[st.integers(0, K)] * B))
def test_mixing_keeps_every_present_label_that_there_is_room_for(
    scores: Tensor, present: Tensor, kappa: int, counts: tuple[int, ...]
) -> None:
    full = top_kappa(scores, kappa)
    valid = torch.arange(kappa) < torch.tensor(counts)[:, None]
    ranking = Ranking(full.labels * valid, full.scores * valid, valid)
    mixed = mix_missed(ranking, present)
    assert_well_formed(mixed)
    for image, (before, after, row) in enumerate(zip(kept(ranking), kept(mixed), present, strict=True)):
        there = set(row.nonzero().flatten().tolist())
        assert len(there & set(after)) == min(kappa, len(there))
        assert there & set(before) <= set(after)
        assert set(after) <= there | set(before)
        stayed = mixed.labels[image] == ranking.labels[image]
        assert all(stayed[rank] for rank, label in enumerate(before) if label in there), "present labels do not move"


def test_mixed_labels_enter_at_any_rank_of_an_absent_label() -> None:
    ranking = top_kappa(torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.0]]).expand(200, -1), 4)
    present = torch.tensor([[False, True, False, False, True]]).expand(200, -1)
    torch.manual_seed(0)
    entered = (mix_missed(ranking, present).labels == 4).float().mean(0)
    assert entered[1] == 0
    torch.testing.assert_close(entered[[0, 2, 3]], torch.full((3,), 1 / 3), atol=0.12, rtol=0)
