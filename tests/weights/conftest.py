from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipelines.import_weights import Imported
from tests.parity import weights


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Imported]:
    """(format, state dict, number of classes, settings) → the imported network, its classes called c0, c1, …"""

    def run(kind: str, state: dict[str, Tensor], classes: int, *settings: Any, **wishes: Any) -> Imported:
        return weights.imported(kind, state, tmp_path, classes, *settings, **wishes)

    return run
