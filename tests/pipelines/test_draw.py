"""Pictures of label maps and rankings."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kappaseg_core.ranking import IGNORE
from pipelines.draw import (
    LONG_SIDE,
    NEUTRAL,
    borders,
    channels_last,
    colour_of,
    labels_found,
    legend,
    nearest,
    overlay,
    paint,
    percent,
    photograph,
    ranking_bars,
    ranking_panel,
    side_by_side,
)
from pipelines.palette import palette

NAMES = ("sky", "tree", "road", "car", "dog")
H, W = 5, 7
MAP = np.array([[0] * 3 + [2] * 4] * 3 + [[4] * 6 + [IGNORE]] * 2, np.int32)
IMAGE = np.random.default_rng(0).integers(0, 256, (3, H, W), np.uint8)


def test_the_labels_of_a_map_come_by_area_and_no_label_last() -> None:
    found = labels_found(MAP, NAMES)
    assert [f.name for f in found] == ["road", "dog", "sky", "no label"]  # road and dog have 12 pixels each
    assert [round(f.share * H * W) for f in found] == [12, 12, 9, 2]
    assert sum(f.share for f in found) == pytest.approx(1)


def test_labels_of_equal_area_come_by_id() -> None:
    assert [f.label for f in labels_found(np.array([[3, 1], [1, 3]]), NAMES)] == [1, 3]


@pytest.mark.parametrize("label", [5, -2])
def test_a_label_outside_the_vocabulary_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=r"label map holds ids .*, wanted -1\.\.4"):
        labels_found(np.array([[0, label]]), NAMES)


def test_a_map_of_another_size_than_its_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted \[3, 7, 5\] as its label map has it"):
        paint(IMAGE, MAP.T)


@given(height=st.integers(4, 9), width=st.integers(4, 9))
def test_an_image_may_have_its_channels_first_or_last(height: int, width: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(channels_last(image.transpose(2, 0, 1), (height, width)), image)
    assert np.array_equal(channels_last(image, (height, width)), image)


@pytest.mark.parametrize("shape", [(H, W), (100, 333), (900, 1200), (768, 2000)])
def test_the_longer_side_of_a_picture_lies_within_its_bounds(shape: tuple[int, int]) -> None:
    picture = photograph(np.zeros((3, *shape), np.uint8))
    assert LONG_SIDE[0] <= max(picture.size) <= LONG_SIDE[1]
    assert picture.width / picture.height == pytest.approx(shape[1] / shape[0], rel=0.02)


def test_enlarging_a_map_invents_no_label_and_keeps_every_area() -> None:
    large = nearest(MAP, 3 * H, 4 * W)
    assert np.array_equal(large, MAP.repeat(3, 0).repeat(4, 1))


def test_borders_are_where_the_right_or_lower_neighbour_differs() -> None:
    edge = borders(MAP)
    assert edge[:3, 2].all() and edge[2].all() and edge[3:, 5].all()
    assert edge.sum() == 3 + W - 1 + 2


def test_inside_a_region_every_colour_is_grey_mixed_with_the_one_of_its_label() -> None:
    white = np.full((3, H, W), 255, np.uint8)
    pixels = np.asarray(paint(white, np.full((H, W), 3), opacity=0.6))
    wanted = 0.4 * 255 + 0.6 * np.array(colour_of(3))
    assert abs(pixels.astype(float) - wanted).max() <= 1


def test_pixels_without_a_label_are_painted_neutral() -> None:
    black = np.zeros((3, H, W), np.uint8)
    pixels = np.asarray(paint(black, np.full((H, W), IGNORE), opacity=1.0))
    assert (pixels == NEUTRAL).all()


def test_an_overlay_holds_the_map_and_its_legend() -> None:
    picture, key = paint(IMAGE, MAP), legend(labels_found(MAP, NAMES))
    both = overlay(IMAGE, MAP, NAMES)
    assert both.size == (picture.width + key.width, max(picture.height, key.height))
    assert np.array_equal(np.asarray(both)[: picture.height, : picture.width], np.asarray(picture))
    assert np.array_equal(np.asarray(both)[: key.height, picture.width :], np.asarray(key))


def test_a_legend_names_no_more_labels_than_asked_for() -> None:
    found = labels_found(np.arange(5)[None], NAMES)
    lines = [legend(found, rows=rows).height for rows in (1, 2, 3, 5, 6)]
    assert lines[0] < lines[1] < lines[2] < lines[3] == lines[4]


def test_panels_stand_side_by_side_and_none_is_resized() -> None:
    first, second = photograph(IMAGE), paint(IMAGE, MAP)
    row = side_by_side([("one", first), ("two", second)])
    assert row.width > first.width + second.width
    assert row.height > max(first.height, second.height)


def test_a_panel_leaves_out_ranks_that_do_not_fit() -> None:
    few, all_ = (
        np.asarray(ranking_panel(NAMES, [0.9] * 5, [True] * 5, labels=range(5), height=height)) for height in (60, 400)
    )

    def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
        return set(map(tuple, picture.reshape(-1, 3).tolist())) & {colour_of(label) for label in range(5)}

    assert colours(all_) == {colour_of(label) for label in range(5)}
    assert colours(few) == {colour_of(0), colour_of(1)}


def test_bars_are_as_long_as_their_scores_and_hollow_where_the_label_is_absent() -> None:
    drawn = ranking_bars(["sky & sea", "car"], [1.0, 0.25], [True, False], labels=[0, 3])
    rows = list(ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}g"))
    bars = [row.findall("{http://www.w3.org/2000/svg}rect")[1] for row in rows]
    assert float(bars[1].attrib["width"]) == pytest.approx(float(bars[0].attrib["width"]) / 4)
    assert [bar.attrib["fill"] for bar in bars] == ["#{:02x}{:02x}{:02x}".format(*colour_of(0)), "none"]
    texts = [[text.text for text in row.iter("{http://www.w3.org/2000/svg}text")] for row in rows]
    assert texts == [["1", "sky & sea", "1.00"], ["2", "car", "0.25", "absent"]]


def test_a_small_share_never_shows_as_zero() -> None:
    assert [percent(share) for share in (0.0, 1e-9, 0.001, 0.5, 1.0)] == [
        "0.0 %",
        "< 0.1 %",
        "0.1 %",
        "50.0 %",
        "100.0 %",
    ]


def test_a_label_has_the_same_colour_in_every_vocabulary() -> None:
    assert np.array_equal(palette(7), palette(600)[:7])
    assert np.array_equal(palette(512), palette(600)[:512])


def test_no_two_labels_share_a_colour_and_none_is_neutral() -> None:
    colours = palette(1300)
    assert len(np.unique(colours, axis=0)) == 1300
    assert abs(colours.astype(int) - np.array(NEUTRAL)).max(1).min() > 8


def test_the_first_labels_are_easy_to_tell_apart() -> None:
    colours = palette(16).astype(float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e9 * np.eye(16)
    assert distance.min() > 60
