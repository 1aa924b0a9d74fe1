"""A ViT on the map of a convolutional network: what is trained, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from kappaseg_core.backbones import Wants, build_backbone
from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError

VIT = {"depth": 2, "embed_dim": 8, "num_heads": 2}
HYBRID = BackboneConfig(kind="hybrid", name="mobilenetv2_035", level=16, frozen=False, options={"vit": VIT})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save_file(timm.create_model("mobilenetv2_035").state_dict(), tmp_path / "cells.safetensors")
    return tmp_path / "cells.safetensors"


def test_the_convolutional_network_stays_as_its_file_has_it_and_the_vit_learns(weights: Path) -> None:
    backbone = build_backbone(replace(HYBRID, weights=str(weights))).train()
    cells = backbone.network.model.patch_embed.stem
    backbone(torch.randn(2, 3, 64, 64)).square().sum().backward()
    stored = load_file(weights)
    kept = {name.removeprefix("network.model."): value for name, value in cells.state_dict().items()}
    assert kept and all(torch.equal(value, stored[name]) for name, value in kept.items())
    assert not any(parameter.requires_grad for parameter in cells.parameters())
    learnt = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert any("project" in name for name in learnt) and any("blocks.1" in name for name in learnt)


def test_its_last_blocks_can_be_left_to_a_host() -> None:
    backbone = build_backbone(HYBRID, wants=Wants(last_blocks=1)).eval()
    images = torch.randn(1, 3, 61, 40)
    with torch.no_grad():
        begun = backbone.begin(images)
        tokens = begun.norm(begun.through(0, begun.tokens))
        assert begun.grid == (4, 3) and backbone.stride == 16
        torch.testing.assert_close(begun.map(tokens), backbone(images))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"options": {"vit": 4}}, "backbone.options.vit = 4, wanted settings such as"),
        ({"options": {"vit": {**VIT, "num_heads": 3}}}, "backbone.options.vit = .*'num_heads': 3.* do not make a ViT"),
        ({"options": {"vit": {"deep": 4}}}, "do not make a ViT: .*deep.*; give depth, embed_dim"),
        ({"options": {"vit": VIT, "train_cells": 1}}, "backbone.options.train_cells = 1, wanted true or false"),
        ({"weights": "some.safetensors", "frozen": None}, "set backbone.frozen false"),
    ],
)
def test_what_does_not_make_one_is_told(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_backbone(replace(HYBRID, **changes))  # type: ignore[arg-type]
