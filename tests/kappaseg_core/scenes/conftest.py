"""Data sets on disk, written file by file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.folder import FolderScenes

NAMES = ("sky", "tree", "road", "car", "person")  # K = 5
SHAPE = 5, 7  # H, W


@dataclass
class DataFolder:
    """A folder that is filled by the test."""

    root: Path

    def write_classes(self, names: Sequence[str] = NAMES) -> None:
        (self.root / "classes.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")

    def write_split(self, split: str, image_ids: Sequence[str]) -> None:
        (self.root / "splits" / f"{split}.txt").write_text("".join(f"{i}\n" for i in image_ids), "utf-8")

    def write_photo(self, name: str, picture: np.ndarray | Image.Image, **options: Any) -> Path:
        """`name` with its ending; arrays are [H, W] or [H, W, 3]."""
        picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        picture.save(self.root / "images" / name, **options)
        return self.root / "images" / name

    def write_mask(self, image_id: str, mask: np.ndarray | Image.Image, **options: Any) -> Path:
        """u8 arrays become 8-bit files, u16 arrays 16-bit files."""
        mask = Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask
        mask.save(self.root / "masks" / f"{image_id}.png", **options)
        return self.root / "masks" / f"{image_id}.png"

    def config(self, **options: Any) -> DataConfig:
        return DataConfig(root=str(self.root), options=options)

    def open(self, split: str = "train", **options: Any) -> FolderScenes:
        scenes = open_scenes(self.config(**options), split)
        assert isinstance(scenes, FolderScenes)
        return scenes


def make_folder(root: Path) -> DataFolder:
    """Folders and class names, no image yet."""
    for name in ("images", "masks", "splits"):
        (root / name).mkdir(parents=True)
    folder = DataFolder(root)
    folder.write_classes()
    return folder


def fill(folder: DataFolder) -> DataFolder:
    """Three training and two validation images, JPEG and PNG, of different sizes, with some ignored pixels."""
    random = np.random.default_rng(0)
    folder.write_classes([f"class {label}" for label in range(5)])
    for number, name in enumerate(("a.jpg", "b.png", "c.jpeg", "d.jpg", "é.png")):
        height, width = 5 + number, 9 - number
        folder.write_photo(name, random.integers(0, 256, (height, width, 3), np.uint8))
        mask = random.integers(0, 5, (height, width), np.uint8)
        mask[:2, :2] = 4
        mask[-1, :3] = 255
        folder.write_mask(name.split(".")[0], mask)
    folder.write_split("train", ["c", "a", "b"])
    folder.write_split("val", ["é", "d"])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    """Folders and five class names, no image yet."""
    return make_folder(tmp_path / "data")


@pytest.fixture
def filled(folder: DataFolder) -> DataFolder:
    """K = 5, train c a b, val é d, 8-bit masks with ignore 255."""
    return fill(folder)


@pytest.fixture
def one_scene(folder: DataFolder) -> Callable[..., FolderScenes]:
    """A data set of one scene x with the given mask or photo, opened with the given options."""

    def make(
        mask: np.ndarray | Image.Image | None = None, photo: np.ndarray | Image.Image | None = None, **options: Any
    ) -> FolderScenes:
        folder.write_photo("x.png", np.zeros((*SHAPE, 3), np.uint8) if photo is None else photo)
        folder.write_mask("x", np.zeros(SHAPE, np.uint8) if mask is None else mask)
        folder.write_split("train", ["x"])
        return folder.open(**options)

    return make
