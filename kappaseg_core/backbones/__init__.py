"""Backbones: images → one feature map. A new family is one new module here with `build`.

    build(config, *, image_size) -> nn.Module      the network, not yet frozen

What it gives needs `channels`, `stride`, `mean` and `std`, and maps f32 [B, 3, H, W] to [B, channels, ceil(H/stride),
ceil(W/stride)]. A network that takes only certain sizes also has `unit`: it is then given multiples of it.
One that can compute its blocks again in the backward pass has `set_checkpointing(on)` (BackboneConfig.checkpointing).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.parts import kinds_of, part

RGB = tuple[float, float, float]


class Backbone(nn.Module):
    """Images f32 [B, 3, H, W], normalised with `mean` and `std` → [B, channels, ceil(H/stride), ceil(W/stride)].

    H and W are free: where the network needs multiples of `unit`, the image is padded at the right and at the bottom
    with 0 (the mean colour), and the map is cropped again. The map is f32, or autocast's type under autocast.
    mean, std: RGB in [0, 1] units.   frozen: nothing changes, batch-norm statistics included, and no gradient passes.
    checkpointing: while training, blocks keep what they begin with and are computed again in the backward pass.
    """

    channels: int
    stride: int
    mean: RGB
    std: RGB
    frozen: bool

    def __init__(
        self, network: nn.Module, *, mean: RGB | None = None, std: RGB | None = None, frozen: bool = False,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        """mean, std: others than those of the network's published weights."""
        super().__init__()
        self.network: nn.Module = network
        self.channels, self.stride = _whole(network, "channels"), _whole(network, "stride")
        self.unit = _whole(network, "unit") if hasattr(network, "unit") else 1
        self.mean, self.std = mean or _rgb(network, "mean"), std or _rgb(network, "std")
        self.frozen, self.checkpointing = frozen, checkpointing
        if frozen:
            self.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        if not self.frozen:
            return self.maps(images)
        with torch.no_grad():
            return self.maps(images)

    def maps(self, images: Tensor) -> Tensor:
        return self.of_images(self.network(self.padded(images)), images)

    def padded(self, images: Tensor) -> Tensor:
        """Zeros at the right and at the bottom, up to multiples of `unit`."""
        height, width = images.shape[-2:]
        below, right = -height % self.unit, -width % self.unit
        return F.pad(images, (0, right, 0, below)) if below or right else images

    def of_images(self, features: Tensor, images: Tensor) -> Tensor:
        """A map of padded images without the cells that hold nothing but padding."""
        height, width = images.shape[-2:]
        return features[..., : -(-height // self.stride), : -(-width // self.stride)]

    @property
    def takes_tokens(self) -> bool:
        """Whether further tokens can join those of the image (`with_tokens`)."""
        return bool(getattr(self.network, "takes_tokens", False))

    def with_tokens(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and what became of tokens [N, D] that joined the network before its last block: [B, N, D]."""
        network: Any = self.network
        features, found = network.with_tokens(self.padded(images), tokens)
        return self.of_images(features, images), found

    def train(self, mode: bool = True) -> Self:
        """A frozen backbone stays in evaluation mode, whatever is asked of the model around it."""
        super().train(mode and not self.frozen)
        if self.checkpointing:
            network: Any = self.network
            network.set_checkpointing(self.training)
        return self


def build_backbone(config: BackboneConfig, *, image_size: int | None = None) -> Backbone:
    """The configured backbone, with its weight file loaded where one is named.

    image_size: side in pixels of the images it will mostly see; position tables and windows are made to fit it.
    Raises UserError for an unknown kind, name, level or option, for a weight file that does not fit, and for
    checkpointing where the network has no such thing.
    """
    network = part(__name__, config.kind, defines="build", setting="backbone.kind").build(config, image_size=image_size)
    if config.checkpointing and not hasattr(network, "set_checkpointing"):
        raise UserError(
            f"backbone.checkpointing = true: {config.kind} cannot compute its blocks again; set it to false"
        )
    return Backbone(
        network, mean=config.mean, std=config.std, frozen=config.is_frozen, checkpointing=config.checkpointing
    )


def backbone_kinds() -> tuple[str, ...]:
    """The values that backbone.kind may have: the modules of this package that define `build`, none imported."""
    return kinds_of(__name__, defines="build")


def _whole(network: nn.Module, name: str) -> int:
    value = getattr(network, name)
    if not isinstance(value, int) or value < 1:
        raise TypeError(f"{type(network).__name__}.{name} = {value!r}, wanted a positive whole number")
    return value


def _rgb(network: nn.Module, name: str) -> RGB:
    red, green, blue = (float(value) for value in getattr(network, name))
    return red, green, blue
