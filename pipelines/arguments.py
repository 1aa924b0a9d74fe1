"""Command-line words → settings. Verbs and their few flags are argparse's; settings are `--dotted.key value`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from kappaseg_core.errors import UserError


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


def is_flag(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def settings_help(kind: type[Any], usage: str) -> str:
    """All settings of a configuration with types, defaults and meaning, as tyro prints them."""
    import tyro

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=usage, config=(tyro.conf.FlagConversionOff,))
    return text.getvalue()
