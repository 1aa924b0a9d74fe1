"""BEiT for segmentation of transformers: its folders become networks with its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BeitConfig, BeitForSemanticSegmentation

from kappaseg_core.checkpoint import read_record
from kappaseg_core.ranking import complete_ranking
from tests.weights.folders import K, assert_close, folder_of, import_folder, named, noise

IMAGE = 64
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 24, "image_size": IMAGE,
    "use_relative_position_bias": True, "out_indices": [2, 3, 4, 6], "pool_scales": [1, 2], "auxiliary_channels": 6,
}  # fmt: skip


def beit(**more: Any) -> Any:
    torch.manual_seed(0)
    return BeitForSemanticSegmentation(BeitConfig(**{**SMALL, **named(), **more}))


@pytest.mark.parametrize("original", [True, False])
@torch.no_grad()
def test_logits_are_those_of_transformers_at_any_grid(tmp_path: Path, original: bool) -> None:
    """96 × 64 pixels have another grid than the tables are for."""
    theirs = beit()
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs", original=original))
    for height, width in ((IMAGE, IMAGE), (96, 64)):
        images = noise(2, 3, height, width)
        assert_close(ours(images, complete_ranking(2, K)).rank_logits, theirs(images).logits)


@torch.no_grad()
def test_the_second_head_reads_the_map_of_the_patches(tmp_path: Path) -> None:
    theirs, images = beit(), noise(1, 3, IMAGE, IMAGE)
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs"))
    states = theirs(images, output_hidden_states=True).hidden_states
    maps = [states[number - 1][:, 1:].mT.unflatten(2, (4, 4)) for number in SMALL["out_indices"]]
    levels, auxiliary = ours.host.levels(ours.look(images).maps), ours.host.auxiliary
    found = auxiliary.classify(auxiliary.convolution(levels[2]), complete_ranking(1, K))
    assert_close(found, theirs.auxiliary_head(theirs.fpn(maps)))


@torch.no_grad()
def test_blocks_may_be_those_that_beit_itself_counts(tmp_path: Path) -> None:
    """transformers reads the blocks 0, 1, 2 and 4 for [2, 3, 4, 6]; all tensors have a place where 5 is read, too."""
    path = folder_of(beit(), tmp_path / "theirs")
    import_folder(path, "--host.options.blocks", "[1, 2, 3, 5]")
    assert read_record(tmp_path / "stage2-hf")["config"]["host"]["options"]["blocks"] == [1, 2, 3, 5]
    import_folder(path, out="stage2-as-there")
    assert read_record(tmp_path / "stage2-as-there")["config"]["host"]["options"]["blocks"] == [0, 1, 2, 4]


@torch.no_grad()
def test_a_beit_without_layer_scale_and_with_a_last_norm(tmp_path: Path) -> None:
    theirs, images = beit(layer_scale_init_value=0.0, use_mean_pooling=False), noise(1, 3, IMAGE, IMAGE)
    ours: Any = import_folder(folder_of(theirs, tmp_path / "theirs"))
    assert_close(ours(images, complete_ranking(1, K)).rank_logits, theirs(images).logits)
    assert read_record(tmp_path / "stage2-hf")["config"]["backbone"]["mean"] == [0.5, 0.5, 0.5]
