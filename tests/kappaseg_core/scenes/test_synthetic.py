"""Synthetic scenes: the same wherever they are drawn, with the frequencies and company that were announced."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.synthetic import Options, SyntheticScenes
from kappaseg_core.scenes.synthetic_world import make_world

SMALL = Options(classes=12, train=20, val=10, size=32)


def digest(scenes: SyntheticScenes, index: int) -> tuple[str, bytes, bytes]:
    scene = scenes[index]
    return scene.image_id, scene.image.tobytes(), scene.mask.tobytes()


# One place, one scene


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)))
def test_scenes_do_not_depend_on_the_order_they_are_read_in(order: list[int]) -> None:
    scenes = SyntheticScenes("train", SMALL)
    found = {index: digest(scenes, index) for index in order}
    assert [found[index] for index in range(6)] == [digest(SyntheticScenes("train", SMALL), i) for i in range(6)]


@pytest.mark.slow
def test_another_process_draws_the_same_scenes() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.starmap(digest, [(SyntheticScenes("val", SMALL), index) for index in (3, 0)])
    assert found == [digest(SyntheticScenes("val", SMALL), index) for index in (3, 0)]


def test_the_labels_of_the_first_scenes_stay_what_they_were() -> None:
    """Drawn by this module, VERSION 1, numpy 2.4 (PCG64, whose streams numpy keeps). New numbers need a new VERSION."""
    scenes = SyntheticScenes("train", Options(classes=64))
    assert [(kind, labels.tolist()) for kind, labels in map(scenes.drawn, range(2))] == FIRST


FIRST = [(3, [23, 15, 14, 29, 57, 0]), (6, [20, 60, 15, 28, 5, 49, 38])]


def test_seed_split_and_index_each_change_the_scene() -> None:
    here = SyntheticScenes("train", SMALL)
    others = [
        digest(SyntheticScenes("val", SMALL), 0),
        digest(here, 1),
        digest(SyntheticScenes("train", replace(SMALL, seed=1)), 0),
    ]
    assert digest(here, 0)[1] not in [image for _, image, _ in others]
    assert digest(here, 0)[2] not in [mask for _, _, mask in others]


def test_no_validation_scene_is_a_training_scene() -> None:
    train, val = (SyntheticScenes(split, SMALL) for split in ("train", "val"))
    assert not set(train.image_ids) & set(val.image_ids)
    pictures = {digest(train, index)[1] for index in range(len(train))}
    assert len(pictures) == len(train)
    assert not pictures & {digest(val, index)[1] for index in range(len(val))}


def test_more_images_leave_the_first_ones_as_they_are() -> None:
    more = SyntheticScenes("train", replace(SMALL, train=25, val=3))
    assert digest(more, 19) == digest(SyntheticScenes("train", SMALL), 19)


def test_a_scene_is_the_same_picture_at_twice_the_size() -> None:
    options = replace(SMALL, size=64, ignore=0.0, noise=0.0)
    small, large = (SyntheticScenes("train", replace(options, size=size)) for size in (64, 128))
    for index in range(5):
        assert small.drawn(index)[1].tolist() == large.drawn(index)[1].tolist()
        one, other = small[index], large[index]
        assert (one.mask == other.mask[::2, ::2]).mean() > 0.95
        halved = other.image.reshape(3, 64, 2, 64, 2).mean((2, 4))
        assert np.abs(halved - one.image).mean() < 10  # of 255; scenes differ by far more:
        assert np.abs(halved - small[index + 5].image).mean() > 20


# Masks


def test_the_share_without_a_label_is_the_one_asked_for() -> None:
    for share in (0.0, 0.03, 0.5):
        scenes = SyntheticScenes("train", replace(SMALL, ignore=share))
        assert (scenes[0].mask == IGNORE).sum() == round(share * 32 * 32)


def test_labels_of_a_scene_come_from_the_list_of_its_type() -> None:
    scenes = SyntheticScenes("train", replace(SMALL, classes=80))
    for index in range(len(scenes)):
        kind, drawn = scenes.drawn(index)
        listed = set(scenes.world.labels[kind].tolist())
        shown = set(np.unique(scenes[index].mask).tolist()) - {IGNORE}
        assert shown <= set(drawn.tolist()) <= listed
        assert len(set(drawn.tolist())) == len(drawn)
    assert len(listed) < 80


# The world


@pytest.mark.parametrize("classes", [2, 3, 5, 64, 1000, 5000])
def test_every_number_of_labels_makes_a_world_that_shows_all_of_them(classes: int) -> None:
    world = make_world(0, classes, 1.0)
    assert sorted(set(world.labels.ravel().tolist())) == list(range(classes))
    assert all(len(set(row)) == len(row) for row in world.labels.tolist())
    assert np.allclose(world.weights.sum(1), 1)
    assert world.types_up_to[-1] == 1


@pytest.mark.parametrize("classes", [2, 5000])
def test_scenes_with_few_and_with_many_labels_can_be_read(classes: int) -> None:
    scenes = SyntheticScenes("train", replace(SMALL, classes=classes))
    assert len(scenes.class_names) == len(set(scenes.class_names)) == classes
    for index in range(5):
        mask = scenes[index].mask
        assert mask.min() >= IGNORE and mask.max() < classes


@pytest.mark.parametrize(("classes", "zipf"), [(12, 1.0), (64, 0.5), (512, 1.5)])
def test_one_draw_shows_each_label_with_its_zipf_mandelbrot_frequency(classes: int, zipf: float) -> None:
    """p(r) ∝ (r + 2.7)^-zipf, and Σ over types of P(type)·P(label | type) gives it exactly."""
    world = make_world(3, classes, zipf)
    wanted = np.array([(rank + 2.7) ** -zipf for rank in range(1, classes + 1)])
    assert np.allclose(np.sort(world.popularity)[::-1], wanted / wanted.sum())
    types = np.diff(world.types_up_to, prepend=0)
    drawn = np.zeros(classes)
    np.add.at(drawn, world.labels, types[:, None] * world.weights)
    assert np.allclose(drawn, world.popularity)


def test_label_frequencies_fall_like_the_weights_and_not_with_the_id() -> None:
    scenes = SyntheticScenes("train", replace(SMALL, classes=64, train=1500))
    counts = np.zeros(64)
    for index in range(len(scenes)):
        counts[scenes.drawn(index)[1]] += 1
    by_rank = counts[np.argsort(-scenes.world.popularity)]
    quarters = by_rank.reshape(4, 16).sum(1)
    assert (np.diff(quarters) < 0).all()
    assert by_rank[0] / len(scenes) == pytest.approx(0.46, abs=0.06)  # the figure in synthetic.py
    assert abs(np.corrcoef(np.arange(64), counts)[0, 1]) < 0.4


def test_a_zipf_of_zero_makes_all_labels_equally_frequent() -> None:
    assert np.allclose(make_world(0, 50, 0.0).popularity, 1 / 50)


# The border


def test_the_fingerprint_knows_every_option_that_changes_the_split() -> None:
    def of(**changes: float) -> str:
        return SyntheticScenes("train", replace(SMALL, **changes)).fingerprint()

    changes = {"classes": 13, "train": 21, "size": 33, "seed": 1, "zipf": 0.5, "noise": 0.1, "ignore": 0.1}
    prints = [of(**{name: value}) for name, value in changes.items()]
    assert len({of(), SyntheticScenes("val", SMALL).fingerprint(), *prints}) == len(changes) + 2
    assert of(val=99) == of()


def test_indices_end_where_the_scenes_end() -> None:
    scenes = SyntheticScenes("val", SMALL)
    assert digest(scenes, -1) == digest(scenes, 9)
    with pytest.raises(IndexError):
        scenes[10]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("classes", 1, "data.options.classes = 1, wanted at least 2"),
        ("size", 31, "data.options.size = 31, wanted at least 32"),
        ("train", 0, "data.options.train = 0, wanted at least 1"),
        ("noise", 1.0, "data.options.noise = 1.0, wanted at least 0 and below 1.0"),
        ("zipf", -0.1, "data.options.zipf = -0.1, wanted at least 0 and below 3.0"),
        ("clases", 5, "unknown setting data.options.clases; did you mean classes?"),
    ],
)
def test_a_bad_option_is_named_with_its_value(name: str, value: float, words: str) -> None:
    with pytest.raises(UserError) as error:
        open_scenes(DataConfig(kind="synthetic", options={name: value}), "train")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_split_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="split 'test' is not there; synthetic scenes have the splits train and val"):
        open_scenes(DataConfig(kind="synthetic"), "test")
