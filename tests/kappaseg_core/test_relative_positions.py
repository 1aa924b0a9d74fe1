"""BEiT at any image size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from kappaseg_core.backbones import Wants, build_backbone
from kappaseg_core.backbones.relative_positions import Grid, RelativePositions, resize_bias_table
from kappaseg_core.config import BackboneConfig

NAME = "beit_base_patch16_224"
TINY: dict[str, Any] = {"img_size": 64, "depth": 4, "embed_dim": 8, "num_heads": 2}


def random_weights(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_at_its_own_size_a_beit_computes_what_timm_computes() -> None:
    backbone = build_backbone(BackboneConfig(name=NAME, options=TINY)).eval()
    random_weights(backbone)
    own: Any = timm.create_model(NAME, num_classes=0, **TINY).eval()
    own.load_state_dict(backbone.network.model.state_dict())  # type: ignore[union-attr]
    images = torch.randn(2, 3, 64, 64)
    expected = own.forward_intermediates(images, norm=True, intermediates_only=True, indices=[3])[0]
    assert torch.equal(backbone(images), expected)


def test_four_blocks_at_equal_distances_or_those_that_are_named() -> None:
    config = BackboneConfig(name=NAME, options={**TINY, "depth": 8})
    assert build_backbone(config, wants=Wants(maps=4)).network.stages == (1, 3, 5, 7)
    assert build_backbone(config, wants=Wants(maps=4, stages=(2, 3, 5, 7))).network.stages == (2, 3, 5, 7)


def test_a_bias_depends_on_the_distance_of_two_patches_alone() -> None:
    """On a grid of 2 × 3 cells; the class token comes first."""
    model: Any = timm.create_model(NAME, num_classes=0, **TINY)
    random_weights(model)
    grid = Grid((16, 16))
    grid.cells = (2, 3)
    bias = RelativePositions(model.blocks[0].attn, grid)()[0]
    assert bias.shape == (2, 7, 7)
    places = [(row, column) for row in range(2) for column in range(3)]
    found: dict[tuple[int, int], torch.Tensor] = {}
    for one, (row, column) in enumerate(places, 1):
        for other, (below, right) in enumerate(places, 1):
            value = found.setdefault((row - below, column - right), bias[:, one, other])
            assert torch.equal(bias[:, one, other], value)
    assert len(found) == 3 * 5
    assert len({tuple(value.tolist()) for value in found.values()}) == 15
    assert (bias[:, 0, 1:] == bias[:, :1, 1]).all() and (bias[:, 1:, 0] == bias[:, 1:2, 0]).all()


def test_a_table_is_resized_along_rows_and_columns_and_its_last_rows_stay() -> None:
    """A table that counts rows of distance still does, in the middle, where nothing is extrapolated."""
    rows = torch.arange(7.0)[:, None].expand(7, 7).flatten()
    table = torch.cat([rows, torch.tensor([-1.0, -2.0, -3.0])])[:, None]
    resized = resize_bias_table(table, old=(4, 4), new=(7, 4))
    assert resized[-3:, 0].tolist() == [-1, -2, -3]
    between = resized[:-3, 0].view(13, 7)
    torch.testing.assert_close(between, between[:, :1].expand(13, 7))
    expected = (torch.arange(13.0) + 0.5) * 7 / 13 - 0.5
    torch.testing.assert_close(between[4:9, 0], expected[4:9], atol=0.05, rtol=0)  # bicubic: nearly a line
    assert resize_bias_table(table, old=(4, 4), new=(4, 4)) is table


def test_a_weight_file_of_another_size_is_loaded(tmp_path: Path) -> None:
    published: Any = timm.create_model(NAME, **TINY)
    random_weights(published)
    save_file(published.state_dict(), tmp_path / "beit.safetensors")
    config = BackboneConfig(name=NAME, weights=str(tmp_path / "beit.safetensors"), options={**TINY, "img_size": 96})
    backbone = build_backbone(config, wants=Wants(maps=4))
    found: Any = backbone.network.model
    assert torch.equal(found.blocks[0].mlp.fc1.weight, published.blocks[0].mlp.fc1.weight)
    own = published.blocks[3].attn.relative_position_bias_table
    expected = resize_bias_table(own, old=(4, 4), new=(6, 6))
    assert torch.equal(found.blocks[3].attn.relative_position_bias_table, expected)
    assert expected.shape == (11 * 11 + 3, 2)


@pytest.mark.parametrize("size", [(48, 80), (33, 70)])
def test_images_of_other_sizes_use_tables_of_their_own(size: tuple[int, int]) -> None:
    """Positions matter there too: with the tables at zero the map is another."""
    backbone = build_backbone(BackboneConfig(name=NAME, options=TINY)).eval()
    random_weights(backbone)
    images = torch.randn(1, 3, *size)
    before = backbone(images)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "relative" in name:
                parameter.zero_()
    assert not torch.allclose(backbone(images), before, atol=1e-3)


def test_training_goes_on_after_an_evaluation_of_images_of_its_size() -> None:
    """Which row is whose is looked up once per grid, in an evaluation too, whose tensors no gradient may use."""
    backbone = build_backbone(BackboneConfig(name=NAME, options=TINY))
    images = torch.randn(1, 3, 48, 80)
    with torch.inference_mode():
        backbone(images)
    backbone(images).sum().backward()
    table: Any = backbone.network.model.blocks[0].attn.relative_position_bias_table  # type: ignore[union-attr]
    assert (table.grad != 0).any()
