"""What a folder of transformers says about images."""

from __future__ import annotations

from typing import Any

import pytest

from stage2_segmentation.weights.hf.images import HALVES, IMAGENET, colours, side_of


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [
        ({}, [0.5] * 3, [0.5] * 3),
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        ({"image_mean": 0.25, "image_std": 0.75}, [0.25] * 3, [0.75] * 3),
        ({"image_mean": [0.1, 0.2, 0.3], "do_normalize": False}, [0.0] * 3, [1.0] * 3),
    ],
)
def test_colours_are_those_of_the_folder_or_else_published(given: Any, mean: list[float], std: list[float]) -> None:
    assert colours(given, HALVES) == {"backbone.mean": mean, "backbone.std": std}
    assert colours({}, IMAGENET)["backbone.mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("size", "side"),
    [
        (640, 640), ([512, 640], 512), ({"height": 512, "width": 640}, 512), (None, None),
        ({"shortest_edge": 640, "longest_edge": 2560}, 640), ({"longest_edge": 2560}, None),
    ],
)  # fmt: skip
def test_the_shorter_side_is_found_in_every_form_of_a_size(size: Any, side: int | None) -> None:
    assert side_of(size) == side
