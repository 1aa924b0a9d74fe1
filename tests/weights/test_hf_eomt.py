"""EoMT of transformers: its folders become starts of networks whose tokens are labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import EomtConfig, EomtForUniversalSegmentation

from kappaseg_core.ranking import complete_ranking
from tests.weights.folders import NAMES, K, assert_close, folder_of, import_folder, named, noise

IMAGE = 64
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": IMAGE, "num_blocks": 2,
    "num_queries": K, "mlp_ratio": 2,
}  # fmt: skip


def eomt(**more: Any) -> Any:
    torch.manual_seed(0)
    return EomtForUniversalSegmentation(EomtConfig(**{**SMALL, **named(), **more}))


@torch.no_grad()
def test_with_queries_for_labels_masks_are_those_of_transformers(tmp_path: Path) -> None:
    """As many queries as labels, put in their place: our cosines are the products there, divided by both lengths."""
    theirs, images = eomt(), noise(2, 3, IMAGE, IMAGE)
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs"))
    theirs.attn_mask_probs.zero_()  # as after its training: queries look everywhere
    ours.host.cls_emb.copy_(theirs.query.weight)
    found = theirs(images)
    tokens = found.last_hidden_state
    lengths = theirs.mask_head(tokens[:, :K]).norm(dim=2)
    cells = theirs.upscale_block(tokens[:, K + 5 :].mT.unflatten(2, (4, 4)))
    cosine = found.masks_queries_logits / lengths[..., None, None] / cells.norm(dim=1, keepdim=True)
    wanted = F.layer_norm(cosine.movedim(1, 3), (K,)).movedim(3, 1)  # the rank scale, as it starts
    assert_close(ours(images, complete_ranking(2, K)).rank_logits, wanted)


def test_what_starts_anew_and_what_is_left_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_folder(folder_of(eomt(), tmp_path / "theirs"))
    printed = capsys.readouterr().out
    assert "EoMT on vit_base_patch14_reg4_dinov2, 5 classes, without its queries" in printed
    assert "--init" in printed.splitlines()[-1]
    origin = json.loads((tmp_path / "stage2-hf/import.json").read_text())
    assert sorted(name for names in origin["new"].values() for name in names) == [
        "host.cls_emb", "host.rank_scale.bias", "host.rank_scale.weight"
    ]  # fmt: skip
    left = {name for names in origin["left_out"].values() for name in names}
    assert {"query.weight", "class_predictor.weight", "attn_mask_probs"} <= left


def test_the_classes_are_those_of_its_classifier_without_the_last(tmp_path: Path) -> None:
    ours: Any = import_folder(folder_of(eomt(num_queries=9), tmp_path / "theirs"))
    assert ours.host.cls_emb.shape == (len(NAMES), 16)


@pytest.mark.parametrize(
    "words", [("--source.train", "joint", "--labels.head", "encoder"), ("--source.train", "cache")]
)
def test_the_start_may_be_for_any_source_of_rankings(tmp_path: Path, words: tuple[str, ...]) -> None:
    more = (*words, "--source.kappa", "3", "--labels.options", "{heads: 2, ffn: 8}" if "joint" in words else "{}")
    ours: Any = import_folder(folder_of(eomt(), tmp_path / "theirs"), *more)
    assert len(ours.host.rank_scale.weight) == 3 and (ours.branch is not None) == ("joint" in words)
