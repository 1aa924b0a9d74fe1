"""Tables from other names to ours: every tensor is used, left out for a reason, or listed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kappaseg_core.weights.renaming import Misfit, Rule, fitted, renamed

RULES = (
    Rule(r"old\.(\w+)", r"new.\1"),
    Rule(r"packed", ("q", "k", "v")),
    Rule(r"part(\d)", r"whole[\1]"),
    Rule(r"spare", None, "nobody reads it"),
    Rule(r"row", "row", change=lambda tensor: tensor.flatten(1)),
)


def tensors(**named: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("__", "."): torch.zeros(size) for name, size in named.items()}


def misfit(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> Misfit:
    with pytest.raises(Misfit) as caught:
        fitted(renamed(given, RULES), wanted, source="FILE")
    return caught.value


def test_a_tensor_goes_by_the_first_rule_for_its_whole_name() -> None:
    found = renamed(tensors(old__a=(2,), spare=(1,), oldish__a=(1,), older=(1,)), RULES)
    assert list(found.tensors) == ["new.a"] and found.origin == {"new.a": "old.a"}
    assert found.dropped == {"nobody reads it": ["spare"]}
    assert found.unknown == ["oldish.a", "older"]


def test_packed_tensors_are_cut_and_parts_are_put_together_in_their_order() -> None:
    given = {"packed": torch.arange(6.0), "part1": torch.ones(2), "part0": torch.zeros(2)}
    found = renamed(given, RULES).tensors
    assert [found[name].tolist() for name in "qkv"] == [[0, 1], [2, 3], [4, 5]]
    assert found["whole"].tolist() == [0, 0, 1, 1]


def test_everything_that_does_not_fit_is_listed() -> None:
    given = tensors(old__a=(2,), old__b=(3, 1), old__c=(1,), strange=(1,))
    wanted = tensors(new__a=(2,), new__b=(1, 3), new__d=(1,), new__e=())
    error = misfit(given, wanted)
    assert error.listing == [
        "missing    new.d (1)", "missing    new.e (a single number)", "unknown    strange", "unknown    old.c",
        "misshapen  old.b (3x1, wanted 1x3 for new.b)",
    ]  # fmt: skip
    assert str(error).startswith("FILE does not fit its network: 2 missing, first new.d (1); 2 unknown, first strange;")


def test_two_tensors_for_one_place_are_not_both_taken() -> None:
    rules = (Rule("a|b", "a"),)
    assert renamed(tensors(a=(1,), b=(1,)), rules).unknown == ["b"]


@pytest.mark.parametrize("name", ["packed", "row"])
def test_a_tensor_with_too_few_axes_is_misshapen_and_no_crash(name: str) -> None:
    wanted = tensors(q=(2,), k=(2,), v=(2,)) if name == "packed" else tensors(row=(2, 2))
    assert "misshapen" in misfit({name: torch.tensor(1.0)}, wanted).listing[0]


def test_a_part_that_is_alone_is_no_whole() -> None:
    error = misfit(tensors(part0=(2,)), tensors(whole=(2,)))
    assert error.listing == ["missing    whole (2)", "unknown    part0"]


def test_counters_of_steps_may_be_missing() -> None:
    wanted = {"new.a": torch.zeros(1), "new.num_batches_tracked": torch.tensor(7)}
    assert fitted(renamed(tensors(old__a=(1,)), RULES), wanted, source="FILE")["new.num_batches_tracked"] == 7
