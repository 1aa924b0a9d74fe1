"""COCO-style annotations → a map of category ids. Needs pycocotools, which comes with kappaseg[data]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published.run_lengths import mask_of, require_whole, runs_of


def paint(annotations: Sequence[dict[str, Any]], height: int, width: int, name: str) -> np.ndarray:
    """Category ids u16 [H, W] of one image's annotations; where they overlap, the first one wins; 0 = none.

    Each has category_id and segmentation: polygons, or run lengths (compressed or not). `name` stands in the UserError
    for one that cannot be read. Neighbours in the list that share a category are merged as run lengths and painted
    once: a crate of a hundred apples costs little more than one.
    """
    painted = np.zeros((height, width), np.uint16, order="F")  # as run lengths are: down the columns
    groups = [(category, list(group)) for category, group in groupby(annotations, _category)]
    masks = _masks()
    for category, group in reversed(groups):
        shapes = [shape for annotation in group for shape in _shapes(annotation, height, width, name)]
        np.copyto(painted, category, where=mask_of(runs_of(masks.merge(shapes)["counts"]), height, width))
    return painted


def require_pycocotools() -> None:
    """Raises UserError where it is missing, before anything long has run."""
    _masks()


def _masks() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(
            "annotations of COCO need pycocotools, which is missing; pip install 'kappaseg[data]'"
        ) from None
    return mask


def _category(annotation: dict[str, Any]) -> int:
    category: int = annotation["category_id"]
    return category


def _shapes(annotation: dict[str, Any], height: int, width: int, name: str) -> list[dict[str, Any]]:
    """Compressed run lengths of the annotation's parts, all of the image's size."""
    try:
        segmentation = annotation["segmentation"]
        if not isinstance(segmentation, dict):
            shapes: list[dict[str, Any]] = _masks().frPyObjects(segmentation, height, width)
            return shapes
        return [_compressed(segmentation, height, width)]
    except Exception as error:  # pycocotools raises Exception itself for what it does not know
        what = f"{name}: the segmentation of annotation {annotation.get('id')} cannot be read ({error!r})"
        raise UserError(f"{what}; download the file again") from None


def _compressed(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Run lengths of a file, which may be a list of numbers, as pycocotools takes them."""
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"it is of size {segmentation['size']} in an image of {height}x{width}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        require_whole(runs_of(counts.encode()), height, width)
        return segmentation
    require_whole(np.array(counts, np.int64), height, width)
    compressed: dict[str, Any] = _masks().frPyObjects(segmentation, height, width)
    return compressed
