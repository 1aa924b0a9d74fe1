"""Backbones as transformers writes them: parameter names → timm's, and the model of timm with their sizes.

transformers has renamed its modules more than once; released files have the names of their time. Both the names of 2021
to 2025 (attention.self.query) and those of transformers 5 (attention.q_proj) are known.

Each module has RULES, from names below the backbone to timm's, and `settings(config, state) -> dict` from the
backbone's part of config.json and its tensors under timm's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.weights.renaming import Rule

KIND = r"(weight|bias)"


def linear(theirs: str, ours: str) -> Rule:
    """Weight and bias of a module. theirs: a regular expression with \\d+ in groups; ours: with \\1, \\2, …"""
    number = theirs.count(r"(\d+)") + 1
    return Rule(rf"{theirs}\.{KIND}", rf"{ours}.\{number}")


def packed(theirs: tuple[str, str, str], ours: str) -> list[Rule]:
    """Three modules of queries, keys and values → one matrix and one bias, in this order."""
    number = theirs[0].count(r"(\d+)") + 1
    return [Rule(rf"{name}\.{KIND}", rf"{ours}.\{number}[{part}]") for part, name in enumerate(theirs)]


def model_of_timm(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a backbone: a model of timm and what it is made with."""
    told = {f"backbone.options.{option}": value for option, value in options.items()}
    return {"backbone.kind": "timm", "backbone.name": name} | told


def refuse_other(config: Mapping[str, Any], name: str, *wanted: Any) -> None:
    """Raise UserError where a setting of the network has a value that changes what it computes, and that timm lacks."""
    if config.get(name, wanted[0]) not in wanted:
        words = " or ".join(map(repr, wanted))
        raise UserError(f"its {name} is {config[name]!r}, and only {words} can be taken over")
