"""The examples of CONTRIBUTING.md are true: written as files where they say, they work, and train together."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kappaseg_core.backbones import MapShape, backbone_kinds, build_backbone
from kappaseg_core.config import BackboneConfig, DataConfig, build
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE, PADDING_LOGIT, Ranking
from kappaseg_core.scenes import open_scenes, scene_kinds
from stage1_multilabel.config import RankConfig, Stage1Config
from stage1_multilabel.rank import rank_images
from stage1_multilabel.train import train_classifier
from stage2_segmentation.branches import branch_kinds
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.hosts import build_host, host_kinds
from stage2_segmentation.structures import Seen
from stage2_segmentation.train import train_segmentation

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
K, SIDE = 5, 19


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


SETTINGS: dict[str, Any] = {key: value for block in blocks("yaml") for key, value in yaml.safe_load(block).items()}


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example files, each in a second folder of the package that it belongs to."""
    names = []
    for block in blocks("python"):
        file = Path(block.splitlines()[0].removeprefix("# "))
        target = tmp_path / file
        target.parent.mkdir(parents=True)
        target.write_text(block, "utf-8")
        package = importlib.import_module(".".join(file.parent.parts))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(target.parent)])
        names.append(".".join(file.with_suffix("").parts))
    importlib.invalidate_caches()
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """Settings of the example's data set: K labels as coloured halves; a strip of each mask has no label."""
    random = np.random.default_rng(0)
    for split, images in (("train", 6), ("val", 2)):
        masks = np.zeros((images, SIDE, SIDE + 4), np.uint8)
        masks[:, 2:], masks[:, :, 11:] = random.integers(1, K + 1, (2, images, 1, 1))
        pictures = np.stack([40 * masks, 255 - 40 * masks, masks * 0], axis=1)
        np.savez(tmp_path / f"{split}.npz", images=pictures, masks=masks)
    return {**SETTINGS["data"], "root": str(tmp_path)}


def test_there_are_five_examples_each_with_its_settings() -> None:
    assert len(blocks("python")) == 5
    assert list(SETTINGS) == ["backbone", "data", "host", "labels", "source"]


def test_no_example_is_there_without_its_file() -> None:
    """Otherwise the tests below would test something else."""
    assert SETTINGS["backbone"]["kind"] not in backbone_kinds()
    assert SETTINGS["data"]["kind"] not in scene_kinds()
    assert SETTINGS["host"]["kind"] not in host_kinds()
    assert SETTINGS["labels"]["head"] not in branch_kinds()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|pipelines|kappaseg_core)/[\w/]+\.py)`", TEXT))))
def test_files_it_speaks_of_exist(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(("name", "path"), re.findall(r"`([A-Z]+)` of `([\w/]+\.py)`", TEXT))
def test_lists_it_speaks_of_exist(name: str, path: str) -> None:
    assert f"\n{name} = " in re.sub(r": [^=\n]+ = ", " = ", (ROOT / path).read_text("utf-8"))


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", TEXT, re.MULTILINE))
def test_commands_it_names_exist(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text("utf-8")


@pytest.mark.usefixtures("added")
def test_the_backbone_takes_images_of_any_size() -> None:
    backbone = build_backbone(build(BackboneConfig, SETTINGS["backbone"]))
    assert backbone(torch.zeros(2, 3, 17, 31)).shape == (2, 32, 3, 4)


@pytest.mark.usefixtures("added")
def test_the_data_set_converts_its_mask_values(data: dict[str, Any]) -> None:
    scenes = open_scenes(build(DataConfig, data), "train")
    assert len(scenes) == 6 and len(scenes.class_names) == K
    assert set(np.unique(scenes[0].mask)) <= {IGNORE, *range(K)}
    assert (scenes[0].mask[:2, :11] == IGNORE).all()


@pytest.mark.usefixtures("added")
def test_the_data_set_names_a_missing_file(data: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"test\.npz does not exist"):
        open_scenes(build(DataConfig, data), "test")


@pytest.mark.usefixtures("added")
def test_the_host_is_not_moved_by_padding() -> None:
    host = build_host(
        SETTINGS["host"]["kind"], num_classes=K, maps=[MapShape(4, 8)], kappa=3, options=SETTINGS["host"]["options"]
    )
    seen = Seen(torch.randn(1, 4, 2, 3))
    two = Ranking(torch.tensor([[3, 1]]), torch.tensor([[0.9, 0.2]]), torch.tensor([[True, True]]))
    padded = Ranking(*(torch.cat([part, part.new_zeros(1, 1)], dim=1) for part in (two.labels, two.scores, two.valid)))
    logits = host(seen, padded).rank_logits
    torch.testing.assert_close(logits[:, :2], host(seen, two).rank_logits)
    assert (logits[:, 2] == PADDING_LOGIT).all()


@pytest.mark.usefixtures("added")
def test_networks_train_with_all_of_them(tmp_path: Path, data: dict[str, Any]) -> None:
    shared = {"data": data, "backbone": SETTINGS["backbone"], "out": str(tmp_path / "out")}
    loop = {"steps": 2, "batch_size": 2}
    crop = {"short_side": SIDE, "scale": [1.0, 1.0], "crop": 16, "photometric": False}
    augment = {"image_size": 16, "randaugment_ops": 0, "cutout": 0}
    head = {"preset": "gap"}
    train_classifier(build(Stage1Config, {**shared, "head": head, "augment": augment, "loop": loop}))
    cache = rank_images(build(RankConfig, {"data": data, "out": shared["out"], "kappa": K}))
    host, source = SETTINGS["host"], SETTINGS["source"]
    stage2 = {
        **shared,
        "host": host,
        "source": source,
        "augment": crop,
        "inference": {"short_side": None},
        "loop": loop,
    }
    joint = train_segmentation(
        build(Stage2Config, {**stage2, "source": {"train": "joint", "kappa": 2}, "labels": SETTINGS["labels"]})
    )
    assert joint.metrics["mean_kappa"] == 2
    summary = train_segmentation(build(Stage2Config, stage2))
    most_common = np.argsort(-np.bincount(cache.read_split("train").truth, minlength=K), kind="stable")
    val = cache.read_split("val")
    assert val.truth_pixels is not None
    kept = np.isin(val.truth, most_common[: source["kappa"]])
    assert summary.metrics["pixel_coverage"] == pytest.approx(val.truth_pixels[kept].sum() / val.truth_pixels.sum())
