"""What every backbone keeps to. A new family adds its smallest configuration to CASES."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.backbones import Backbone, backbone_kinds, build_backbone
from kappaseg_core.config import BackboneConfig

VIT = BackboneConfig(name="vit_tiny_patch16_224", options={"img_size": 64, "depth": 2, "embed_dim": 8, "num_heads": 2})
SWIN = BackboneConfig(
    name="swin_tiny_patch4_window7_224",
    options={"img_size": 64, "embed_dim": 8, "depths": [2, 2, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4},
)
CONVNEXT = BackboneConfig(name="convnext_atto", options={"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 16]})

CASES = {
    "small_cnn": BackboneConfig(kind="small_cnn", name="8"),
    "small_cnn, stride 4": BackboneConfig(kind="small_cnn", name="8", level=4),
    "resnet": BackboneConfig(name="resnet10t"),
    "resnet, stride 8": BackboneConfig(name="resnet10t", level=8),
    "mobilenet": BackboneConfig(name="mobilenetv2_035", options={"pad_type": "same"}),
    "convnext": CONVNEXT,
    "vit": VIT,
    "vit without class token": BackboneConfig(
        name=VIT.name, options={**VIT.options, "class_token": False, "global_pool": "avg"}
    ),
    "vit with registers": BackboneConfig(
        name=VIT.name, options={**VIT.options, "reg_tokens": 2, "no_embed_class": True}
    ),
    "distilled vit": BackboneConfig(name="deit_tiny_distilled_patch16_224", options=VIT.options),
    "beit": BackboneConfig(name="beit_base_patch16_224", options=VIT.options),
    "hybrid": BackboneConfig(
        kind="hybrid",
        name="mobilenetv2_035",
        level=16,
        options={"pad_type": "same", "train_cells": True, "vit": {"depth": 2, "embed_dim": 8, "num_heads": 2}},
    ),
    "swin": SWIN,
    "swin, stride 16": BackboneConfig(name=SWIN.name, options=SWIN.options, level=16),
}
SIZES = [(64, 64), (33, 47), (61, 40), (97, 131)]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> BackboneConfig:
    return CASES[request.param]


def made(config: BackboneConfig, *, frozen: bool = False) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(config.kind, config.name, None, frozen, config.level, options=config.options))


@pytest.fixture(scope="module")
def backbone(case: BackboneConfig) -> Backbone:
    """In evaluation mode; tests that train make their own."""
    return made(case).eval()


def noise(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def test_every_kind_of_backbone_is_tested_here() -> None:
    assert {config.kind for config in CASES.values()} == set(backbone_kinds())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_map_has_one_cell_per_begun_stride(backbone: Backbone, height: int, width: int) -> None:
    with torch.no_grad():
        features = backbone(noise(1, height, width))
    cells = (-(-height // backbone.stride), -(-width // backbone.stride))
    assert features.shape == (1, backbone.channels, *cells)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_a_batch_of_two_equals_two_of_one(backbone: Backbone) -> None:
    images = noise(2, 61, 40)
    with torch.no_grad():
        both, alone = backbone(images), torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_rows_and_columns_of_the_map_are_those_of_the_image(backbone: Backbone) -> None:
    """A change in the lower left corner moves the map most there, so axes are neither swapped nor mirrored."""
    stride, images = backbone.stride, noise(1, 4 * backbone.stride, 8 * backbone.stride)
    changed = images.clone()
    changed[:, :, -stride:, :stride] += 3.0
    with torch.no_grad():
        moved = (backbone(changed) - backbone(images)).abs().sum(1)[0]
    rows, columns = torch.arange(4.0)[:, None], torch.arange(8.0)
    assert (moved * rows).sum() / moved.sum() > 1.5  # centre of mass below the middle row
    assert (moved * columns).sum() / moved.sum() < 3.5


def test_a_frozen_backbone_does_not_move(case: BackboneConfig) -> None:
    backbone = made(case, frozen=True)
    model = nn.Sequential(backbone, nn.Conv2d(backbone.channels, 2, 1)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = noise(2, 64, 64).requires_grad_()
    model(images).sum().backward()
    assert backbone.frozen
    assert not any(module.training for module in backbone.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in backbone.parameters())
    assert images.grad is None
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_gradient_reaches_the_image_and_every_parameter_that_is_trained(case: BackboneConfig) -> None:
    backbone = made(case).train()
    assert not backbone.frozen
    assert backbone.training
    images = noise(2, 64, 96).requires_grad_()
    backbone(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    trained = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []


def test_state_and_configuration_rebuild_the_same_network(case: BackboneConfig, backbone: Backbone) -> None:
    torch.manual_seed(1)
    other = build_backbone(case).eval()
    other.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(other(noise(1, 48, 80)), backbone(noise(1, 48, 80)))


def test_a_copy_is_independent(case: BackboneConfig) -> None:
    """Averaged weights are a deep copy that changes by itself."""
    backbone = made(case).eval()
    images = noise(1, 48, 80)
    with torch.no_grad():
        before = backbone(images)
        twin = copy.deepcopy(backbone)
        assert torch.equal(twin(images), before)
        for parameter in twin.parameters():
            parameter.add_(0.1)
        assert not torch.equal(twin(images), before)
        assert torch.equal(backbone(images), before)


def test_normalisation_is_in_units_of_zero_to_one_and_can_be_replaced(case: BackboneConfig, backbone: Backbone) -> None:
    assert len(backbone.mean) == len(backbone.std) == 3
    assert all(0 <= value <= 1 for value in backbone.mean) and all(0 < value <= 1 for value in backbone.std)
    other = BackboneConfig(
        case.kind, case.name, level=case.level, options=case.options, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)
    )
    replaced = build_backbone(other)
    assert (replaced.mean, replaced.std) == ((0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
