"""Programs that use exported networks where this project is not."""

from __future__ import annotations

import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGES = ("kappaseg_core", "label_cache", "pipelines", "stage1_multilabel", "stage2_segmentation")
#: run with -I -S: no PYTHONPATH, no working directory, and no .pth files, which an editable installation consists of
ALONE = f"""
import importlib.util, sys
sys.path[len(sys.path):] = {site.getsitepackages()!r}
assert not any(importlib.util.find_spec(name) for name in {PACKAGES!r}), "the project can be imported here"
with open("program.py", encoding="utf-8") as file:
    program = file.read()
exec(compile(program, "program.py", "exec"))
assert not sys.modules.keys() & set({PACKAGES!r})
"""


@pytest.fixture
def alone(tmp_path: Path) -> Callable[[str], Path]:
    """Run a program in an empty folder, without this project and with warnings as errors; gives the folder."""

    def run(program: str) -> Path:
        (tmp_path / "program.py").write_text(program, "utf-8")
        words = [sys.executable, "-W", "error", "-I", "-S", "-c", ALONE]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return tmp_path

    return run
