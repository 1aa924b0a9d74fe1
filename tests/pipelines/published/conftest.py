from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.published.sets import DataSet
from pipelines.results_doc import read_results
from tests.settings_files import ROOT


@pytest.fixture(scope="session")
def costs() -> list[dict[str, Any]]:
    return list(read_results(ROOT / "benchmarks" / "results" / "cost.json")["networks"])


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DataSet], Path]:
    """A folder as `kappaseg data prepare` writes it, with the labels of a set: 4 training and 2 validation images."""
    made: dict[str, Path] = {}

    def make(data: DataSet) -> Path:
        if data.name not in made:
            made[data.name] = write(tmp_path_factory.mktemp(data.name), data)
        return made[data.name]

    return make


def write(root: Path, data: DataSet) -> Path:
    """Images of 40 × 48 pixels in squares of 8; the last label, and pixels without one, are in each of them. Where
    objects are told apart, the first half of the labels are things, and each square of one is an object."""
    for name in ("images", "masks", "splits", *(["instances"] if data.objects else [])):
        (root / name).mkdir()
    things = data.classes // 2
    if data.objects:
        (root / "things.txt").write_text("".join(f"label {label}\n" for label in range(things)))
    (root / "classes.txt").write_text("".join(f"label {label}\n" for label in range(data.classes)))
    random = np.random.default_rng(0)
    for number in range(6):
        labels = random.integers(0, data.classes, (5, 6))
        labels[0, :2] = data.classes - 1, data.ignore
        if data.objects:
            objects = np.where(labels < things, np.arange(1, 31).reshape(5, 6), 0)
            squares = objects.repeat(8, 0).repeat(8, 1).astype(np.uint8)
            Image.fromarray(squares).save(root / "instances" / f"{number}.png")
        mask = labels.repeat(8, 0).repeat(8, 1).astype(np.uint8 if data.ignore == 255 else np.uint16)
        Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)).save(root / "images" / f"{number}.jpg")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    (root / "splits" / "train.txt").write_text("0\n1\n2\n3\n")
    (root / "splits" / "val.txt").write_text("4\n5\n")
    return root
