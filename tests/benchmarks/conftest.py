"""Programs of benchmarks/ import each other by name, as they do when they are run."""

from __future__ import annotations

import pytest

from tests.settings_files import ROOT


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
