"""Parts that are found by the name of their module: backbones, scene sets, hosts, ranking sources.

A folder's modules that define a certain function are its kinds; adding one is adding a file.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from kappaseg_core.errors import UserError


def kinds_of(package: str, *, defines: str) -> tuple[str, ...]:
    """The modules of a package that define the function `defines`, by name; none of them is imported."""
    names = (module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))
    return tuple(sorted(name for name in names if defines_function(f"{package}.{name}", defines)))


def part(package: str, kind: str, *, defines: str, setting: str) -> ModuleType:
    """The module of that kind. Raises UserError that names the setting and lists the kinds there are."""
    kinds = kinds_of(package, defines=defines)
    if kind not in kinds:
        close = difflib.get_close_matches(kind, kinds, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{setting} = {kind!r} is unknown; {hint}there are: {', '.join(kinds)}")
    return importlib.import_module(f"{package}.{kind}")


def defines_function(module: str, name: str) -> bool:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return False
    return f"\ndef {name}(" in Path(spec.origin).read_text("utf-8")
