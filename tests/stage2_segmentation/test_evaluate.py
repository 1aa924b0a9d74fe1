"""Measuring a split: numbers worked by hand, bounds, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import IGNORE, PADDING_LOGIT, Ranking, top_kappa
from kappaseg_core.structures import Scene
from stage2_segmentation.config import InferenceConfig, SourceConfig, Stage2Config
from stage2_segmentation.evaluate import (
    Evaluation,
    evaluate_model,
    evaluation_name,
    open_test_scenes,
    segment_image,
)
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.sources import Source
from stage2_segmentation.structures import Prediction, Seen

HERE = Placement()
AS_IT_IS = InferenceConfig(short_side=None)


class Reader(nn.Module):
    """Predicts what the red channel says (0.1 per label id), among the labels of the ranking: the nearest."""

    cell = 1
    backbone = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1))

    branch, learns_objects = None, False

    def look(self, images: Tensor) -> Seen:
        return Seen(images)

    def segment(self, seen: Seen, ranking: Ranking) -> Prediction:
        images = seen.features
        logits = -(images[:, :1] - ranking.labels[:, :, None, None]).abs()
        return Prediction(logits.masked_fill(~ranking.valid[:, :, None, None], PADDING_LOGIT))


class Tiny:
    """Scenes from (what the network reads, truth) pairs of label maps."""

    split = "val"

    def __init__(self, names: str, *pairs: tuple[Any, Any]) -> None:
        self.class_names = tuple(names)
        self.pairs = [(np.array(read), np.array(truth, np.int32)) for read, truth in pairs]
        self.image_ids = tuple(f"i{n}" for n in range(len(pairs)))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Scene:
        return Scene(self.image(index), self.pairs[index][1], self.image_ids[index])

    def image(self, index: int) -> np.ndarray:
        return np.repeat((self.pairs[index][0] * 25.5).round().astype(np.uint8)[None], 3, 0)

    def fingerprint(self) -> str:
        return "tiny"


class Fixed:
    """A source that gives each image its own list of labels."""

    fingerprint = "fixed"

    def __init__(self, **labels: list[int]) -> None:
        self.labels = labels

    def __call__(self, image_ids: Any, mask: Tensor | None, image: Tensor | None = None) -> Ranking:
        (name,) = image_ids
        labels = torch.tensor([self.labels[name]])
        return Ranking(labels, torch.ones(labels.shape), torch.ones_like(labels, dtype=torch.bool))


def measured(scenes: Tiny, source: Source, model: nn.Module | None = None) -> Evaluation:
    return evaluate_model(cast(SegmentationModel, model or Reader()), scenes, source, AS_IT_IS, HERE)


def test_two_tiny_images_by_hand() -> None:
    """Five labels a to e; d is nowhere, e is predicted once and in no truth. One pixel has no label.

    |     | kept    | predicted | truth     |
    | i0  | a b e   | a b / e b | a b / b b |
    | i1  | a c     | a c / a c | a c / b - |

    Right, predicted, true: a 2 3 2, b 2 2 4, c 1 1 1, e 0 1 0 (the pixel without a label does not count).
    """
    scenes = Tiny(
        "abcde", ([[0, 1], [4, 1]], [[0, 1], [1, 1]]), ([[0, 2], [0, 2]], [[0, 2], [1, IGNORE]])
    )  # fmt: skip
    found = measured(scenes, Fixed(i0=[0, 1, 4], i1=[0, 2]))
    iou = {"a": 2 / 3, "b": 2 / 4, "c": 1.0, "d": None, "e": 0.0}
    assert found.class_iou == pytest.approx(iou)
    assert found.images == 2
    assert found.mIoU == pytest.approx((2 / 3 + 1 / 2 + 1 + 0) / 4)
    assert found.mIoU_in_truth == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found.pixel_accuracy == pytest.approx(5 / 7)
    assert found.mean_class_accuracy == pytest.approx((1 + 2 / 4 + 1) / 3)
    assert found.zero_iou_share == 0
    assert found.pixel_coverage == pytest.approx(6 / 7)
    assert found.class_coverage == pytest.approx((1 + 3 / 4 + 1) / 3)
    assert found.mean_kappa == pytest.approx(2.5)
    assert found.absent == ("d", "e")


def test_a_label_that_is_not_kept_is_not_predicted() -> None:
    """The network reads b everywhere; only a and d may be said, and a is the nearer one."""
    scenes = Tiny("abcd", ([[1, 1, 1]], [[1, 1, 0]]))
    found = measured(scenes, Fixed(i0=[0, 3]))
    assert found.class_iou == pytest.approx({"a": 1 / 3, "b": 0.0, "c": None, "d": None})
    assert found.zero_iou_share == pytest.approx(1 / 2)


@pytest.mark.parametrize("seed", range(8))
def test_no_network_is_better_than_what_the_ranking_kept(seed: int) -> None:
    """mIoU ≤ class coverage and pixel accuracy ≤ pixel coverage, for networks from hopeless to nearly perfect."""
    generator = torch.Generator().manual_seed(seed)
    truths = torch.randint(IGNORE, 5, (4, 3, 5), generator=generator)
    wrong = torch.rand(4, 3, 5, generator=generator) < seed / 8
    said = torch.where(wrong, torch.randint(0, 5, (4, 3, 5), generator=generator), truths.clamp_min(0))
    kept = top_kappa(torch.rand(4, 5, generator=generator), 3).labels.tolist()
    scenes = Tiny("abcde", *zip(said.numpy(), truths.numpy(), strict=True))
    found = measured(scenes, Fixed(**{f"i{n}": labels for n, labels in enumerate(kept)}))
    assert found.mIoU <= found.class_coverage
    assert found.mIoU_in_truth <= found.class_coverage
    assert found.pixel_accuracy <= found.pixel_coverage < 1
    if seed == 0:  # all kept pixels are right
        assert found.pixel_accuracy == pytest.approx(found.pixel_coverage)


def test_the_numbers_are_the_scalars_without_counts() -> None:
    found = measured(Tiny("ab", ([[0]], [[0]])), Fixed(i0=[0]))
    assert set(found.numbers()) == {
        "mIoU", "mIoU_in_truth", "pixel_accuracy", "mean_class_accuracy", "zero_iou_share", "pixel_coverage",
        "image_coverage", "class_coverage", "mean_kappa",
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_maps_come_at_the_images_own_size(mode: Any) -> None:
    """A 5x9 image in two halves, seen at shorter side 10: the border stays where it was."""
    read = np.repeat(np.array([[0] * 4 + [2] * 5]), 5, 0)
    image = torch.from_numpy(Tiny("abc", (read, read)).image(0))
    inference = InferenceConfig(mode=mode, short_side=10, window=8, stride=4)
    ranking = Fixed(i=[0, 2])(["i"], None)
    found = segment_image(cast(SegmentationModel, Reader()), image, ranking, inference, HERE)
    assert found.label_map.tolist() == read.tolist()


def test_a_data_set_of_other_classes_is_refused() -> None:
    config = Stage2Config(data=DataConfig(kind="synthetic", options={"classes": 3, "train": 1, "val": 1}))
    names = open_test_scenes(config, ("label_0000", "label_0001", "label_0002")).class_names
    assert len(names) == 3
    with pytest.raises(
        UserError, match="another class list than synthetic: class 0 is 'cat' there and 'label_0000' here"
    ):
        open_test_scenes(config, ("cat", "dog"))


def test_the_file_name_says_what_differs_from_the_run() -> None:
    trained = Stage2Config(source=SourceConfig("cache", kappa=25))
    assert evaluation_name(trained, trained, "kappa25") == "evaluation-cache-kappa25.json"
    asked = replace(
        trained, source=SourceConfig("cache", test="oracle"), data=DataConfig(val="test/a b"),
        inference=InferenceConfig(flip=True, scales=(0.5, 1.0)),
    )  # fmt: skip
    name = evaluation_name(asked, trained)
    assert name == "evaluation-oracle-scales-(0.5,1.0)-flip-True-test_ab.json"
    assert Path(name).name == name
