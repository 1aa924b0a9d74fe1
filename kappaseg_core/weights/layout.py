"""What the tensors of a file say about the network that they are from."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.weights.renaming import Rule, shape

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """A published network, as far as its tensors tell.

    what: in words.   rules: from its names to ours.   num_classes: K.
    told: dotted setting → value that the shapes tell.   assumed: dotted setting → published value, where they do not.
    class_rows: our names of the tensors whose rows are classes.
    needed: settings that only the user can know, with what to say about them.
    new: our names (regular expressions) of tensors that have no counterpart and keep their initial values, and why.
    spare: our names of tensors that a network may be without, depending on settings, and why that is no loss.
    grounds: what told and assumed settings are known from, in words.
    """

    what: str
    rules: tuple[Rule, ...]
    num_classes: int
    told: dict[str, Any]
    assumed: dict[str, Any]
    class_rows: tuple[str, ...]
    needed: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    spare: dict[str, str] = field(default_factory=dict)
    grounds: tuple[str, str] = ("shapes", "published")


def sizes(state: State, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that every file of the format has. Raises UserError where it is missing or another."""
    if name not in state:
        beginnings = sorted({re.split(r"[./]", key)[0] for key in state})
        raise UserError(f"it has no {name}; its names begin with {', '.join(beginnings[:6])}")
    if state[name].ndim != axes:
        raise UserError(f"its {name} is {shape(state[name])}, wanted {axes} axes")
    return tuple(state[name].shape)


def layers(state: State, pattern: str) -> int:
    """How many layers there are, from the largest number in names that match (its one group)."""
    numbers = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def square_root(cells: int, name: str) -> int:
    """Side of a square of so many cells. Raises UserError where there is none."""
    side = round(max(cells, 0) ** 0.5)
    if side < 1 or side * side != cells:
        raise UserError(f"its {name} is for {cells} cells, wanted those of a square image")
    return side


def below(prefix: str, rules: Collection[Rule], ours: str) -> list[Rule]:
    """Rules for names below a prefix (plain text), and ours below another."""

    def moved(names: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if names is None:
            return None
        return ours + names if isinstance(names, str) else tuple(ours + name for name in names)

    return [replace(rule, theirs=re.escape(prefix) + rule.theirs, ours=moved(rule.ours)) for rule in rules]
