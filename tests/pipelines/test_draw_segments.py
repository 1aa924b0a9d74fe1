"""Pictures of segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kappaseg_core.scenes.panoptic_files import Categories
from kappaseg_core.segments import VOID, Segments
from pipelines.draw import NEUTRAL, colour_of
from pipelines.draw_segments import OPACITY, colours_of, counted, paint_segments, segment_overlay

CATEGORIES = Categories(("sky", "car", "person"), (False, True, True), (0, 1, 2))
# sky, two cars, a crowd of people, a person, and a void column
NUMBERS = torch.tensor([[1, 2, 3, 4, 5, VOID]]).repeat_interleave(80, 1).repeat(300, 1).int()
SEGMENTS = Segments(NUMBERS, torch.tensor([0, 1, 1, 2, 2]), torch.tensor([False, False, False, True, False]))
BLACK = np.zeros((3, *NUMBERS.shape), np.uint8)


def painted() -> np.ndarray:
    """[300, 480, 3]: such an image is not resized."""
    return np.asarray(paint_segments(BLACK, SEGMENTS, CATEGORIES))


def test_objects_of_a_label_are_shades_of_its_colour_and_one_alone_has_it() -> None:
    colours = colours_of(SEGMENTS)
    assert tuple(colours[VOID]) == NEUTRAL and tuple(colours[1]) == colour_of(0)
    car = np.array(colour_of(1))
    dark, light = sorted(colours[2:4].tolist(), key=sum)
    assert dark == pytest.approx(0.7 * car) and light == pytest.approx(car + 0.4 * (255 - car))


def test_many_objects_all_differ_and_neighbours_in_number_clearly() -> None:
    colours = colours_of(Segments(torch.zeros(1, 1).int(), torch.ones(30).long(), torch.zeros(30).bool()))[1:]
    assert len(np.unique(colours, axis=0)) == 30
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 15  # in the order of numbers it would be 5


def test_inside_a_segment_is_its_colour_and_around_objects_a_white_line() -> None:
    pixels, colours = painted(), colours_of(SEGMENTS)
    for place, number in enumerate((1, 2, 3, 4, 5, VOID)):
        if number != 4:
            assert np.abs(pixels[100, 80 * place + 40] - OPACITY * colours[number]).max() <= 1
    white = (pixels[100] == 255).all(1).nonzero()[0]
    assert white.tolist() == [80 * edge - 1 for edge in range(1, 6)]


def test_a_crowd_has_stripes() -> None:
    inside = painted()[60:140, 260:300].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) == 2


def test_between_kinds_of_stuff_the_line_is_dark() -> None:
    two = Segments(NUMBERS.clamp(1, 2), torch.tensor([0, 1]), torch.zeros(2).bool())
    pixels = np.asarray(paint_segments(BLACK + 255, two, Categories(("a", "b"), (False, False), (0, 1))))
    assert not (pixels == 255).all(2).any() and len(np.unique(pixels.reshape(-1, 3), axis=0)) == 4


def test_the_legend_counts_objects_and_names_crowds() -> None:
    assert [(found.name, round(found.share, 3)) for found in counted(SEGMENTS, CATEGORIES)] == [
        ("car × 2", 0.333), ("person × 1 + crowd", 0.333), ("sky", 0.167), ("no label", 0.167),
    ]  # fmt: skip
    assert segment_overlay(BLACK, SEGMENTS, CATEGORIES).width > paint_segments(BLACK, SEGMENTS, CATEGORIES).width


def test_an_image_without_segments_can_be_drawn() -> None:
    none = Segments(NUMBERS * 0, torch.empty(0).long(), torch.empty(0).bool())
    assert [found.name for found in counted(none, CATEGORIES)] == ["no label"]
    assert (np.asarray(paint_segments(BLACK, none, CATEGORIES)) == [int(OPACITY * grey) for grey in NEUTRAL]).all()
