"""A network for another list of classes: what belongs to a class goes by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kappaseg_core.errors import UserError


@dataclass(frozen=True)
class Transfer:
    """taken: (row in the new list, row in the old one) of every class that is in both.

    new: names that only the new list has.   left: those that only the old one has.
    """

    taken: tuple[tuple[int, int], ...]
    new: tuple[str, ...]
    left: tuple[str, ...]


def transfer(old: Sequence[str], new: Sequence[str]) -> Transfer:
    """Which class of one list is which of another. Raises UserError where a name stands twice, or none is in both."""
    for names in (old, new):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"class {twice[0]!r} stands twice in its list, so rows cannot go by name; rename one")
    rows = {name: row for row, name in enumerate(old)}
    taken = tuple((row, rows[name]) for row, name in enumerate(new) if name in rows)
    if not taken:
        raise UserError(f"no class of one list is in the other (first {old[0]!r} and {new[0]!r}); names must be equal")
    return Transfer(taken, tuple(n for n in new if n not in rows), tuple(n for n in old if n not in set(new)))


def moved(
    tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], found: Transfer, class_rows: Collection[str]
) -> dict[str, Tensor]:
    """The state dict of a network with the new classes.

    start: its state dict with initial values, which new classes keep.   class_rows: names of the tensors whose rows are
    classes. Others of another length have an entry per rank: the first ones are kept, the last is repeated.
    """
    to, fro = [row for row, _ in found.taken], [row for _, row in found.taken]
    result = {}
    for name, initial in start.items():
        value = tensors[name]
        if name in class_rows:
            value, rows = initial.clone(), value
            value[to] = rows[fro]
        elif len(value.shape) and value.shape != initial.shape:
            value = value[[min(rank, len(value) - 1) for rank in range(len(initial))]]
        result[name] = value
    return result
