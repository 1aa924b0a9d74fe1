"""Segments of whole images and their quality, of a network whose queries are known by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import IGNORE, PADDING_LOGIT, OwnRanking, Ranking
from kappaseg_core.segments import CROWD, Segments
from kappaseg_core.structures import Scene
from stage2_segmentation.config import InferenceConfig, SegmentsConfig
from stage2_segmentation.evaluate import Evaluation, evaluate_model, segment_image
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.objects import refuse_several_views
from stage2_segmentation.sources.complete import Complete
from stage2_segmentation.structures import QueryPrediction, Seen

K, NUMBERS = 4, 3
THINGS = (False, True, False, True)
HERE, AS_IT_IS = Placement(), InferenceConfig(short_side=None)
SURE = 20.0  # a logit


class Painter(nn.Module):
    """A query for every label and number, whose mask is where the red channel says the label and the green one the
    number (0.1 per label or number). It is "no object" where there is no such pixel, or the label is not kept."""

    cell, branch, learns_objects = 1, None, True
    backbone = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1))

    def look(self, images: Tensor) -> Seen:
        return Seen(images, label_logits=self.scores)

    scores: Tensor | None = None

    def segment(self, seen: Seen, ranking: Ranking) -> QueryPrediction:
        labels, numbers = seen.features[:, :2].round().unbind(1)
        classes, masks = [], []
        for label in range(K):
            for number in range(NUMBERS):
                mask = (labels == label) & (numbers == number)
                at = (ranking.labels == label) & ranking.valid & mask.any((1, 2))[:, None]
                logits = torch.where(at, SURE, 0.0).masked_fill(~ranking.valid, PADDING_LOGIT)
                classes.append(torch.cat([logits, torch.full((len(logits), 1), SURE / 2)], 1))
                masks.append(torch.where(mask, SURE, -SURE))
        return QueryPrediction(torch.stack(classes, 1), torch.stack(masks, 1))


class Shapes:
    """Scenes from pairs of (label, number) maps, each [H, W, 2]: what the network reads, and the truth."""

    split, class_names, things = "val", tuple("abcd"), THINGS

    def __init__(self, *pairs: tuple[Any, Any]) -> None:
        self.pairs = [(np.array(read), np.array(truth, np.int32)) for read, truth in pairs]
        self.image_ids = tuple(f"i{n}" for n in range(len(pairs)))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Scene:
        mask, instances = np.moveaxis(self.pairs[index][1], -1, 0)
        return Scene(self.image(index), mask, self.image_ids[index], instances)

    def image(self, index: int) -> np.ndarray:
        red, green = np.moveaxis((self.pairs[index][0] * 25.5).round().astype(np.uint8), -1, 0)
        return np.stack([red, green, red])

    def fingerprint(self) -> str:
        return "shapes"


A, B1, B2, C, D1 = (0, 0), (1, 1), (1, 2), (2, 0), (3, 1)
NOTHING, CROWD_OF_B = (IGNORE, 0), (1, CROWD)
STREET = [[A, A, B1, B2], [A, A, B1, B2], [C, C, D1, D1]]


def measured(scenes: Shapes, here: Placement = HERE, model: Painter | None = None, **more: Any) -> Evaluation:
    network = cast(SegmentationModel, model or Painter())
    return evaluate_model(network, scenes, Complete(K), AS_IT_IS, here, **more)


def test_a_perfect_network_has_a_panoptic_quality_of_one() -> None:
    found = measured(Shapes((STREET, STREET)))
    assert found.panoptic == {
        **{name + group: 1.0 for name in ("PQ", "SQ", "RQ") for group in ("", "_things", "_stuff")},
        "labels": 4, "labels_things": 2, "labels_stuff": 2, "found": 5,
    }  # fmt: skip
    assert found.mIoU == 1.0 and found.class_PQ == dict.fromkeys("abcd", 1.0)
    assert found.numbers()["PQ_things"] == 1.0 and "labels" not in found.numbers()


def test_two_objects_that_are_found_as_one_cost_quality_and_no_miou() -> None:
    """b: both objects of 2 pixels in one segment of 4, IoU 1/2 with either: no match, one extra, two missed."""
    one = [[A, A, B1, B1], [A, A, B1, B1], [C, C, D1, D1]]
    found = measured(Shapes((one, STREET)))
    assert found.mIoU == 1.0
    assert found.class_PQ == {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}
    assert found.panoptic is not None
    assert found.panoptic["PQ"] == 3 / 4 and found.panoptic["PQ_things"] == 1 / 2 and found.panoptic["PQ_stuff"] == 1


def test_void_and_crowds_are_as_in_the_quality_of_files() -> None:
    """What is found on a crowd of its label is no extra; void pixels count for nothing. d is nowhere."""
    read, truth = [[A, A, B1, C]], [[A, NOTHING, CROWD_OF_B, C]]
    found = measured(Shapes((read, truth)))
    assert found.class_PQ == {"a": 1.0, "b": None, "c": 1.0, "d": None}
    assert found.panoptic is not None and found.panoptic["PQ_things"] is None and found.panoptic["PQ"] == 1
    assert "PQ_things" not in found.numbers()


class Half(Placement):
    """One of two workers in one process: the first one adds what the second one's sums were, in their order."""

    others: list[Tensor]

    def total(self, value: Tensor) -> Tensor:
        if self.worker:
            self.others.append(value)
            return value
        return value + self.others.pop(0)


def test_the_quality_of_two_workers_is_that_of_one() -> None:
    wrong = [[A, A, B1, B2], [A, A, B1, B1], [C, C, C, D1]]
    scenes = Shapes((STREET, STREET), (wrong, STREET), (STREET, wrong))
    kept: list[str] = []
    first, second = (Half(worker=worker, world=2) for worker in (0, 1))
    others: list[Tensor] = []
    for half in (second, first):
        object.__setattr__(half, "others", others)
        found = measured(scenes, half, keep=lambda image_id, segments: kept.append(image_id))
    assert found == measured(scenes) and not others
    assert found.panoptic is not None and 0 < cast(float, found.panoptic["PQ"]) < 1
    assert kept == ["i1", "i0", "i2"]  # each by its worker, once


def test_segments_come_at_the_size_of_an_image_that_was_resized_and_of_the_labels_of_its_ranking() -> None:
    """5 x 9 pixels seen at shorter side 10; b is not kept."""
    left, right = [A] * 4, [B1] * 2 + [D1] * 3
    image = torch.from_numpy(Shapes(([left + right] * 5, [left + right] * 5)).image(0))
    ranking = Ranking(torch.tensor([[3, 0]]), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    network = cast(SegmentationModel, Painter())
    found = segment_image(network, image, ranking, replace(AS_IT_IS, short_side=10), HERE, THINGS).segments
    assert found is not None and found.labels.tolist() == [0, 3]
    assert found.map.shape == (5, 9) and found.map[2, [0, 3, 4, 5, 8]].tolist() == [1, 1, 0, 0, 2]


def test_a_network_that_ranks_for_itself_ranks_once_for_map_and_segments() -> None:
    network = Painter()
    network.scores = torch.tensor([[0.1, 0.9, 0.2, 0.8]])
    image = torch.from_numpy(Shapes((STREET, STREET)).image(0))
    found = segment_image(cast(SegmentationModel, network), image, OwnRanking(2), AS_IT_IS, HERE, THINGS)
    assert found.ranking.labels.tolist() == [[1, 3]]
    assert found.segments is not None and found.segments.labels.tolist() == [1, 1, 3]
    assert set(found.label_map.unique().tolist()) <= {1, 3}


def test_the_rule_of_segments_is_a_setting() -> None:
    """The best probability among κ + 1 = 5 is e^20 / (e^20 + e^10 + 3) = 0.99995."""
    image = torch.from_numpy(Shapes((STREET, STREET)).image(0))

    def segments(rule: SegmentsConfig) -> Segments:
        plan = replace(AS_IT_IS, segments=rule)
        ranking = Complete(K)(["i"], None)
        found = segment_image(cast(SegmentationModel, Painter()), image, ranking, plan, HERE, THINGS).segments
        assert found is not None
        return found

    assert len(segments(SegmentsConfig())) == 5
    probability = 1 / (1 + math.exp(-SURE / 2) + 3 * math.exp(-SURE))
    assert len(segments(SegmentsConfig(score=probability - 1e-5))) == 5
    assert len(segments(SegmentsConfig(score=probability + 1e-5))) == 0


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        (InferenceConfig(mode="slide"), "inference.mode = slide, but .* set --inference.mode whole"),
        (InferenceConfig(scales=(0.5, 1.0)), r"inference.scales = \[0.5, 1.0\], but .* set --inference.scales \[1.0\]"),
        (InferenceConfig(flip=True), "inference.flip = true, but .* set --inference.flip false"),
    ],
)
def test_windows_and_several_views_are_refused_by_name(plan: InferenceConfig, wanted: str) -> None:
    refuse_several_views(AS_IT_IS)
    with pytest.raises(UserError, match=wanted):
        refuse_several_views(plan)
