"""Annotations of COCO and LVIS as maps of categories."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as masks

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published.painting import paint
from kappaseg_core.scenes.published.run_lengths import mask_of, require_whole, runs_of


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(category: int, segmentation: Any) -> dict[str, Any]:
    return {"id": 5, "category_id": category, "segmentation": segmentation}


def test_run_lengths_are_read_as_coco_wrote_them() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(1, 60, 2)
        mask = np.asfortranarray(random.random((height, width)) < random.random() ** 4).astype(np.uint8)
        runs = runs_of(masks.encode(mask)["counts"])
        require_whole(runs, height, width)
        assert np.array_equal(mask_of(runs, height, width), mask)


@pytest.mark.parametrize("text", [b"", b"0P", b"!0", b"\xff"])
def test_a_damaged_text_of_run_lengths_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        runs_of(text)


def test_the_first_annotation_wins_and_uncovered_pixels_are_zero() -> None:
    drawn = [
        annotation(1203, rectangle(0, 0, 2, 2)),
        annotation(7, {"size": [3, 4], "counts": [0, 6, 6]}),  # the first two columns
        annotation(300, rectangle(1, 0, 4, 1)),
        annotation(1203, rectangle(0, 0, 4, 1)),
    ]
    assert paint(drawn, 3, 4, "file").tolist() == [[1203, 1203, 300, 300], [1203, 1203, 0, 0], [7, 7, 0, 0]]


def test_an_annotation_of_several_polygons_covers_all_of_them() -> None:
    parts = [*rectangle(0, 0, 1, 1), *rectangle(2, 0, 3, 1)]
    assert paint([annotation(4, parts)], 1, 4, "file").tolist() == [[4, 0, 4, 0]]


def test_merging_neighbours_of_one_category_changes_nothing() -> None:
    random = np.random.default_rng(1)
    for _ in range(30):
        boxes = [(*random.integers(0, 6, 2), *random.integers(6, 12, 2)) for _ in range(8)]
        categories = random.integers(1, 4, 8).tolist()
        drawn = [annotation(category, rectangle(*box)) for category, box in zip(categories, boxes, strict=True)]
        wanted = np.zeros((11, 13), int)
        for category, (left, top, right, bottom) in zip(categories, boxes, strict=True):
            part = wanted[top:bottom, left:right]
            part[part == 0] = category
        assert np.array_equal(paint(drawn, 11, 13, "file"), wanted)


@pytest.mark.parametrize(
    "segmentation, what",
    [
        ([], "list index out of range"),
        ("polygon", "not supported"),
        (None, "not supported"),
        ([[0, 0, 1, 1, "x", 2]], "could not convert"),
        ({"counts": "0"}, "size"),
        ({"size": [2, 3], "counts": [6]}, "it is of size [2, 3] in an image of 3x2"),
        ({"size": [3, 2], "counts": [1, 2]}, "cover 3 pixels of 3x2"),
        ({"size": [3, 2], "counts": [7, -1]}, "cover 6 pixels"),
        ({"size": [3, 2], "counts": "00"}, "cover 0 pixels"),
        ({"size": [3, 2], "counts": ""}, "damaged"),
    ],
)
def test_a_segmentation_that_cannot_be_read_is_one_line_with_its_annotation(segmentation: Any, what: str) -> None:
    with pytest.raises(UserError) as caught:
        paint([annotation(1, segmentation)], 3, 2, "stuff.json")
    line = str(caught.value)
    assert line.startswith("stuff.json: the segmentation of annotation 5 cannot be read (") and what in line
    assert "\n" not in line


def test_without_pycocotools_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'kappaseg\[data\]'"):
        paint([annotation(1, rectangle(0, 0, 1, 1))], 3, 2, "file")
