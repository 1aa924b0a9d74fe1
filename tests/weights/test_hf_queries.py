"""MaskFormer and Mask2Former of transformers: their folders become networks with its class and mask logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerDetrConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
)

from kappaseg_core.ranking import Ranking, complete_ranking
from pipelines.cli import main
from tests.weights.folders import K, assert_close, folder_of, import_folder, named, noise
from tests.weights.test_hf_upernet import RESNET, SWIN

WIDTH, QUERIES = 32, 7
BACKBONES = {"swin": SwinConfig(**SWIN), "resnet": ResNetConfig(**RESNET)}


def maskformer(backbone: str = "swin", **more: Any) -> Any:
    torch.manual_seed(0)
    decoder = MaskFormerDetrConfig(
        use_timm_backbone=False, num_queries=QUERIES, d_model=WIDTH, decoder_layers=2, encoder_layers=0,
        decoder_attention_heads=4, decoder_ffn_dim=24,
    )  # fmt: skip
    config = MaskFormerConfig(
        backbone_config=BACKBONES[backbone], decoder_config=decoder, fpn_feature_size=WIDTH, mask_feature_size=WIDTH,
        mask_weight=3.0, **{**named(), **more},
    )  # fmt: skip
    return MaskFormerForInstanceSegmentation(config)


def mask2former(backbone: str = "swin") -> Any:
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone], feature_size=WIDTH, mask_feature_size=WIDTH, hidden_dim=WIDTH,
        encoder_layers=1, encoder_feedforward_dim=24, decoder_layers=3, num_attention_heads=4, dim_feedforward=40,
        num_queries=QUERIES, mask_weight=3.0, **named(),
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("make", [maskformer, mask2former])
@torch.no_grad()
def test_class_and_mask_logits_are_those_of_transformers(
    tmp_path: Path, make: Any, backbone: str, original: bool
) -> None:
    theirs, images = make(backbone), noise(2, 3, 96, 64)
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs", original=original))
    wanted, found = theirs(images), ours(images, complete_ranking(2, K))
    assert_close(found.class_logits, wanted.class_queries_logits)
    assert_close(found.mask_logits, wanted.masks_queries_logits)
    assert ours.host.loss_rule.mask_weight == 3.0


@torch.no_grad()
def test_a_ranking_picks_among_the_classes_and_keeps_no_object(tmp_path: Path) -> None:
    theirs, images = maskformer("resnet"), noise(1, 3, 64, 64)
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs"))
    labels = torch.tensor([[3, 1]])
    found = ours(images, Ranking(labels, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))).class_logits
    assert_close(found, theirs(images).class_queries_logits[..., [3, 1, K]])


@torch.no_grad()
def test_rows_go_by_name_and_no_object_stays(tmp_path: Path) -> None:
    (tmp_path / "ours.txt").write_text("sea\nmoon\nroad\n")
    theirs, images = maskformer("resnet"), noise(1, 3, 64, 64)
    path = folder_of(theirs, tmp_path / "theirs")
    ours: Any = import_folder(path, "--transfer-to", str(tmp_path / "ours.txt"))
    found = ours(images, complete_ranking(1, 3)).class_logits
    assert_close(found[..., [0, 2, 3]], theirs(images).class_queries_logits[..., [4, 1, K]])


def test_a_label_branch_that_the_folder_has_not_starts_anew(tmp_path: Path) -> None:
    """It looks at the queries, as released for Mask2Former."""
    words = (
        "--source.train",
        "joint",
        "--labels.head",
        "projected",
        "--labels.options",
        "{heads: 2, ffn: 8, pooled: 0}",
    )
    ours: Any = import_folder(folder_of(mask2former("resnet"), tmp_path / "theirs"), *words)
    with torch.no_grad():
        assert ours.look(noise(1, 3, 64, 64)).label_logits.shape == (1, K)


@pytest.mark.parametrize(
    ("make", "name", "value", "wanted"),
    [
        (maskformer, "mask_feature_size", 16, "its mask_feature_size is 16, and its queries are 32 wide"),
        (mask2former, "pre_norm", True, "its pre_norm is True, and only False can be taken over"),
        (mask2former, "feature_strides", [4, 8, 16, 16], "its feature_strides is [4, 8, 16, 16], and only"),
    ],
)
def test_what_the_hosts_do_not_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, name: str, value: Any, wanted: str
) -> None:
    path = folder_of(make("resnet"), tmp_path / "theirs")
    config = json.loads((path / "config.json").read_text()) | {name: value}
    (path / "config.json").write_text(json.dumps(config))
    assert main(["import-weights", "hf", str(path), str(tmp_path / "stage2-hf")]) == 2
    assert wanted in capsys.readouterr().err
