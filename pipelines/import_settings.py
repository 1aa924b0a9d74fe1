"""The settings of an imported network: what its tensors tell, what the user says, and published values for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kappaseg_core.config import build, override, read_settings
from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import Layout

T = TypeVar("T")
ABSENT = object()


def settings_for(
    kind: type[T], layout: Layout, settings: Sequence[tuple[str, str]], *, recipe: Path | None, source: Path
) -> T:
    """The configuration of a network with that layout.

    settings: `--dotted.name value` of the command line, over those of the recipe.
    Raises UserError where they contradict the file's shapes, or leave open what only the user can know.
    """
    values = read_settings(recipe) if recipe else {}
    for name, text in settings:
        override(values, name, text)
    for name in ("backbone.weights", "init"):
        if looked_up(values, name) not in (ABSENT, None):
            raise UserError(f"{name} is for training, and the numbers here come from {source}; leave it out")
    for name, value in layout.told.items():
        given = looked_up(values, name)
        if given not in (ABSENT, None, value):
            raise UserError(f"{name} = {given!r}, but {source} was made with {value!r}; leave out that setting")
        lay(values, name, value)
    for name, value in layout.assumed.items():
        if looked_up(values, name) is ABSENT:
            lay(values, name, value)
    for name, advice in layout.needed.items():
        if looked_up(values, name) in (ABSENT, None):
            raise UserError(f"{name} cannot be told from {source}: {advice}")
    return build(kind, values, source=str(recipe or "command line"))


def looked_up(values: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted name in nested dictionaries, or of a group that is none; ABSENT where there is nothing."""
    found: Any = values
    for name in dotted.split("."):
        if not isinstance(found, Mapping):
            return ABSENT if found is None else found
        found = found.get(name, ABSENT)
        if found is ABSENT:
            return ABSENT
    return found


def lay(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value of a dotted name in nested dictionaries, in place."""
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        values = inner
    values[last] = value
