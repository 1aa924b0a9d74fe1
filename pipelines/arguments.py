"""Command-line words → settings. Verbs and their few flags are argparse's; settings are `--dotted.key value`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from kappaseg_core.config import DataConfig, build, override
from kappaseg_core.errors import UserError


def apart(words: Sequence[str], flags: Collection[str]) -> tuple[list[str], list[str]]:
    """A verb's own words and those of its settings (`--name value` with a name that is none of its flags), in order.

    argparse would give the value of an option that it does not know to the next positional argument.
    """
    own: list[str] = []
    settings: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not is_flag(word) or word.partition("=")[0] in flags:
            own.append(word)
            continue
        settings.append(word)
        if "=" not in word and rest and not is_flag(rest[0]):
            settings.append(rest.pop(0))
    return own, settings


def split_settings(words: Sequence[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs, in order. Raises UserError for anything else."""
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UserError(f"argument {word!r} was not expected here; settings are given as --name value")
        name, sign, value = word[2:].partition("=")
        if not sign:
            if not rest or is_flag(rest[0]):
                raise UserError(f"setting --{name} has no value; write --{name} VALUE")
            value = rest.pop(0)
        pairs.append((name.replace("-", "_"), value))
    return pairs


def data_at(root: str, settings: Sequence[tuple[str, str]]) -> DataConfig:
    """The data set in a folder or in a packed file, with settings of its own. Raises UserError."""
    values: dict[str, Any] = {}
    for name, text in settings:
        override(values, name.removeprefix("data."), text)
    place = Path(root)
    data = replace(build(DataConfig, values, source="command line"), root=str(place))
    return replace(data, kind="packed") if "kind" not in values and place.is_file() else data


def is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def settings_help(kind: type[Any], usage: str) -> str:
    """All settings of a configuration with types, defaults and meaning, as tyro prints them."""
    import tyro

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        shown = with_a_name(kind())
        tyro.cli(kind, args=["--help"], prog=usage, default=shown, config=(tyro.conf.FlagConversionOff,))
    return text.getvalue()


def with_a_name(config: Any) -> Any:
    """A configuration with NAME: VALUE in its free groups, which tyro does not show while they are empty."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    groups = {name: with_a_name(value) for name, value in values.items() if is_dataclass(value)}
    return replace(config, **groups, **{name: {"NAME": "VALUE"} for name, value in values.items() if value == {}})
