from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from kappaseg_core.backbones import Backbone, backbone_kinds, build_backbone
from kappaseg_core.backbones.positions import KEPT, Positions, resize_table
from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError

VIT = "vit_tiny_patch16_224"
TINY_VIT: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 8, "num_heads": 2}
SWIN = "swin_tiny_patch4_window7_224"
TINY_SWIN: dict[str, Any] = {
    "img_size": 64, "embed_dim": 8, "depths": [2, 2, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4,
}  # fmt: skip
CONVNEXT = "convnext_atto"
TINY_CONVNEXT: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 16]}
TINY_SEQUENCER: dict[str, Any] = {"layers": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8], "hidden_sizes": [4, 4, 4, 4]}
SMALL = BackboneConfig(kind="small_cnn", name="8")


def tiny_vit(**options: Any) -> BackboneConfig:
    return BackboneConfig(name=VIT, options={**TINY_VIT, **options})


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def tensors_of(config: BackboneConfig) -> dict[str, Tensor]:
    """Other random weights for the same network, under timm's names."""
    torch.manual_seed(7)
    model: Any = build_backbone(config).network.model
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def error_of(config: BackboneConfig) -> str:
    with pytest.raises(UserError) as caught:
        build_backbone(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


class Blocks(nn.Module):
    """Mean of each 4×4 block; stops at sizes that are no multiples of 4."""

    channels, stride, unit = 3, 4, 4
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2] % 4 == images.shape[3] % 4 == 0
        return F.avg_pool2d(images, 4)


# -- the frame around every network --------------------------------------------------------------------------------


def test_images_are_padded_right_and_below_with_the_mean_colour() -> None:
    features = Backbone(Blocks())(torch.ones(2, 3, 5, 10))
    # 5×10 → 8×12: the second row of blocks has 1 of 4 rows, the third column 2 of 4 columns
    expected = torch.tensor([[1, 1, 1 / 2], [1 / 4, 1 / 4, 1 / 8]]).expand(2, 3, 2, 3)
    torch.testing.assert_close(features, expected)


def test_a_map_that_is_too_large_after_padding_is_cropped() -> None:
    network = Blocks()
    network.unit = 16
    features = Backbone(network)(torch.ones(1, 3, 5, 17))
    assert features.shape == (1, 3, 2, 5)


def test_weights_decide_about_freezing_unless_told(tmp_path: Path) -> None:
    config = BackboneConfig(name="resnet10t")
    save_file(tensors_of(config), tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    assert not build_backbone(config).frozen
    assert build_backbone(BackboneConfig(name="resnet10t", weights=weights)).frozen
    assert not build_backbone(BackboneConfig(name="resnet10t", weights=weights, frozen=False)).frozen
    assert build_backbone(BackboneConfig(name="resnet10t", frozen=True)).frozen


def test_kinds_are_the_modules_that_build_one() -> None:
    assert backbone_kinds() == ("hybrid", "small_cnn", "timm")


@pytest.mark.parametrize(
    ("kind", "hint"), [("tim", "did you mean timm?"), ("positions", "there are: hybrid, small_cnn, timm")]
)
def test_an_unknown_kind_is_answered_with_the_kinds_there_are(kind: str, hint: str) -> None:
    message = error_of(BackboneConfig(kind=kind))
    assert f"backbone.kind = {kind!r}" in message
    assert hint in message


# -- what a user can get wrong -------------------------------------------------------------------------------------

WRONG = {
    "name": (BackboneConfig(name="resnet10x"), ["backbone.name = 'resnet10x'", "resnet10t"]),
    "hub": (BackboneConfig(name="hf-hub:timm/resnet10t"), ["is no model of timm"]),
    "tag": (BackboneConfig(name="resnet10t.nowhere"), ["backbone.name = 'resnet10t.nowhere'"]),
    "level": (BackboneConfig(name="resnet10t", level=5), ["backbone.level = 5", "2, 4, 8, 16, 32"]),
    "level of a ViT": (BackboneConfig(name=VIT, level=8, options=TINY_VIT), ["backbone.level = 8", "strides 16 "]),
    "unknown option": (BackboneConfig(name="resnet10t", options={"blok": 1}), ["resnet10t", "'blok'"]),
    "bad value": (BackboneConfig(name=VIT, options={**TINY_VIT, "num_heads": 3}), [VIT, "num_heads"]),
    "download": (BackboneConfig(name="resnet10t", options={"pretrained": True}), ["backbone.options.pretrained"]),
    "interpolation": (tiny_vit(position_interpolation="nearest"), ["'nearest'", "bicubic or bilinear"]),
    "eps": (tiny_vit(norm_eps="small"), ["backbone.options.norm_eps = 'small'", "wanted a number above 0"]),
    "eps of no ViT": (
        BackboneConfig(name="resnet10t", options={"norm_eps": 1e-5}),
        ["norm_eps is for plain ViTs", "resnet10t"],
    ),
    "interpolation without a table": (
        BackboneConfig(name="resnet10t", options={"position_interpolation": "bicubic"}),
        ["position_interpolation is for plain ViTs"],
    ),
    "padding": (
        BackboneConfig(name="resnet10t", options={"pad_before_shift": True}),
        ["pad_before_shift is for Swin", "resnet10t"],
    ),
    "padding in words": (
        BackboneConfig(name="resnet10t", options={"pad_before_shift": "first"}),
        ["backbone.options.pad_before_shift = 'first', wanted true or false"],
    ),
    "one size": (
        BackboneConfig(name="vit_relpos_small_patch16_224", options={"depth": 1}),
        ["images of any size", "choose another"],
    ),
    "width of small_cnn": (BackboneConfig(kind="small_cnn", name="wide"), ["backbone.name = 'wide'"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_one_line_that_names_it(what: str) -> None:
    config, parts = WRONG[what]
    message = error_of(config)
    assert [part for part in parts if part not in message] == []


# -- networks of timm ----------------------------------------------------------------------------------------------


def test_the_norms_of_a_vit_may_have_another_eps() -> None:
    for given, wanted in ((None, 1e-6), (1e-5, 1e-5), ("1e-5", 1e-5)):
        backbone = build_backbone(tiny_vit(**({} if given is None else {"norm_eps": given})))
        assert {module.eps for module in backbone.modules() if isinstance(module, nn.LayerNorm)} == {wanted}


@pytest.mark.parametrize(
    ("name", "millions", "channels"),
    [("swin_large_patch4_window12_384", 195.199, 1536), ("resnet101", 42.500, 2048), ("tresnet_l", 53.556, 2432)],
)
def test_stage_one_backbones_have_their_published_size(name: str, millions: float, channels: int) -> None:
    """Sizes of the Query2Label backbones without classifier."""
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name))
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert (backbone.channels, backbone.stride) == (channels, 32)


def test_the_final_map_of_mobilenet_includes_its_last_convolution() -> None:
    final, last_stage = (build_backbone(BackboneConfig(name="mobilenetv2_035", level=level)) for level in (0, 32))
    assert (final.channels, final.stride) == (1280, 32)
    assert (last_stage.channels, last_stage.stride) == (112, 32)


def test_normalisation_is_that_of_the_published_weights() -> None:
    vit, resnet = build_backbone(tiny_vit()), build_backbone(BackboneConfig(name="resnet10t"))
    assert (vit.mean, vit.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert resnet.mean == (0.485, 0.456, 0.406)


def test_a_level_is_the_map_after_that_stage() -> None:
    backbone = build_backbone(BackboneConfig(name="resnet10t", level=8)).eval()
    whole: Any = timm.create_model("resnet10t", num_classes=0).eval()
    own: Any = backbone.network.model
    whole.load_state_dict({**whole.state_dict(), **own.state_dict()})
    images = noise(1, 3, 45, 70)
    with torch.no_grad():
        expected = whole.layer2(whole.layer1(whole.maxpool(whole.act1(whole.bn1(whole.conv1(images))))))
        torch.testing.assert_close(backbone(images), expected)


def test_layers_behind_the_level_are_left_out() -> None:
    """They would be computed for nothing, and their missing gradients would stop distributed training."""
    names = [name for name, _ in build_backbone(BackboneConfig(name="resnet10t", level=8)).named_parameters()]
    assert any("layer2" in name for name in names)
    assert not any("layer3" in name or "fc" in name for name in names)


@pytest.mark.parametrize(
    ("name", "options", "level", "size"), [(VIT, TINY_VIT, 16, (48, 80)), (SWIN, TINY_SWIN, 32, (64, 96))]
)
def test_the_last_level_of_a_transformer_is_its_final_map(
    name: str, options: dict[str, Any], level: int, size: tuple[int, int]
) -> None:
    final = build_backbone(BackboneConfig(name=name, options=options)).eval()
    stage = build_backbone(BackboneConfig(name=name, options=options, level=level)).eval()
    stage.load_state_dict(final.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(stage(noise(1, 3, *size)), final(noise(1, 3, *size)))


def test_parameters_that_the_map_does_not_depend_on_are_not_trained() -> None:
    backbone = build_backbone(BackboneConfig(name=CONVNEXT, options=TINY_CONVNEXT))
    left = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert left == ["network.model.head.norm.weight", "network.model.head.norm.bias"]


@pytest.mark.parametrize(
    ("name", "options", "native"),
    [
        (VIT, TINY_VIT, 64),
        (VIT, {**TINY_VIT, "reg_tokens": 2, "no_embed_class": True}, 64),
        ("deit_tiny_distilled_patch16_224", TINY_VIT, 64),
        (SWIN, TINY_SWIN, 64),
    ],
)
def test_at_its_native_size_a_transformer_computes_what_timm_computes(
    name: str, options: dict[str, Any], native: int
) -> None:
    backbone = build_backbone(BackboneConfig(name=name, options=options)).eval()
    own: Any = backbone.network.model
    plain: Any = timm.create_model(name, num_classes=0, **options).eval()
    plain.load_state_dict(own.state_dict())
    images = noise(2, 3, native, native)
    with torch.no_grad():
        expected = plain.forward_features(images)
        if expected.ndim == 3:
            tokens = expected[:, plain.num_prefix_tokens :]
            expected = tokens.reshape(2, native // 16, native // 16, -1)
        torch.testing.assert_close(backbone(images), expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize(("image_size", "table"), [(None, 196), (160, 196), (224, 196), (250, 256)])
def test_a_position_table_is_made_for_larger_images_and_never_smaller(image_size: int | None, table: int) -> None:
    options = {key: value for key, value in TINY_VIT.items() if key != "img_size"}
    backbone = build_backbone(BackboneConfig(name=VIT, options=options), image_size=image_size)
    model: Any = backbone.network.model
    assert model.pos_embed.shape == (1, 1 + table, 8)


def test_a_given_img_size_overrules_the_size_of_the_images() -> None:
    model: Any = build_backbone(tiny_vit(), image_size=256).network.model
    assert model.pos_embed.shape == (1, 1 + 16, 8)


def test_swin_shifts_its_last_windows_only_where_the_images_are_larger_than_its_own() -> None:
    options = {key: value for key, value in TINY_SWIN.items() if key != "img_size"}
    options = {**options, "depths": [1, 1, 1, 2], "window_size": 7}
    for image_size, shift in ((None, 0), (192, 0), (256, 3)):
        model: Any = build_backbone(BackboneConfig(name=SWIN, options=options), image_size=image_size).network.model
        assert model.layers[-1].blocks[1].window_size == (7, 7)
        assert model.layers[-1].blocks[1].shift_size == (shift, shift)


# -- position tables -----------------------------------------------------------------------------------------------


def test_a_table_at_its_own_grid_stays_itself() -> None:
    table = noise(1, 1 + 12, 5)
    assert resize_table(table, old=(3, 4), new=(3, 4)) is table


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("new", [(2, 8), (3, 7), (2, 3), (5, 5)])
def test_a_table_is_interpolated_along_its_rows_and_columns(new: tuple[int, int], interpolation: Any) -> None:
    """2×8 has as many cells as 4×4: a comparison of lengths alone would leave the table as it is."""
    prefix, cells = noise(1, 2, 5), noise(1, 5, 4, 4)
    table = torch.cat([prefix, cells.flatten(2).transpose(1, 2)], dim=1)
    resized = resize_table(table, old=(4, 4), new=new, interpolation=interpolation)
    expected = F.interpolate(cells, size=new, mode=interpolation, align_corners=False, antialias=False)
    assert torch.equal(resized[:, :2], prefix)
    assert resized.shape == (1, 2 + new[0] * new[1], 5)
    for row in range(new[0]):
        for column in range(new[1]):
            torch.testing.assert_close(resized[0, 2 + row * new[1] + column], expected[0, :, row, column])


def test_bilinear_by_hand() -> None:
    """1×2 cells 0 and 4 on 1×4 cells: their centres lie at -1/4, 1/4, 3/4 and 5/4 of the old axis."""
    table = torch.tensor([[[0.0], [4.0]]])
    resized = resize_table(table, old=(1, 2), new=(1, 4), interpolation="bilinear")
    assert resized.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_option_decides_how_positions_are_interpolated(interpolation: str) -> None:
    backbone = build_backbone(tiny_vit(position_interpolation=interpolation)).eval()
    reference = build_backbone(tiny_vit(img_size=[48, 80])).eval()
    own, other = backbone.state_dict(), reference.state_dict()
    key = "network.model.pos_embed"
    cells = own[key][:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    cells = F.interpolate(cells, size=(3, 5), mode=interpolation, align_corners=False)
    table = torch.cat([own[key][:, :1], cells.flatten(2).transpose(1, 2)], dim=1)
    assert table.shape == other[key].shape
    reference.load_state_dict({**own, key: table})
    with torch.no_grad():
        torch.testing.assert_close(backbone(noise(1, 3, 48, 80)), reference(noise(1, 3, 48, 80)))


def positions_of(config: BackboneConfig) -> Positions:
    model: Any = build_backbone(config).network.model
    positions: Positions = model._pos_embed
    return positions


def test_a_resized_table_is_kept_until_the_weights_change() -> None:
    positions = positions_of(tiny_vit())
    with torch.no_grad():
        first = positions.table(3, 5)
        assert positions.table(3, 5) is first
        positions.model.pos_embed.add_(1.0)
        torch.testing.assert_close(positions.table(3, 5), first + 1.0)


def test_tables_of_many_sizes_do_not_pile_up() -> None:
    positions = positions_of(tiny_vit())
    with torch.no_grad():
        for width in range(1, 3 * KEPT):
            assert positions.table(2, width).shape == (1, 1 + 2 * width, 8)
    assert len(positions.kept) <= KEPT


def test_a_resized_table_learns() -> None:
    positions = positions_of(tiny_vit())
    positions.table(3, 5).sum().backward()
    assert positions.model.pos_embed.grad.abs().sum() > 0
    assert not positions.kept


# -- weight files --------------------------------------------------------------------------------------------------

Save = Callable[[dict[str, Tensor], Path], str]


def as_safetensors(tensors: dict[str, Tensor], folder: Path) -> str:
    save_file(tensors, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def as_state_dict(tensors: dict[str, Tensor], folder: Path) -> str:
    torch.save(tensors, folder / "weights.pth")
    return str(folder / "weights.pth")


def as_training_checkpoint(tensors: dict[str, Tensor], folder: Path) -> str:
    parallel = {f"module.{key}": value for key, value in tensors.items()}
    torch.save({"epoch": 3, "state_dict": parallel, "optimizer": {}}, folder / "checkpoint.pth")
    return str(folder / "checkpoint.pth")


def as_model_entry(tensors: dict[str, Tensor], folder: Path) -> str:
    torch.save({"model": tensors, "args": "none"}, folder / "checkpoint.pt")
    return str(folder / "checkpoint.pt")


def with_weights(config: BackboneConfig, weights: str) -> BackboneConfig:
    return BackboneConfig(config.kind, config.name, weights, None, config.level, options=config.options)


@pytest.mark.parametrize("save", [as_safetensors, as_state_dict, as_training_checkpoint, as_model_entry])
@pytest.mark.parametrize(
    "config", [tiny_vit(), BackboneConfig(name=SWIN, options=TINY_SWIN), BackboneConfig(name="resnet10t")]
)
def test_weights_come_back_from_a_file(config: BackboneConfig, save: Save, tmp_path: Path) -> None:
    tensors = tensors_of(config)
    backbone = build_backbone(with_weights(config, save(tensors, tmp_path)))
    own: Any = backbone.network.model
    assert all(torch.equal(value, tensors[key]) for key, value in own.state_dict().items())


def test_half_precision_files_become_full_precision(tmp_path: Path) -> None:
    tensors = tensors_of(tiny_vit())
    half = {key: value.half() for key, value in tensors.items()}
    own: Any = build_backbone(with_weights(tiny_vit(), as_safetensors(half, tmp_path))).network.model
    for key, value in own.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[key].float())


def test_a_half_precision_table_is_resized_in_full_precision(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in tensors_of(tiny_vit()).items()}
    own: Any = build_backbone(with_weights(tiny_vit(img_size=96), as_safetensors(half, tmp_path))).network.model
    expected = resize_table(half["pos_embed"].float(), old=(4, 4), new=(6, 6))
    torch.testing.assert_close(own.pos_embed.detach(), expected, rtol=1e-6, atol=1e-7)


def test_the_classifier_in_a_file_is_dropped(tmp_path: Path) -> None:
    for config, head in ((BackboneConfig(name="resnet10t"), "fc"), (tiny_vit(), "head")):
        tensors = tensors_of(config)
        more = {f"{head}.weight": torch.zeros(5, 8), f"{head}.bias": torch.zeros(5)}
        own: Any = build_backbone(with_weights(config, as_safetensors({**tensors, **more}, tmp_path))).network.model
        assert own.state_dict().keys() == tensors.keys()


def test_frozen_batch_norm_without_step_counters_is_loaded(tmp_path: Path) -> None:
    config = BackboneConfig(name="resnet10t")
    tensors = {key: value for key, value in tensors_of(config).items() if "num_batches_tracked" not in key}
    own: Any = build_backbone(with_weights(config, as_safetensors(tensors, tmp_path))).network.model
    assert all(torch.equal(own.state_dict()[key], value) for key, value in tensors.items())


def test_a_file_for_the_whole_network_fits_one_that_ends_at_a_level(tmp_path: Path) -> None:
    tensors = tensors_of(BackboneConfig(name="resnet10t"))
    short = BackboneConfig(name="resnet10t", level=8)
    own: Any = build_backbone(with_weights(short, as_safetensors(tensors, tmp_path))).network.model
    assert all(torch.equal(value, tensors[key]) for key, value in own.state_dict().items())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("img_size", [96, [32, 48]])
def test_a_position_table_of_another_size_is_resized_at_loading(
    img_size: Any, interpolation: Any, tmp_path: Path
) -> None:
    tensors = tensors_of(tiny_vit())
    other = tiny_vit(img_size=img_size, position_interpolation=interpolation)
    own: Any = build_backbone(with_weights(other, as_safetensors(tensors, tmp_path))).network.model
    grid = own.patch_embed.grid_size
    expected = resize_table(tensors["pos_embed"], old=(4, 4), new=grid, interpolation=interpolation)
    torch.testing.assert_close(own.pos_embed, nn.Parameter(expected, requires_grad=False))


def test_official_swin_names_are_understood(tmp_path: Path) -> None:
    """The release counts a merging layer to the stage before it, and stores masks and indices."""
    config = BackboneConfig(name=SWIN, options=TINY_SWIN)
    tensors = tensors_of(config)
    old = {}
    for key, value in tensors.items():
        stage = key.split(".")[1] if ".downsample." in key else ""
        old[key.replace(f"layers.{stage}.", f"layers.{int(stage) - 1}.") if stage else key] = value
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    old |= {"head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}
    own: Any = build_backbone(with_weights(config, as_model_entry(old, tmp_path))).network.model
    assert all(torch.equal(value, tensors[key]) for key, value in own.state_dict().items())


def test_a_file_that_does_not_fit_is_refused_with_its_first_tensor(tmp_path: Path) -> None:
    tensors = tensors_of(tiny_vit())
    less = {key: value for key, value in tensors.items() if key != "blocks.0.attn.qkv.bias"}
    assert "it has no blocks.0.attn.qkv.bias (wanted 24)" in error_of(
        with_weights(tiny_vit(), as_safetensors(less, tmp_path))
    )
    other = {**tensors, "blocks.1.norm1.weight": torch.ones(9)}
    assert "its blocks.1.norm1.weight is 9, wanted 8" in error_of(
        with_weights(tiny_vit(), as_safetensors(other, tmp_path))
    )
    more = {**tensors, "blocks.2.norm1.weight": torch.ones(8)}
    assert "its blocks.2.norm1.weight (8) has no place" in error_of(
        with_weights(tiny_vit(), as_safetensors(more, tmp_path))
    )


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    weights = as_safetensors(tensors_of(BackboneConfig(name="resnet10t")), tmp_path)
    assert "does not fit vit_tiny_patch16_224: it has no cls_token (wanted 1x1x8)" in error_of(
        with_weights(tiny_vit(), weights)
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    config = BackboneConfig(name="resnet10t")
    assert "does not exist" in error_of(with_weights(config, str(tmp_path / "none.pth")))
    assert "is no file" in error_of(with_weights(config, str(tmp_path)))
    for name, content in (("bad.safetensors", b"no weights"), ("bad.pth", b"no weights"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        message = error_of(with_weights(config, str(tmp_path / name)))
        assert f"{name} cannot be read" in message
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    assert "holds no named tensors" in error_of(with_weights(config, str(tmp_path / "epoch.pth")))


class Pickled:
    pass


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Pickled()}, tmp_path / "code.pth")
    message = error_of(with_weights(BackboneConfig(name="resnet10t"), str(tmp_path / "code.pth")))
    assert "code.pth cannot be read" in message


def test_small_cnn_has_no_weight_file() -> None:
    assert "small_cnn has no published weights" in error_of(with_weights(SMALL, "some.pth"))


# -- real weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_weights() -> Path:
    shared = Path(os.environ.get("KAPPASEG_SHARED", Path(__file__).parents[2] / ".." / "shared"))
    path = shared / "backbones" / "mobilenetv2_100.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is absent; set KAPPASEG_SHARED to the folder that holds backbones/")
    return path


def test_real_weights_recognise_their_photos(real_weights: Path) -> None:
    """The pooled map of a frozen MobileNetV2, times the classifier in its file, names what is in a photo."""
    backbone = build_backbone(
        BackboneConfig(
            name="mobilenetv2_100", weights=str(real_weights), options={"pad_type": "same"},
            mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        )
    )  # fmt: skip
    assert backbone.frozen
    tensors = load_file(real_weights)
    classifier = {key: tensors[f"classifier.{key}"].float() for key in ("weight", "bias")}
    photos = real_weights.parent / "check_images"
    expected = json.loads((photos / "expected.json").read_text("utf-8"))
    labelled = {name: fact["imagenet_idx_any_of"] for name, fact in expected.items() if "imagenet_idx_any_of" in fact}
    prepare = v2.Compose(
        [
            v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(backbone.mean), list(backbone.std)),
        ]
    )  # fmt: skip
    for name, labels in labelled.items():
        image = prepare(Image.open(photos / name).convert("RGB"))[None]
        features = backbone(image)
        assert features.shape == (1, 1280, 7, 7)
        assert int(F.linear(features.mean((2, 3)), **classifier).argmax()) in labels, name


def trained_once(config: BackboneConfig, tokens: Tensor | None = None) -> tuple[Tensor, list[Tensor], int]:
    """A map, the gradients of all parameters, and the bytes that were kept for them."""
    torch.manual_seed(0)
    backbone = build_backbone(config).train()
    images, kept = noise(2, 3, 64, 64), {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = backbone(images) if tokens is None else backbone.with_tokens(images, tokens)[0]
    features.square().sum().backward()
    return features, [p.grad for p in backbone.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize(
    "config",
    [
        tiny_vit(drop_path_rate=0.5, proj_drop_rate=0.2, attn_drop_rate=0.1),
        BackboneConfig(name=VIT, level=16, options=TINY_VIT | {"proj_drop_rate": 0.2}),
        BackboneConfig(name=SWIN, options=TINY_SWIN | {"drop_path_rate": 0.5}),
        BackboneConfig(name=CONVNEXT, options=TINY_CONVNEXT | {"drop_path_rate": 0.5}),
    ],
    ids=["vit", "vit, intermediate map", "swin", "convnext"],
)
def test_blocks_that_are_computed_again_give_the_same_gradients_for_less_memory(config: BackboneConfig) -> None:
    plain, again = trained_once(config), trained_once(replace(config, checkpointing=True))
    assert torch.equal(again[0], plain[0])
    assert len(again[1]) == len(plain[1])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again[1], plain[1], strict=True))
    assert again[2] < 0.8 * plain[2]


def test_blocks_that_tokens_join_are_computed_again_too() -> None:
    config, tokens = tiny_vit(drop_path_rate=0.5), noise(3, 8)
    plain, again = trained_once(config, tokens), trained_once(replace(config, checkpointing=True), tokens)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again[1], plain[1], strict=True))
    assert again[2] < 0.8 * plain[2]


def test_nothing_is_computed_again_in_evaluation() -> None:
    backbone = build_backbone(replace(tiny_vit(), checkpointing=True))
    model: Any = backbone.network.model
    assert model.grad_checkpointing
    assert not backbone.eval().network.model.grad_checkpointing
    assert backbone.train().network.model.grad_checkpointing


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (SMALL, "small_cnn cannot compute its blocks again"),
        (BackboneConfig(name="resnet10t"), "resnet10t has batch normalisation, whose statistics would count every"),
        (
            BackboneConfig(name="sequencer2d_s", options=TINY_SEQUENCER),
            "timm cannot compute the blocks of sequencer2d_s again",
        ),
    ],
)
def test_checkpointing_is_refused_where_it_cannot_be(config: BackboneConfig, problem: str) -> None:
    message = error_of(replace(config, checkpointing=True))
    assert message.startswith("backbone.checkpointing = true: ") and problem in message
    assert message.endswith("set it to false")


def test_checkpointing_of_a_frozen_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpointing = true, but a frozen backbone keeps nothing to save on"):
        replace(SMALL, checkpointing=True, frozen=True)
