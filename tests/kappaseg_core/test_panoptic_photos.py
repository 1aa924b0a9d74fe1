"""Panoptic files and quality on 200 photographs of COCO-Stuff with 171 classes, where they are at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.detection import PanopticQuality

from kappaseg_core.panoptic_quality import PanopticSums
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.panoptic_files import Annotations, Categories, read_annotations
from kappaseg_core.scenes.panoptic_writing import make_folders, write_annotations, write_segments
from kappaseg_core.segments import VOID, Segments, segments_of

pytestmark = pytest.mark.slow

SKY = 145


@dataclass(frozen=True)
class Photos:
    """masks: i64 [H, W] as they came.   written: the same images after they went through COCO's files."""

    masks: list[Tensor]
    written: Annotations

    def truths(self) -> Iterator[Segments]:
        return (self.written[index].segments() for index in range(len(self.written)))

    @property
    def things(self) -> Tensor:
        return torch.tensor(self.written.categories.things)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    shared = Path(os.environ.get("KAPPASEG_SHARED", Path(__file__).parents[2] / ".." / "shared"))
    folder, to = shared / "data" / "cocostuff171_mini", tmp_path_factory.mktemp("panoptic")
    if not (folder / "panoptic.json").exists():
        pytest.skip(f"{folder / 'panoptic.json'} is absent; set KAPPASEG_SHARED to the folder that holds data/")
    listed = json.loads((folder / "classes.json").read_text())["classes"]
    names, things, ids = zip(
        *((entry["name"], bool(entry["isthing"]), entry["coco_id"]) for entry in listed), strict=True
    )
    categories = Categories(names, things, ids)
    make_folders(to)
    masks, annotations = [], []
    for image in json.loads((folder / "panoptic.json").read_text()):
        numbers, mask = (np.array(Image.open(folder / kind / f"{image['image']}.png")).astype(np.int32)
                         for kind in ("panoptic", "masks"))  # fmt: skip
        infos = image["segments"]
        assert [info["id"] for info in infos] == list(range(1, len(infos) + 1))
        labels = torch.tensor([info["class_id"] for info in infos])
        crowd = torch.tensor([bool(info["iscrowd"]) for info in infos])
        segments = Segments(torch.from_numpy(numbers), labels, crowd)
        annotations.append(write_segments(to, image["image"], segments, categories))
        masks.append(torch.from_numpy(np.where(mask == 255, IGNORE, mask)).long())
    return Photos(masks, read_annotations(write_annotations(to, annotations, categories)))


def test_label_maps_of_the_segments_are_the_given_ones(photos: Photos) -> None:
    assert len(photos.written) == 200
    for truth, mask in zip(photos.truths(), photos.masks, strict=True):
        assert truth.label_map().equal(mask)


def test_label_and_instance_maps_give_the_segments_back(photos: Photos) -> None:
    for index, truth in enumerate(photos.truths()):
        again = segments_of(*map(torch.from_numpy, photos.written[index].maps()), photos.things)
        sums = PanopticSums(photos.written.categories.things)
        sums.update(again, truth)
        assert int(sums.matched.sum()) == int((~truth.crowd).sum()) and int(sums.extra.sum() + sums.missed.sum()) == 0
        assert len(again) == len(truth) and sums.iou.equal(sums.matched.double())


def test_what_is_lost_is_missed_and_all_else_matches(photos: Photos) -> None:
    """Every third segment is left out, so the PQ of a class is TP / (TP + FN / 2), by counting the list alone."""
    sums, kept, lost = PanopticSums(photos.written.categories.things), np.zeros(171), np.zeros(171)
    for truth in photos.truths():
        number = torch.where(truth.map % 3 == 0, VOID, truth.map)
        labels, crowd = truth.labels, truth.crowd
        there = torch.arange(1, len(labels) + 1) % 3 != 0
        renumber = torch.cat([torch.zeros(1, dtype=torch.int64), there.cumsum(0)]).int()
        sums.update(Segments(renumber[number.long()], labels[there], torch.zeros(int(there.sum())).bool()), truth)
        np.add.at(kept, labels[there & ~crowd].numpy(), 1)
        np.add.at(lost, labels[~there & ~crowd].numpy(), 1)
    seen = kept + lost > 0
    assert sums.summary()["PQ"] == pytest.approx((kept[seen] / (kept + lost / 2)[seen]).mean(), abs=1e-12)
    assert sums.summary()["SQ"] == (kept[seen] > 0).mean() and sums.summary()["labels"] == seen.sum()


def test_shifted_maps_are_as_good_as_torchmetrics_says(photos: Photos) -> None:
    """8 images without crowds, which it does not know, moved by some pixels; pixels without a label are called sky."""
    things = photos.written.categories.things
    groups = [{label for label, thing in enumerate(things) if thing == chosen} for chosen in (True, False)]
    theirs = PanopticQuality(*groups, allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=True)
    ours = PanopticSums(things)
    chosen = [index for index, truth in enumerate(photos.truths()) if not truth.crowd.any()][:8]
    for index in chosen:
        maps = [torch.from_numpy(found).long() for found in photos.written[index].maps()]
        moved = [found.roll((4, 7), (0, 1)) for found in maps]
        moved[1][moved[0] == IGNORE], moved[0][moved[0] == IGNORE] = 0, SKY
        ours.update(segments_of(*moved, photos.things), segments_of(*maps, photos.things))
        maps[0][maps[0] == IGNORE] = 171
        theirs.update(torch.stack(moved, -1)[None], torch.stack(maps, -1)[None])
    order = torch.tensor(sorted(groups[0]) + sorted(groups[1]))
    found = ours.quality()[:, order].nan_to_num().mT
    torch.testing.assert_close(found, theirs.compute().view(171, 3).double())
    assert 0.3 < float(ours.summary()["PQ"]) < 0.9
