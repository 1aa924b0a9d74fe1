from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kappaseg_core.label_counts import folds_of, label_counts
from kappaseg_core.ranking import IGNORE
from kappaseg_core.structures import Scene

IDS = st.lists(st.text("abé/", min_size=1, max_size=4), min_size=1, max_size=25, unique=True)


class Scenes:
    """Three label maps of different sizes; the images are not looked at."""

    class_names, image_ids, split = ("wall", "floor", "lamp"), ("a", "b", "c"), "train"
    masks: tuple[list[list[int]], ...] = ([[0, 0, 2], [IGNORE, 0, 2]], [[IGNORE]], [[1], [1]])

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Scene:
        mask = np.array(self.masks[index], np.int32)
        return Scene(np.zeros((3, *mask.shape), np.uint8), mask, self.image_ids[index])


@pytest.fixture
def scenes() -> Any:
    return Scenes()


def test_pixels_are_counted_per_image_and_label(scenes: Any) -> None:
    counts = label_counts(scenes)
    assert counts.tolist() == [[3, 0, 2], [0, 0, 0], [0, 2, 0]]
    assert counts.dtype == np.int32


def test_only_the_chosen_images_are_counted_in_the_order_asked_for(scenes: Any) -> None:
    assert label_counts(scenes, [2, 0]).tolist() == [[0, 2, 0], [3, 0, 2]]
    assert label_counts(scenes, []).shape == (0, 3)


@settings(deadline=None)
@given(ids=IDS, folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_folds_are_disjoint_and_of_equal_size(ids: list[str], folds: int, seed: int) -> None:
    fold = folds_of(ids, folds, seed)
    sizes = np.bincount(fold, minlength=folds)
    assert fold.shape == (len(ids),) and len(sizes) == folds and sizes.sum() == len(ids)
    assert sizes.max() - sizes.min() <= 1


@settings(deadline=None)
@given(ids=IDS, folds=st.integers(2, 6), data=st.data())
def test_the_fold_of_an_image_does_not_depend_on_the_order(ids: list[str], folds: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(ids))))
    fold = folds_of(ids, folds)
    assert folds_of([ids[i] for i in order], folds).tolist() == fold[order].tolist()
    assert folds_of(ids, folds).tolist() == fold.tolist()


def test_folds_are_the_same_on_every_machine() -> None:
    # written down once: caches are made with classifiers of these folds, and an interrupted run trains on with them
    assert folds_of([f"image {i}" for i in range(12)], 3).tolist() == [1, 0, 0, 2, 2, 1, 1, 2, 2, 0, 1, 0]


def test_another_seed_gives_other_folds() -> None:
    ids = [f"image {i}" for i in range(50)]
    assert folds_of(ids, 5, seed=1).tolist() != folds_of(ids, 5).tolist()
