"""Any network of timm that keeps a map: convolutional ones, plain ViT, Swin and most others. `name` is timm's name.

Two passes without numbers (meta tensors) at a small odd size find out what timm does not state in one way for all
families: channels, layout, the sizes a network takes, and the parameters that its map does not depend on.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, list_models, model_entrypoint
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.backbones.on_cpu import use_faster_modules
from kappaseg_core.backbones.plain_vit import Begun, begin, has_plain_blocks
from kappaseg_core.backbones.positions import Interpolation, Positions
from kappaseg_core.backbones.relative_positions import has_relative_positions, tables_resized, take_any_size
from kappaseg_core.backbones.shifted_windows import pad_before_shift
from kappaseg_core.backbones.weight_files import Convert, load_weight_file
from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.weights.files import one_line

#: options that are decided here: the others would fetch weights, keep the classifier or change what comes out
RESERVED = ("pretrained", "pretrained_cfg", "checkpoint_path", "num_classes", "in_chans", "features_only", "cache_dir")
ODD_SIZE = (97, 131)  # every level of 97 is odd, so a layer that rounds down shows


class TimmNetwork(nn.Module):
    """Images f32 [B, 3, H, W], H and W multiples of `unit` → maps [B, channels, H/stride, W/stride], rounded up.

    stages: indices of the intermediate maps; None = the final one alone, which for MobileNet and EfficientNet includes
    the last 1×1 convolution (1280 channels) that their last stage lacks.
    shapes: of the maps.   unit: see above. Both are found by `measure`.
    """

    shapes: tuple[MapShape, ...]
    unit: int

    def __init__(self, model: nn.Module, stages: tuple[int, ...] | None) -> None:
        super().__init__()
        self.model, self.stages, self.checkpointing = model, stages, False
        features: Any = model.feature_info
        published: Any = model.pretrained_cfg
        self.strides = [int(features[stage]["reduction"]) for stage in stages or [-1]]
        self.mean, self.std = tuple(published["mean"]), tuple(published["std"])

    def forward(self, images: Tensor) -> list[Tensor]:
        model: Any = self.model
        if self.stages is not None:
            # norm: the last map of a ViT or Swin is then the final one, after its last norm. A ViT's others pass the
            # same norm; a BEiT that pools by the mean, as the published ones do, has none there
            maps: list[Tensor] = model.forward_intermediates(
                images, indices=list(self.stages), norm=True, stop_early=True, output_fmt="NCHW",
                intermediates_only=True,
            )  # fmt: skip
            return maps
        features: Tensor = model.forward_features(images)
        if features.ndim == 3:
            return [self.as_map(features, images)]
        return [features.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features]

    def set_checkpointing(self, on: bool) -> None:
        """Whether blocks are computed again in the backward pass, where timm has that."""
        model: Any = self.model
        model.set_grad_checkpointing(on)
        self.checkpointing = on

    @property
    def takes_tokens(self) -> bool:
        """Whether `with_tokens` and `begin` work: plain ViTs up to their last block."""
        return self.stages is None and has_plain_blocks(self.model)

    @property
    def called_apart(self) -> Sequence[nn.Module]:
        """The blocks of a plain ViT, each of which `begin` calls by itself; none of others (see compiling)."""
        model: Any = self.model
        return tuple(model.blocks) if self.takes_tokens else ()

    @property
    def depth(self) -> int:
        """Blocks of a plain ViT."""
        return len(self.called_apart)

    def begin(self, images: Tensor, last_blocks: int) -> Begun:
        """All blocks of a plain ViT but the last ones, on images (sides multiples of `unit`)."""
        return begin(self.model, images, last_blocks, stride=self.strides[0])

    def with_tokens(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, D] join those of the images (sides multiples of `unit`) before the last block.

        Gives the map [B, D, h, w] and the N tokens [B, N, D], both after the final norm.
        """
        begun = self.begin(images, 1)
        images_and_tokens = begun.norm(begun.through(0, begun.joined(tokens.expand(images.shape[0], -1, -1))))
        return begun.map(images_and_tokens), images_and_tokens[:, begun.tokens.shape[1] :]

    def as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Tokens [B, prefix + h·w, D] of images → [B, D, h, w]."""
        cells = tokens[:, getattr(self.model, "num_prefix_tokens", 0) :].transpose(1, 2)
        return cells.unflatten(2, (images.shape[-2] // self.strides[0], images.shape[-1] // self.strides[0]))


def build(config: BackboneConfig, *, image_size: int | None = None) -> TimmNetwork:
    """The named network with one map, that of `level`."""
    return build_with(config, lambda model: level_stage(model, config), image_size)


def build_maps(config: BackboneConfig, wants: Wants, *, image_size: int | None = None) -> TimmNetwork:
    """The named network with several maps. Raises UserError where it does not have them."""
    return build_with(config, lambda model: wanted_stages(model, config, wants), image_size)


def build_with(
    config: BackboneConfig, choose: Callable[[Any], tuple[int, ...] | None], image_size: int | None
) -> TimmNetwork:
    """The named network without classifier and with the chosen maps; layers behind the last of them are left out.

    options: keyword arguments of timm's constructor; for plain ViT and BEiT also `position_interpolation` (bicubic,
    bilinear) and `norm_eps` (of all layer normalisations; timm's is 1e-6, the original Segmenter's 1e-5), and for Swin
    `pad_before_shift` (as published; timm shifts first).
    image_size: the network is made for it where that is larger than the size of its published weights, so that no
    position table loses detail and no window gets smaller; options.img_size overrules.
    """
    options = dict(config.options)
    interpolation, norm_eps = take_interpolation(options), take_norm_eps(options)
    pads_first = take_padding(options)
    model = create(config.name, options, image_size)
    if pads_first:
        pad_before_shift(model, config.name)
    plain, relative = is_plain_vit(model), has_relative_positions(model)
    if not (plain or relative) and (interpolation is not None or norm_eps is not None):
        name = "norm_eps" if interpolation is None else "position_interpolation"
        raise UserError(f"backbone.options.{name} is for plain ViTs and BEiT; {config.name} is neither, leave it out")
    if plain:
        model._pos_embed = Positions(model, interpolation or "bicubic")
    elif relative:
        take_any_size(model, interpolation or "bicubic")
    set_norm_eps(model, norm_eps)
    stages = choose(model)
    if config.weights is not None:
        load(model, config, interpolation or "bicubic")
    if stages is not None:
        model.prune_intermediate_layers(list(stages), prune_norm=False, prune_head=True)
    use_faster_modules(model)
    network = TimmNetwork(model, stages)
    measure(network, config.name)
    if config.checkpointing:
        check_checkpointing(network, config.name)
    return network


def check_checkpointing(network: TimmNetwork, name: str) -> None:
    """Raise UserError where blocks cannot be computed again, or not without another result."""
    problem = ""
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        problem = f"{name} has batch normalisation, whose statistics would count every image twice"
    else:
        try:
            network.set_checkpointing(True)
        except (AssertionError, AttributeError):
            problem = f"timm cannot compute the blocks of {name} again"
    if problem:
        raise UserError(f"backbone.checkpointing = true: {problem}; set it to false")


def take_interpolation(options: dict[str, Any]) -> Interpolation | None:
    """Remove position_interpolation from the options. Raises UserError for other values and for reserved options."""
    for key in RESERVED:
        if key in options:
            raise UserError(f"backbone.options.{key} is set here; leave it out (weights come from backbone.weights)")
    value: Interpolation | None = options.pop("position_interpolation", None)
    if value is not None and value not in get_args(Interpolation):
        wanted = " or ".join(get_args(Interpolation))
        raise UserError(f"backbone.options.position_interpolation = {value!r}, wanted {wanted}")
    return value


def take_norm_eps(options: dict[str, Any]) -> float | None:
    """Remove norm_eps from the options. Raises UserError where it is no number above 0."""
    value = options.pop("norm_eps", None)
    try:
        eps = None if value is None else float(value)  # YAML 1.1 reads 1e-5 as text
    except (TypeError, ValueError):
        eps = 0.0
    if eps is not None and not eps > 0:
        raise UserError(f"backbone.options.norm_eps = {value!r}, wanted a number above 0")
    return eps


def take_padding(options: dict[str, Any]) -> bool:
    """Remove pad_before_shift from the options. Raises UserError where it is neither true nor false."""
    value = options.pop("pad_before_shift", False)
    if not isinstance(value, bool):
        raise UserError(f"backbone.options.pad_before_shift = {value!r}, wanted true or false")
    return value


def set_norm_eps(model: nn.Module, eps: float | None) -> None:
    """The eps of all layer normalisations; None leaves timm's."""
    for module in model.modules():
        if eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = eps


def create(name: str, options: Mapping[str, Any], image_size: int | None) -> Any:
    """The model with random weights, told to take images of any size where it can be told. Raises UserError."""
    if not is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], list_models(), 3)
        hint = f"near are {', '.join(close)}" if close else "timm.list_models() lists them"
        raise UserError(f"backbone.name = {name!r} is no model of timm; {hint}")
    try:
        published = get_pretrained_cfg(name)
    except RuntimeError as error:  # the part behind the dot
        raise UserError(
            f"backbone.name = {name!r}: {one_line(error)} give a published one, or the name alone"
        ) from None
    size: dict[str, Any] = {}
    if image_size is not None and published is not None and image_size > published.input_size[-1]:
        size = {"img_size": image_size}
    model = create_for_any_size(name, options, size)
    patch = patch_size(model)
    if "img_size" in size and size["img_size"] % patch:
        model = create_for_any_size(name, options, {"img_size": up_to_multiple(size["img_size"], patch)})
    return model


def create_for_any_size(name: str, options: Mapping[str, Any], size: Mapping[str, Any]) -> Any:
    """timm's constructors differ in what they call it; one that knows no word for it is asked without."""
    for extra in ({**size, "dynamic_img_size": True}, {**size, "strict_img_size": False}, size, {}):
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **{**extra, **options})
        except TypeError as error:
            added = set(extra) - set(options)
            if "unexpected keyword" not in str(error) or not added.intersection(re.findall(r"'(\w+)'", str(error))):
                raise UserError(f"backbone.options do not fit {name}: {one_line(error)}") from None
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"backbone.name = {name} with options {dict(options)}: {one_line(error)}") from None
    raise AssertionError("unreachable: the last attempt adds no keyword of its own")


def is_plain_vit(model: Any) -> bool:
    """Whether the model adds a position table to a grid of any size, the way that `Positions` does it."""
    return isinstance(model, VisionTransformer) and model.pos_embed is not None and bool(model.dynamic_img_size)


def patch_size(model: Any) -> int:
    """Side of the patches in pixels; 1 where there are none."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return max(patch) if isinstance(patch, tuple) else int(patch)


def up_to_multiple(size: int, patch: int) -> int:
    return -(-size // patch) * patch


def level_stage(model: Any, config: BackboneConfig) -> tuple[int] | None:
    """Index of the last intermediate map with the stride `level`; None for the final map (level 0)."""
    if config.level == 0:
        return None
    strides = [int(info["reduction"]) for info in model.feature_info]
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"backbone.level = {config.level}: {config.name} gives only its final map; set level 0")
    if config.level not in strides:
        there = ", ".join(map(str, sorted(set(strides))))
        raise UserError(f"backbone.level = {config.level}: {config.name} has maps at strides {there} (0 = final map)")
    return (len(strides) - 1 - strides[::-1].index(config.level),)


def wanted_stages(model: Any, config: BackboneConfig, wants: Wants) -> tuple[int, ...]:
    """Indices of several maps, in ascending order. Raises UserError where they are not there."""
    if config.level:
        raise UserError(f"backbone.level = {config.level}, but this host takes several maps; set level 0")
    strides = [info["reduction"] for info in model.feature_info]
    there = len(strides) if hasattr(model, "forward_intermediates") else 1
    if wants.stages is not None:
        if not 0 <= min(wants.stages) <= max(wants.stages) < there or list(wants.stages) != sorted(set(wants.stages)):
            raise UserError(
                f"this host takes the maps {list(wants.stages)} of {config.name}, wanted ascending ones of 0 to "
                f"{there - 1}; change host.options"
            )
        return wants.stages
    if there < wants.maps:
        raise UserError(f"this host takes {wants.maps} maps, but {config.name} has {there}; use another backbone")
    if len(set(strides)) == 1:  # blocks, no stages
        return tuple((number + 1) * there // wants.maps - 1 for number in range(wants.maps))
    return tuple(range(there - wants.maps, there))


def load(model: Any, config: BackboneConfig, interpolation: Interpolation) -> None:
    """Fill the model from config.weights; position tables of another size are resized. Raises UserError."""
    load_weight_file(
        model, Path(config.weights or ""), name=config.name, convert=to_timm(model, config.name, interpolation),
        spare=classifiers(model),
    )  # fmt: skip


def to_timm(model: Any, name: str, interpolation: Interpolation = "bicubic") -> Convert:
    """timm's own function from the names of older programs to its own, for one of its models."""
    module = sys.modules[model_entrypoint(name).__module__]
    rename = getattr(module, "checkpoint_filter_fn", None)
    wishes = {"model": model, "interpolation": interpolation, "antialias": False}
    known = signature(rename).parameters if rename else {}
    convert: Convert = (
        partial(rename, **{key: value for key, value in wishes.items() if key in known}) if rename else dict
    )  # fmt: skip
    if not has_relative_positions(model):
        return convert
    return lambda tensors: convert(tables_resized(tensors, model, interpolation))


def classifiers(model: Any) -> tuple[str, ...]:
    """Modules of a classifier that a weight file may hold though the network has none."""
    own = model.pretrained_cfg.get("classifier") or ()
    return (*((own,) if isinstance(own, str) else own), "fc_norm", "pre_logits")


def measure(network: TimmNetwork, name: str) -> None:
    """Set shapes and unit; exclude from training what the maps do not depend on. Raises UserError.

    A parameter without gradient would stop distributed training, which waits for the gradients of all.
    """
    problem = ""
    for unit in sorted({1, patch_size(network.model), *network.strides, 32}):
        height, width = (up_to_multiple(side, unit) for side in ODD_SIZE)
        try:
            shapes, unused = dry_run(network, height, width)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            problem = one_line(error)
            continue
        wanted = [(-(-height // stride), -(-width // stride)) for stride in network.strides]
        if [shape[2:] for shape in shapes] == wanted:
            network.shapes = tuple(MapShape(shape[1], s) for shape, s in zip(shapes, network.strides, strict=True))
            network.unit = unit
            for parameter in unused:
                parameter.requires_grad_(False)
            return
        problem = f"a {height}x{width} image gives maps {shapes}, wanted {wanted} cells"
    raise UserError(
        f"backbone.name = {name} cannot give a map for images of any size ({problem}); choose another model"
    )


def dry_run(network: TimmNetwork, height: int, width: int) -> tuple[list[tuple[int, ...]], list[nn.Parameter]]:
    """Shapes of the maps for two images, and the parameters that they do not depend on; computes no numbers."""
    parameters = dict(network.named_parameters())
    empty = {key: torch.empty_like(value, device="meta", requires_grad=True) for key, value in parameters.items()}
    buffers = {key: value.to("meta") for key, value in network.named_buffers()}
    network.eval()
    with torch.enable_grad():
        maps: list[Tensor] = functional_call(
            network, {**empty, **buffers}, torch.empty(2, 3, height, width, device="meta")
        )
        total = torch.stack([features.sum() for features in maps]).sum()
        gradients = torch.autograd.grad(total, list(empty.values()), allow_unused=True)
    network.train()
    unused = [p for p, gradient in zip(parameters.values(), gradients, strict=True) if gradient is None]
    return [tuple(features.shape) for features in maps], unused
