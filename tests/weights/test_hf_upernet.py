"""UPerNet of transformers: its folders become networks with its logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ConvNextConfig, ResNetConfig, SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

from kappaseg_core.checkpoint import read_record
from kappaseg_core.ranking import complete_ranking
from tests.weights.folders import NAMES, K, assert_close, folder_of, import_folder, named, noise

STAGES = ["stage1", "stage2", "stage3", "stage4"]
#: windows of 3 cells, on maps of 16, 8, 4 and 2 cells a side: they fit nowhere, and on the last there is not even one
SWIN = {"embed_dim": 8, "depths": [2, 2, 1, 2], "num_heads": [1, 2, 2, 4], "window_size": 3, "out_features": STAGES}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "out_features": STAGES}
RESNET = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 1, 1, 1], "out_features": STAGES}
HEAD = {"hidden_size": 12, "pool_scales": [1, 2], "auxiliary_channels": 6, "auxiliary_loss_weight": 0.3}
BACKBONES = {
    "swin": SwinConfig(**SWIN), "swin, wide windows": SwinConfig(**{**SWIN, "window_size": 12}),
    "convnext": ConvNextConfig(**CONVNEXT), "resnet": ResNetConfig(**RESNET),
    "resnet, basic": ResNetConfig(**RESNET, layer_type="basic"),
}  # fmt: skip


def upernet(backbone: str = "swin", **more: Any) -> Any:
    torch.manual_seed(0)
    given = {"backbone_config": BACKBONES[backbone], **HEAD, **named(), **more}
    return UperNetForSemanticSegmentation(UperNetConfig(**given))


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_logits_of_both_heads_are_those_of_transformers(tmp_path: Path, backbone: str, original: bool) -> None:
    theirs = upernet(backbone)
    words = ("--augment.crop", "64")  # for which timm by itself would make windows smaller
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs", original=original), *words)
    for height, width in ((64, 64), (96, 64)):
        images, ranking = noise(2, 3, height, width), complete_ranking(2, K)
        maps = theirs.backbone(images).feature_maps
        seen = ours.look(images)
        assert_close(ours.segment(seen, ranking).rank_logits, theirs.decode_head(maps))
        levels, auxiliary = ours.host.levels(seen.maps), ours.host.auxiliary
        for mine, given in zip(levels, maps, strict=True):
            assert_close(mine, given)
        assert_close(auxiliary.classify(auxiliary.convolution(levels[2]), ranking), theirs.auxiliary_head(maps))
    assert auxiliary.weight == 0.3


def test_the_run_has_the_names_and_the_colours_of_the_folder(tmp_path: Path) -> None:
    path = folder_of(upernet(), tmp_path / "theirs")
    preprocessing = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 64, "width": 96}}
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    import_folder(path)
    record = read_record(tmp_path / "stage2-hf")
    assert record["class_names"] == list(NAMES) and record["config"]["source"]["train"] == "complete"
    assert record["config"]["backbone"]["mean"] == [0.1, 0.2, 0.3]
    assert record["config"]["backbone"]["std"] == [0.4, 0.5, 0.6]
    assert record["config"]["inference"]["short_side"] == record["config"]["augment"]["crop"] == 64
    assert record["inputs"]["imported"] == "hf" and len(record["inputs"]["file"]) == 64


@pytest.mark.parametrize("more", [{"use_auxiliary_head": False}, {"auxiliary_num_convs": 2}])
@torch.no_grad()
def test_a_second_head_that_is_not_one_convolution_is_left_out(tmp_path: Path, more: Any) -> None:
    theirs = upernet(**more)
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs"))
    assert ours.host.auxiliary is None
    images = noise(1, 3, 64, 64)
    assert_close(ours(images, complete_ranking(1, K)).rank_logits, theirs.decode_head(theirs.backbone(images)[0]))
    left = json.loads((tmp_path / "stage2-hf/import.json").read_text())["left_out"]
    assert any("auxiliary_head" in name for names in left.values() for name in names) == ("auxiliary_num_convs" in more)


def test_the_second_head_may_be_refused_by_a_setting(tmp_path: Path) -> None:
    ours: Any = import_folder(folder_of(upernet(), tmp_path / "theirs"), "--host.options.auxiliary", "0")
    assert ours.host.auxiliary is None
    left = json.loads((tmp_path / "stage2-hf/import.json").read_text())["left_out"]
    assert any("host.options.auxiliary 0" in why for why in left)


@torch.no_grad()
def test_rows_go_by_name_to_another_list_of_classes(tmp_path: Path) -> None:
    path = folder_of(upernet(), tmp_path / "theirs")
    (tmp_path / "ours.txt").write_text("sea\nroad\nmoon\n")
    before: Any = import_folder(path)
    after: Any = import_folder(path, "--transfer-to", str(tmp_path / "ours.txt"), out="stage2-moved")
    images = noise(1, 3, 64, 64)
    moved = after(images, complete_ranking(1, 3)).rank_logits
    assert_close(moved[:, :2], before(images, complete_ranking(1, K)).rank_logits[:, [4, 1]])


def test_a_label_branch_that_the_folder_has_not_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--source.train", "joint", "--labels.head", "projected", "--labels.options", "{heads: 2, ffn: 8}")
    ours: Any = import_folder(folder_of(upernet(), tmp_path / "theirs"), *words)
    assert ours.branch is not None
    printed = capsys.readouterr().out
    assert "the label branch, which the network had not" in printed and "--init" in printed.splitlines()[-1]
    new = json.loads((tmp_path / "stage2-hf/import.json").read_text())["new"]
    assert all(name.startswith("branch.") for names in new.values() for name in names)
