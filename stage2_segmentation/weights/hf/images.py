"""What a folder of transformers says about images: their size, and how their colours are normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def colours(preprocessing: Mapping[str, Any], published: tuple[list[float], list[float]]) -> dict[str, Any]:
    """backbone.mean and backbone.std of the folder, or the published ones where it does not say them."""
    if not preprocessing.get("do_normalize", True):
        return {"backbone.mean": [0.0] * 3, "backbone.std": [1.0] * 3}
    mean, std = preprocessing.get("image_mean", published[0]), preprocessing.get("image_std", published[1])
    return {"backbone.mean": of_rgb(mean), "backbone.std": of_rgb(std)}


def of_rgb(value: Any) -> list[float]:
    """One number for each colour, where it is one for all."""
    return [float(number) for number in value] if isinstance(value, list | tuple) else [float(value)] * 3


def side_of(size: Any) -> int | None:
    """Pixels of the shorter side in one of the forms that a size has there; None where it says nothing of the kind."""
    if isinstance(size, int):
        return size
    if isinstance(size, list | tuple) and size:
        return min(size)
    if isinstance(size, Mapping):
        sides = [size[name] for name in ("shortest_edge", "height", "width") if isinstance(size.get(name), int)]
        return min(sides, default=None)
    return None


def whole(side: int) -> dict[str, Any]:
    """Whole images with that shorter side, crops as large. transformers itself makes every image a square."""
    return {
        "inference.mode": "whole", "inference.short_side": side, "augment.short_side": side, "augment.crop": side,
    }  # fmt: skip


def windows(side: int) -> dict[str, Any]:
    """Windows of that side that overlap by a third, on images whose shorter side is as long (published for BEiT)."""
    return {
        "inference.mode": "slide", "inference.short_side": side, "inference.window": side,
        "inference.stride": 2 * side // 3, "augment.short_side": side, "augment.crop": side,
    }  # fmt: skip
