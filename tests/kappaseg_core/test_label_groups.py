from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads import GroupDecoder, build_head
from kappaseg_core.label_heads.group import slots_of

B, C, K, D = 2, 6, 7, 8
SMALL = {"width": D, "ffn": 12, "heads": 2, "groups": 3, "dropout": 0.0}


def group_head(num_classes: int = K, **changes: Any) -> GroupDecoder:
    torch.manual_seed(0)
    built = build_head("group", C, num_classes, **(SMALL | changes))
    assert isinstance(built, GroupDecoder)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def maps() -> torch.Tensor:
    return torch.randn(B, C, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grouping", ["index", "shuffled"])
@pytest.mark.parametrize(("labels", "groups"), [(7, 3), (7, 7), (7, 1), (8, 4), (171, 100), (59, 58)])
def test_every_label_has_a_place_of_its_own_in_groups_of_equal_size(labels: int, groups: int, grouping: Any) -> None:
    slots, largest = slots_of(labels, groups, grouping, 3), -(-labels // groups)
    assert slots.unique().numel() == labels
    sizes = (slots // largest).bincount(minlength=groups)
    assert len(sizes) == groups and sizes.max() == largest and sizes.max() - sizes.min() <= 1
    assert all((slots[slots // largest == g] % largest).sort().values.tolist() == list(range(n)) for g, n in
               enumerate(sizes.tolist()))  # fmt: skip


def test_neighbours_share_a_query_unless_they_are_shuffled_by_a_seed() -> None:
    assert (slots_of(7, 3, "index", 0) // 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    one, same, other = (slots_of(100, 10, "shuffled", seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_group_per_label_is_query2label() -> None:
    grouped, labels = group_head(groups=K), build_head("fast", C, K, width=D, ffn=12, heads=2, decoder_layers=1)
    state = {name: tensor for name, tensor in grouped.state_dict().items() if name != "slots"}
    labels.load_state_dict({**state, "weight": state["weight"][:, 0], "bias": state["bias"][:, 0]})
    torch.testing.assert_close(grouped(maps()), labels.eval()(maps()))


def test_labels_of_a_group_read_one_query_and_no_other() -> None:
    built = group_head(grouping="shuffled")
    before = built(maps())
    with torch.no_grad():
        built.queries[1] += 1.0
    changed = (built(maps()) - before).abs().amax(0) > 1e-4
    assert changed.tolist() == (built.slots // 3 == 1).tolist()


def test_groups_in_chunks_give_the_same_logits_and_gradients() -> None:
    def gradients(built: GroupDecoder) -> list[torch.Tensor]:
        built.train()(maps()).square().sum().backward()
        return [p.grad for p in built.parameters() if p.grad is not None]

    whole, chunked = group_head(), group_head(chunk=2)
    torch.testing.assert_close(chunked(maps()), whole(maps()))
    torch.testing.assert_close(gradients(chunked), gradients(whole), rtol=1e-4, atol=1e-5)


def test_the_prior_becomes_the_score_of_each_label() -> None:
    built = group_head(grouping="shuffled")
    nn.init.zeros_(built.weight)
    frequency = torch.linspace(0.1, 0.9, K)
    built.set_prior(frequency)
    torch.testing.assert_close(built(maps()).sigmoid(), frequency.expand(B, -1))


def test_the_groups_are_kept_with_the_weights() -> None:
    built, other = group_head(grouping="shuffled", group_seed=1), group_head(grouping="shuffled", group_seed=2)
    other.load_state_dict(built.state_dict())
    assert torch.equal(other(maps()), built(maps()))


def test_the_preset_has_ml_decoders_sizes() -> None:
    with torch.device("meta"):
        heads = [build_head("group", 1536, labels) for labels in (171, 10_000)]
    assert [round(sum(p.numel() for p in head.parameters()) / 1e6, 1) for head in heads] == [6.9, 14.5]
    assert [len(head.queries) for head in heads if isinstance(head, GroupDecoder)] == [100, 100]
    assert group_head(5, groups=None).queries.shape == (5, D)


def test_groups_that_cannot_be_are_one_clear_error() -> None:
    with pytest.raises(UserError, match="8 groups, wanted 1 to the 7 labels"):
        group_head(groups=8)
    with pytest.raises(UserError, match="'group' has no encoder_layers"):
        group_head(encoder_layers=1)
    with pytest.raises(UserError, match="'fast' has no groups; preset group has"):
        build_head("fast", C, K, groups=2)
