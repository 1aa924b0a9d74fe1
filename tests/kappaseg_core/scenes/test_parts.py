"""Parts of a split: for data without a validation split, and to choose settings on images that are not reported."""

from __future__ import annotations

import numpy as np
import pytest

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.scenes import open_scenes

DATA = DataConfig(kind="synthetic", options={"classes": 4, "train": 11, "val": 2, "size": 32})


def test_the_parts_of_a_split_are_its_images_once() -> None:
    whole = open_scenes(DATA, "train")
    parts = [open_scenes(DATA, f"train@{fold}of3") for fold in range(3)]
    assert sorted(len(part) for part in parts) == [3, 4, 4]
    assert sorted(i for part in parts for i in part.image_ids) == sorted(whole.image_ids)
    for fold, part in enumerate(parts):
        rest = open_scenes(DATA, f"train@not{fold}of3")
        assert set(rest.image_ids) == set(whole.image_ids) - set(part.image_ids)
        assert [i for i in whole.image_ids if i in rest.image_ids] == list(rest.image_ids)


def test_a_part_gives_the_scenes_of_the_whole() -> None:
    whole, part = open_scenes(DATA, "train"), open_scenes(DATA, "train@1of3")
    assert (part.split, part.class_names) == ("train@1of3", whole.class_names)
    for index, image_id in enumerate(part.image_ids):
        scene, same = part[index], whole[whole.image_ids.index(image_id)]
        assert scene.image_id == image_id
        assert np.array_equal(scene.image, same.image) and np.array_equal(scene.mask, same.mask)
        assert np.array_equal(part.image(index), same.image)
    prints = {open_scenes(DATA, f"train{end}").fingerprint() for end in ("", "@0of3", "@1of3", "@not1of3")}
    assert len(prints) == 4


@pytest.mark.parametrize("split", ["train@3of3", "train@0of1", "train@5of2"])
def test_a_part_that_there_is_not_is_refused(split: str) -> None:
    with pytest.raises(UserError, match=f"split '{split}': wanted NAME@IofN"):
        open_scenes(DATA, split)


def test_other_names_with_an_at_sign_are_names() -> None:
    with pytest.raises(UserError, match="split 'train@1'"):
        open_scenes(DATA, "train@1")
