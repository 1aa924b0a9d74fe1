"""Training crops with objects: label map and instance map stay together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.synthetic import Options, SyntheticScenes
from kappaseg_core.segments import VOID
from stage2_segmentation.augment import TrainExamples
from stage2_segmentation.config import AugmentConfig
from stage2_segmentation.panoptic_augment import PanopticExamples

AUGMENT = AugmentConfig(short_side=40, scale=(0.5, 2.0), crop=33, max_share=0.75, flip=0.5, photometric=True)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SCENES = SyntheticScenes("train", Options(classes=9, train=4, size=48, objects=3))


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_is_the_one_that_label_maps_alone_get_and_its_segments_have_its_labels(seed: int) -> None:
    image, mask, image_id = TrainExamples(SCENES, AUGMENT, ZERO, ONE).make(seed, seed)
    found = PanopticExamples(SCENES, AUGMENT, ZERO, ONE).make(seed, seed)
    assert found.image.equal(image) and found.image_id == image_id
    assert found.mask.equal(torch.from_numpy(mask).long())
    assert found.segments.label_map().equal(found.mask)


def test_every_object_of_a_mirrored_scene_is_the_one_it_was() -> None:
    whole = replace(AUGMENT, short_side=48, scale=(1.0, 1.0), crop=48, max_share=1.0, photometric=False)
    plain, mirrored = (PanopticExamples(SCENES, replace(whole, flip=flip), ZERO, ONE) for flip in (0.0, 1.0))
    several = 0
    for index in range(len(SCENES)):
        one, other = plain.make(index, 0).segments, mirrored.make(index, 0).segments
        assert other.map.equal(one.map.flip(1)) and other.labels.equal(one.labels)
        several += len(one) > len(one.labels.unique())
    assert several  # objects of one thing


def test_padding_is_void() -> None:
    small = replace(AUGMENT, scale=(0.5, 0.5))
    found = PanopticExamples(SCENES, small, ZERO, ONE).make(0, 0)
    assert (found.mask[20:] == IGNORE).all() and (found.segments.map[20:] == VOID).all()
    assert not found.segments.crowd.any()


def test_scenes_without_objects_are_refused() -> None:
    with pytest.raises(UserError, match="has label maps and no instance maps"):
        PanopticExamples(SyntheticScenes("train", Options(classes=9)), AUGMENT, ZERO, ONE)
