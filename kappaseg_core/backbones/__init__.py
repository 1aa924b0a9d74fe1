"""Backbones: images → feature maps. A new family is one new module here with `build`.

    build(config, *, image_size) -> nn.Module                the network, not yet frozen
    build_maps(config, wants, *, image_size) -> nn.Module    the same with several maps; only where a family has them

What `build` gives needs `channels`, `stride`, `mean` and `std`, and maps f32 [B, 3, H, W] to [B, channels,
ceil(H/stride), ceil(W/stride)]. A network that takes only certain sizes also has `unit`: it is then given multiples of
it. One that can compute its blocks again in the backward pass has `set_checkpointing(on)`.
What `build_maps` gives has `shapes`, a `MapShape` for each map, instead of channels and stride, and a list of maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.parts import kinds_of, part

if TYPE_CHECKING:  # timm takes seconds to import, and not every kind needs it
    from kappaseg_core.backbones.plain_vit import Begun

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class MapShape:
    """A map [B, channels, ceil(H/stride), ceil(W/stride)] of images [B, 3, H, W]."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Wants:
    """What the network that stands on a backbone needs of it.

    maps: how many, each deeper than the one before. 1 = that of `backbone.level`; more = those of as many last stages,
    or where all have one stride (plain ViT, BEiT), those of blocks at equal distances up to the last one (of 12 and 4
    maps: 2, 5, 8, 11).
    stages: indices of the stages or blocks instead.
    last_blocks: blocks of a plain ViT that are not run by the backbone (`Backbone.begin`).
    """

    maps: int = 1
    stages: tuple[int, ...] | None = None
    last_blocks: int = 0


class Backbone(nn.Module):
    """Images f32 [B, 3, H, W], normalised with `mean` and `std` → [B, channels, ceil(H/stride), ceil(W/stride)].

    H and W are free: where the network needs multiples of `unit`, the image is padded at the right and at the bottom
    with 0 (the mean colour), and the map is cropped again. The map is f32, or autocast's type under autocast.
    mean, std: RGB in [0, 1] units.   frozen: nothing changes, batch-norm statistics included, and no gradient passes.
    checkpointing: while training, blocks keep what they begin with and are computed again in the backward pass.
    shapes: of all maps; channels and stride are those of the last one.   wants: what it was built for.
    """

    channels: int
    stride: int
    shapes: tuple[MapShape, ...]
    mean: RGB
    std: RGB
    frozen: bool

    def __init__(
        self, network: nn.Module, *, mean: RGB | None = None, std: RGB | None = None, frozen: bool = False,
        checkpointing: bool = False, wants: Wants | None = None,
    ) -> None:  # fmt: skip
        """mean, std: others than those of the network's published weights."""
        super().__init__()
        self.network: nn.Module = network
        self.shapes, self.wants = _shapes(network), wants or Wants()
        self.channels, self.stride = self.shapes[-1].channels, self.shapes[-1].stride
        self.unit = _whole(network, "unit") if hasattr(network, "unit") else 1
        self.mean, self.std = mean or _rgb(network, "mean"), std or _rgb(network, "std")
        self.frozen, self.checkpointing = frozen, checkpointing
        if frozen:
            self.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """The last map."""
        return self.maps(images)[-1]

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """All maps, one for each of `shapes`."""
        if not self.frozen:
            return self.found(images)
        with torch.no_grad():
            return self.found(images)

    def found(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.network(self.padded(images))
        maps = [maps] if isinstance(maps, Tensor) else maps
        return tuple(
            self.of_images(features, images, shape.stride) for features, shape in zip(maps, self.shapes, strict=True)
        )

    def begin(self, images: Tensor) -> Begun:
        """All blocks of a plain ViT but the wanted last ones, which are left to the caller."""
        network: Any = self.network
        begun: Begun = network.begin(self.padded(images), self.wants.last_blocks)
        return begun

    def padded(self, images: Tensor) -> Tensor:
        """Zeros at the right and at the bottom, up to multiples of `unit`."""
        height, width = images.shape[-2:]
        below, right = -height % self.unit, -width % self.unit
        return F.pad(images, (0, right, 0, below)) if below or right else images

    def of_images(self, features: Tensor, images: Tensor, stride: int) -> Tensor:
        """A map of padded images without the cells that hold nothing but padding."""
        height, width = images.shape[-2:]
        return features[..., : -(-height // stride), : -(-width // stride)]

    @property
    def takes_tokens(self) -> bool:
        """Whether further tokens can join those of the image (`with_tokens`, `begin`)."""
        return takes_tokens(self.network)

    def with_tokens(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and what became of tokens [N, D] that joined the network before its last block: [B, N, D]."""
        network: Any = self.network
        features, found = network.with_tokens(self.padded(images), tokens)
        return self.of_images(features, images, self.stride), found

    def train(self, mode: bool = True) -> Self:
        """A frozen backbone stays in evaluation mode, whatever is asked of the model around it."""
        super().train(mode and not self.frozen)
        if self.checkpointing:
            network: Any = self.network
            network.set_checkpointing(self.training)
        return self


def build_backbone(config: BackboneConfig, *, image_size: int | None = None, wants: Wants | None = None) -> Backbone:
    """The configured backbone, with its weight file loaded where one is named.

    image_size: side in pixels of the images it will mostly see; position tables and windows are made to fit it.
    wants: what is needed of it; None = one map.
    Raises UserError for an unknown kind, name, level or option, for a weight file that does not fit, and where the
    network does not have what is wanted of it, or cannot do checkpointing.
    """
    wants = wants or Wants()
    module = part(__name__, config.kind, defines="build", setting="backbone.kind")
    if wants.maps > 1 or wants.stages is not None:
        if not hasattr(module, "build_maps"):
            raise UserError(f"backbone.kind = {config.kind} has one map, and this host needs several; use kind timm")
        network = module.build_maps(config, wants, image_size=image_size)
    else:
        network = module.build(config, image_size=image_size)
    if wants.last_blocks:
        check_blocks(config, network, wants.last_blocks)
    if config.checkpointing and not hasattr(network, "set_checkpointing"):
        raise UserError(
            f"backbone.checkpointing = true: {config.kind} cannot compute its blocks again; set it to false"
        )
    return Backbone(
        network, mean=config.mean, std=config.std, frozen=config.is_frozen, checkpointing=config.checkpointing,
        wants=wants,
    )  # fmt: skip


def takes_tokens(network: nn.Module) -> bool:
    return bool(getattr(network, "takes_tokens", False))


def check_blocks(config: BackboneConfig, network: Any, last_blocks: int) -> None:
    """Raise UserError where the last blocks of a network cannot be left to others."""
    if not takes_tokens(network):
        raise UserError(
            f"this host takes over the last blocks of a plain ViT; backbone.name = {config.name} at level "
            f"{config.level} is none, use vit_base_patch16_384 at level 0"
        )
    if last_blocks >= network.depth:
        raise UserError(
            f"this host takes over the last {last_blocks} blocks, but the backbone ({config.kind}, {config.name}) has "
            f"{network.depth}, and one at least has to see the image alone; lower host.options.blocks"
        )
    if config.is_frozen:
        raise UserError("this host takes over the last blocks of the backbone to train them; set backbone.frozen false")


def backbone_kinds() -> tuple[str, ...]:
    """The values that backbone.kind may have: the modules of this package that define `build`, none imported."""
    return kinds_of(__name__, defines="build")


def _shapes(network: nn.Module) -> tuple[MapShape, ...]:
    shapes: tuple[MapShape, ...] | None = getattr(network, "shapes", None)
    return shapes or (MapShape(_whole(network, "channels"), _whole(network, "stride")),)


def _whole(network: nn.Module, name: str) -> int:
    value = getattr(network, name)
    if not isinstance(value, int) or value < 1:
        raise TypeError(f"{type(network).__name__}.{name} = {value!r}, wanted a positive whole number")
    return value


def _rgb(network: nn.Module, name: str) -> RGB:
    red, green, blue = (float(value) for value in getattr(network, name))
    return red, green, blue
