"""Outputs of the published implementations on small random weights, stored by whoever could run them.

They lie in the folder that KAPPASEG_REFERENCE names, else in ../shared/reference beside the repository; a README.md
there says how they were made. Nothing here knows their sizes: K, κ, widths come from its README.json and the arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

VARIABLE = "KAPPASEG_REFERENCE"
DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "reference"
WEIGHT = "state/"  # how the name of a weight begins in a file


@dataclass(frozen=True)
class Reference:
    """One stored run of a published implementation.

    state: weights under their published names.      arrays: inputs and outputs.
    sizes: K labels, topk = κ, d_enc backbone channels, d width, heads, d_ff, grid, down, img (sides).
    """

    state: dict[str, Tensor]
    arrays: dict[str, Tensor]
    sizes: dict[str, int]


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """Where the files are; skips where they are not."""
    folder = Path(os.environ.get(VARIABLE) or DEFAULT)
    if not folder.is_dir():
        pytest.skip(f"no reference files in {folder}; set {VARIABLE} to their folder")
    return folder


@pytest.fixture(scope="session")
def reference(reference_folder: Path) -> Callable[[str], Reference]:
    """`reference("query2label_default")` → what query2label_default.npz holds."""
    sizes = json.loads((reference_folder / "README.json").read_text("utf-8"))["dims"]

    def load(name: str) -> Reference:
        with np.load(reference_folder / f"{name}.npz") as file:
            tensors = {key: torch.from_numpy(np.array(file[key])) for key in file.files}
        state = {key.removeprefix(WEIGHT): value for key, value in tensors.items() if key.startswith(WEIGHT)}
        arrays = {key: value for key, value in tensors.items() if not key.startswith(WEIGHT)}
        return Reference(state, arrays, sizes)

    return load
