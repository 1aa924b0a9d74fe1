"""Cityscapes with two cities for training and one for validation, as published and with converted maps only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_mask, draw_photo

FRAMES = {"train": ("aachen_000000_000019", "ulm_000003_000019"), "val": ("lindau_000000_000019",)}
#: of the three frames: drawn ids, train ids, ours
DRAWN = ([[7, 8, 0], [33, 31, 29]], [[11, 1], [24, 6]], [[3, 19, 26, 20]])
TRAINED = ([[0, 1, 255], [18, 16, 255]], [[2, 255], [11, 255]], [[255, 6, 13, 7]])
OURS = ([[0, 1, -1], [18, 16, -1]], [[2, -1], [11, -1]], [[-1, 6, 13, 7]])


def maker(stored: Sequence[Sequence[Sequence[int]]], suffix: str, odd: int) -> Callable[[Path], Miniature]:
    def make(path: Path) -> Miniature:
        photos, masks, splits = {}, {}, {}
        maps = iter(zip(stored, OURS, strict=True))
        for split, frames in FRAMES.items():
            splits[split] = {}
            for frame in frames:
                rows, splits[split][frame] = next(maps)
                city = frame.split("_")[0]
                masks[frame] = draw_mask(path / "gtFine" / split / city / f"{frame}_gtFine_{suffix}.png", rows)
                photo = path / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png"
                photos[frame] = draw_photo(photo, (len(rows), len(rows[0])), len(photos))

        def spoil() -> Sequence[str]:
            draw_mask(masks["lindau_000000_000019"], [[odd, odd, odd, 0]])
            return masks["lindau_000000_000019"].name, f"{odd} (3 pixels)"

        return Miniature("cityscapes", path, splits, photos, {0: "road", 13: "car", 18: "bicycle"}, spoil)

    return make


VARIANTS = {"": maker(DRAWN, "labelIds", 34), "converted": maker(TRAINED, "labelTrainIds", 19)}
