"""Networks of tiny sizes, and the way through the functions that `kappaseg import-weights` uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kappaseg_core.weights.files import WeightFile
from pipelines.import_weights import Imported, Wishes, network_from

#: (format, state dict, number of classes, settings) → the imported network
Import = Callable[..., Imported]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    def run(
        kind: str, state: dict[str, Tensor], classes: int, settings: dict[str, Any] | None = None, **wishes: Any
    ) -> Imported:
        names = tmp_path / "classes.txt"
        names.write_text("".join(f"c{number}\n" for number in range(classes)))
        given = tuple((name, str(value)) for name, value in (settings or {}).items())
        return network_from(
            kind, Path("FILE"), WeightFile(dict(state)), Wishes(classes=names, settings=given, **wishes), out="out"
        )

    return run
