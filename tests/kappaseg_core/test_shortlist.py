from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads import Shortlisted, build_head
from kappaseg_core.label_heads.shortlist import MARGIN, merged, picked

B, C, K, S = 2, 8, 7, 3
SMALL = {"ffn": 12, "heads": 2}


def shortlisted(size: int = S, **changes: Any) -> Shortlisted:
    torch.manual_seed(0)
    built = build_head("rankseg", C, K, shortlist=size, **(SMALL | changes))
    assert isinstance(built, Shortlisted)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.7)
    return built.eval()


def maps() -> torch.Tensor:
    return torch.randn(B, C, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("changes", [{}, {"chunk": 2}, {"shortlist_by": "lse"}, {"self_attention": "first"}])
def test_picked_labels_score_as_they_do_without_a_shortlist(changes: dict[str, Any]) -> None:
    built = shortlisted(**changes)
    labels = built.first(maps()).topk(S).indices
    torch.testing.assert_close(built(maps()).gather(1, labels), built.then(maps()).gather(1, labels))
    assert not torch.equal(labels[0].sort().values, labels[1].sort().values)  # every image has a list of its own


def test_the_others_come_after_them_in_the_order_of_the_linear_layer() -> None:
    built = shortlisted()
    first, order = built.first(maps()), built(maps()).argsort(1, descending=True)
    for image in range(B):
        by_first = first[image].argsort(descending=True).tolist()
        assert set(order[image, :S].tolist()) == set(by_first[:S])
        assert order[image, S:].tolist() == by_first[S:]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(1, K - 1), spread=st.sampled_from([0.1, 3.0, 1e4]))
def test_no_other_label_is_likelier_than_a_picked_one_or_than_the_linear_layer_says(
    seed: int, size: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, query = spread * torch.randn(B, K, generator=generator), spread * torch.randn(B, K, generator=generator)
    labels = picked(first, size)
    logits = merged(first, labels, query.gather(1, labels))
    others = torch.ones(B, K).scatter(1, labels, 0.0).bool()
    assert torch.equal(logits.gather(1, labels), query.gather(1, labels))
    assert (logits[others] <= first[others]).all()
    assert (logits.masked_fill(~others, -torch.inf).amax(1) < query.gather(1, labels).amin(1)).all()


def test_a_case_worked_by_hand() -> None:
    first, logits = torch.tensor([[3.0, -1.0, 2.0, -4.0]]), torch.tensor([[0.5, -2.0]])
    labels = picked(first, 2)
    assert labels.tolist() == [[0, 2]]
    expected = torch.tensor([[0.5, -2 - MARGIN, -2.0, -5 - MARGIN]])  # -1 and -4 are lowered by 1 and the margin
    torch.testing.assert_close(merged(first, labels, logits), expected)


@pytest.mark.parametrize("lowest", [-12.0, -9.7, -3.0, 0.0, 2.9])
def test_the_margin_outlives_half_precision(lowest: float) -> None:
    """Scores are rounded to it before they are sorted (stage1_multilabel.scoring)."""
    scores = torch.sigmoid(torch.tensor([lowest, lowest - MARGIN])).half()
    assert scores[0] > scores[1]


def test_equal_labels_are_picked_in_order_of_id() -> None:
    assert picked(torch.zeros(1, 4), 2).tolist() == [[0, 1]]


def test_the_prior_reaches_both_heads() -> None:
    built = shortlisted()
    nn.init.zeros_(built.first.linear.weight)
    nn.init.zeros_(built.then.weight)
    frequency = torch.tensor([0.5, 0.01, 0.2, 0.3, 0.6, 0.7, 0.05])
    built.set_prior(frequency)
    torch.testing.assert_close(built(maps()).sigmoid(), frequency.expand(B, -1))


def test_shortlists_that_cannot_be_are_one_clear_error() -> None:
    for changes, message in (
        ({"size": 7}, "shortlist 7 of 7 labels, wanted 1 to 6"),
        ({"size": 0}, "shortlist 0 of 7 labels"),
        ({"self_attention": "all"}, "labels that attend to each other"),
        ({"shortlist_by": "fast"}, "gap or lse"),
    ):
        with pytest.raises(UserError, match=message):
            shortlisted(**changes)
    with pytest.raises(UserError, match="a query per label"):
        build_head("group", C, K, shortlist=2, width=8, heads=2)
