"""Conformal risk control for label selection. Origin of the procedure: arXiv 2208.02814, Eq. 4 and Theorem 1."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kappaseg_core.conformal import Calibration, Family, Loss, calibrate, keep_above, lost_share, risk_steps
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import Ranking, oracle_ranking, top_kappa
from tests.tensors import Created

K = 6
NO_LIMIT = settings(deadline=None, max_examples=80)


def by_hand() -> tuple[Ranking, Tensor]:
    """Four images, three stored ranks of four labels; ten pixels each."""
    labels = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 3, 0], [3, 2, 1]])
    scores = torch.tensor([[0.9, 0.5, 0.25], [0.75, 0.5, 0.125], [0.4, 0.3, 0.2], [0.9, 0.8, 0.7]])
    pixels = torch.tensor([[5, 5, 0, 0], [0, 8, 2, 0], [0, 0, 10, 0], [0, 0, 4, 6]])
    return Ranking(labels, scores, torch.ones_like(labels, dtype=torch.bool)), pixels


def test_the_lost_pixels_of_a_case_worked_by_hand() -> None:
    ranking, pixels = by_hand()
    values, risks = risk_steps(ranking, pixels, loss="pixel", family="threshold")
    assert values.tolist() == pytest.approx([1.0, 0.8, 0.7, 0.5, 0.3, 0.25, 0.2, 0.125])
    # the first ranks lose .5, .2, 0 and .4; label 2 of the last image comes at .8, label 1 of the first at .5
    assert risks.tolist() == pytest.approx([0.275, 0.175, 0.175, 0.05, 0.05, 0.05, 0.05, 0.0])


@pytest.mark.parametrize(
    ("alpha", "threshold", "risk", "mean_kappa"),
    [
        (0.42, 1.0, 0.275, 1.0),  # allowed: (5 · .42 - 1) / 4 = .275
        (0.41, 0.8, 0.175, 1.25),
        (0.34, 0.8, 0.175, 1.25),  # allowed: .175, met exactly
        (0.33, 0.5, 0.05, 2.0),
        (0.2, 0.125, 0.0, 3.0),  # allowed: 0, so nothing may be lost
    ],
)
def test_the_threshold_is_the_highest_that_the_images_allow(
    alpha: float, threshold: float, risk: float, mean_kappa: float
) -> None:
    found = calibrate(*by_hand(), alpha=alpha)
    assert (found.threshold, found.risk, found.mean_kappa) == pytest.approx((threshold, risk, mean_kappa))
    assert found.bound == pytest.approx(4 / 5 * risk + 1 / 5)
    assert not found.capped
    assert found.kappa == 3


def test_one_kappa_for_all_is_the_smallest_that_the_images_allow() -> None:
    ranking, pixels = by_hand()
    found = calibrate(ranking, pixels, alpha=0.3, family="rank")
    assert (found.kappa, found.threshold, found.mean_kappa) == (2, 0.0, 2.0)
    assert found.risk == pytest.approx(0.05)
    assert found.keep(ranking).kappa == 2


def test_lost_labels_count_alike_whatever_their_size() -> None:
    ranking, pixels = by_hand()
    assert lost_share(ranking.top(1), pixels, loss="label").tolist() == [0.5, 0.5, 0.0, 0.5]
    assert lost_share(ranking.top(1), pixels, loss="pixel").tolist() == [0.5, 0.2, 0.0, 0.4]


def test_an_image_without_labels_loses_nothing() -> None:
    ranking, pixels = by_hand()
    assert lost_share(ranking, torch.zeros_like(pixels)).tolist() == [0.0] * 4


def test_padding_keeps_nothing() -> None:
    ranking = Ranking(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.0]]), torch.tensor([[True, False]]))
    assert lost_share(ranking, torch.tensor([[3, 1]])).tolist() == [0.75]


def test_where_all_stored_ranks_lose_too_much_all_are_kept_and_it_is_said() -> None:
    ranking, pixels = by_hand()
    for family in ("threshold", "rank"):
        found = calibrate(ranking.top(1), pixels, alpha=0.3, family=family)  # allowed: .125, lost: .275
        assert found.capped
        assert found.bound > found.alpha
        assert (found.threshold, found.kappa) == (0.0, 1)


def test_equal_scores_enter_together() -> None:
    labels = torch.tensor([[0, 1, 2]] * 3)
    ranking = Ranking(labels, torch.tensor([[0.5, 0.25, 0.25]] * 3), torch.ones_like(labels, dtype=torch.bool))
    pixels = torch.tensor([[2, 1, 1]] * 3)
    values, risks = risk_steps(ranking, pixels, loss="pixel", family="threshold")
    assert values.tolist() == [1.0, 0.25]
    assert risks.tolist() == [0.5, 0.0]


def test_too_few_images_are_refused_with_the_number_needed() -> None:
    ranking, pixels = by_hand()
    with pytest.raises(UserError, match=r"4 calibration images cannot .* alpha = 0.01, wanted at least 99"):
        calibrate(ranking, pixels, alpha=0.01)
    calibrate(ranking, pixels, alpha=0.2)
    with pytest.raises(UserError, match="wanted at least 5"):
        calibrate(ranking, pixels, alpha=0.199)
    with pytest.raises(UserError, match="above 0 and below 1"):
        calibrate(ranking, pixels, alpha=5.0)


def test_what_is_kept_is_a_ranking_with_padding() -> None:
    ranking, _ = by_hand()
    kept = keep_above(ranking, 0.5)
    assert kept.labels.tolist() == [[0, 1, 0], [1, 0, 0], [2, 0, 0], [3, 2, 1]]
    assert kept.valid.sum(1).tolist() == [2, 2, 1, 3]
    assert kept.scores[2].tolist() == pytest.approx([0.4, 0.0, 0.0])
    assert keep_above(ranking[:3], 0.5).kappa == 2


def test_images_without_any_label_keep_their_padding() -> None:
    nothing = oracle_ranking(torch.zeros(2, K, dtype=torch.bool))
    assert not keep_above(nothing, 0.5).valid.any()


def test_no_tensor_has_two_axes_of_labels() -> None:
    labels = 1009
    scores = torch.rand(3, labels, generator=torch.Generator().manual_seed(0))
    with Created() as made:
        calibrate(top_kappa(scores, labels), (scores > 0.9).long(), alpha=0.3)
    assert not [shape for shape in made.shapes_with(labels) if shape.count(labels) > 1]


def cases(images: int = 9) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Scores of five values and few pixels, so that ties and empty images happen."""
    scores = st.lists(st.sampled_from([0.0, 0.125, 0.5, 0.75, 1.0]), min_size=images * K, max_size=images * K)
    pixels = st.lists(st.integers(0, 4), min_size=images * K, max_size=images * K)
    return st.tuples(
        scores.map(lambda flat: torch.tensor(flat).view(images, K)),
        pixels.map(lambda flat: torch.tensor(flat).view(images, K)),
    )


@NO_LIMIT
@given(case=cases(), kappa=st.integers(1, K), loss=st.sampled_from(["pixel", "label"]))
def test_the_found_sets_meet_the_bound_and_no_smaller_ones_do(
    case: tuple[Tensor, Tensor], kappa: int, loss: Loss
) -> None:
    """Against the definition, with fractions and every set of the family tried."""
    scores, pixels = case
    ranking, alpha = top_kappa(scores, kappa), Fraction(1, 4)
    found = calibrate(ranking, pixels, alpha=float(alpha), loss=loss)
    met = []
    for threshold in sorted({1.0, 0.0, *scores.flatten().tolist()}, reverse=True):
        total = sum(exact_loss(keep_above(ranking, threshold), pixels, loss), Fraction(0))
        if (total + 1) / (len(scores) + 1) <= alpha:
            met.append(threshold)
    assert found.capped == (not met)
    sets = found.keep(ranking)
    assert torch.equal(sets.valid, keep_above(ranking, met[0] if met else 0.0).valid)
    assert found.risk == pytest.approx(float(lost_share(sets, pixels, loss=loss).mean()))
    assert found.mean_kappa == pytest.approx(float(sets.valid.sum()) / len(scores))


def exact_loss(ranking: Ranking, pixels: Tensor, loss: Loss) -> list[Fraction]:
    """The share that each image loses, label by label."""
    shares = []
    for labels, valid, row in zip(ranking.labels, ranking.valid, pixels, strict=True):
        kept = set(labels[valid].tolist())
        weights = {label: int(n) if loss == "pixel" else 1 for label, n in enumerate(row.tolist()) if n}
        missed = sum(weight for label, weight in weights.items() if label not in kept)
        shares.append(Fraction(missed, sum(weights.values()) or 1))
    return shares


@NO_LIMIT
@given(case=cases(), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_lower_threshold_keeps_all_that_a_higher_one_keeps(
    case: tuple[Tensor, Tensor], low: float, high: float
) -> None:
    ranking = top_kappa(case[0], K)
    low, high = min(low, high), max(low, high)
    few, many = keep_above(ranking, high), keep_above(ranking, low)
    for some, more in zip(few.valid, many.valid, strict=True):
        assert 1 <= some.sum() <= more.sum()
    assert torch.equal(few.labels * few.valid, many.labels[:, : few.kappa] * few.valid)
    assert bool((lost_share(many, case[1]) <= lost_share(few, case[1])).all())


@NO_LIMIT
@given(case=cases(), order=st.permutations(range(K)), images=st.permutations(range(9)))
def test_neither_the_names_of_labels_nor_the_order_of_images_matter(
    case: tuple[Tensor, Tensor], order: list[int], images: list[int]
) -> None:
    scores, pixels = case
    renamed = calibrate(top_kappa(scores[images][:, order], K), pixels[images][:, order], alpha=0.25)
    first = calibrate(top_kappa(scores, K), pixels, alpha=0.25)
    assert (renamed.threshold, renamed.mean_kappa) == (first.threshold, first.mean_kappa)
    assert renamed.risk == pytest.approx(first.risk)


def population(images: int, seed: int) -> tuple[Ranking, Tensor]:
    """Images with 3 of 40 labels, found at heavy-tailed ranks: many at the first, some far behind."""
    generator = torch.Generator().manual_seed(seed)
    labels = 40
    scores = torch.rand(images, labels, generator=generator).sort(dim=1, descending=True).values
    depth = torch.rand(images, 3, generator=generator).clamp(min=1e-3) ** -0.9
    ranks = (depth - 1).long().clamp(max=labels - 1)
    pixels = torch.zeros(images, labels, dtype=torch.int64)
    pixels.scatter_add_(1, ranks, torch.randint(1, 100, (images, 3), generator=generator))
    return top_kappa(scores, labels), pixels


@pytest.mark.parametrize("family", ["threshold", "rank"])
def test_the_promise_holds_on_average_where_the_plain_rule_breaks_it(family: Family) -> None:
    """600 calibration sets of 50 images against the true loss in a population; alpha = 5 %.

    The plain rule takes the first set with R̂ ≤ α. A single calibration set promises nothing by itself: a good part of
    them ends above alpha with the corrected rule too.
    """
    alpha, n, draws = 0.05, 50, 600
    ranking, pixels = population(20_000, seed=1)
    values, risks = risk_steps(ranking, pixels, loss="pixel", family=family)
    generator = torch.Generator().manual_seed(2)
    plain, controlled = [], []
    for _ in range(draws):
        drawn = torch.randint(len(ranking), (n,), generator=generator)
        sample = Ranking(ranking.labels[drawn], ranking.scores[drawn], ranking.valid[drawn])
        controlled.append(true_loss(calibrate(sample, pixels[drawn], alpha=alpha, family=family), values, risks))
        uncorrected = (alpha * n + 1) / (n + 1)  # the alpha for which R̂ ≤ .05 is what is allowed
        plain.append(true_loss(calibrate(sample, pixels[drawn], alpha=uncorrected, family=family), values, risks))
    assert sum(plain) / draws > alpha
    assert sum(controlled) / draws < alpha
    assert 0.02 < sum(loss > alpha for loss in controlled) / draws < 0.4


def true_loss(found: Calibration, values: Tensor, risks: Tensor) -> float:
    """The population's mean loss at a calibration: that of the last step that is still within it."""
    value = found.threshold if found.family == "threshold" else -float(found.kappa)
    return float(risks[int((values >= value).sum()) - 1])
