"""A small convolutional network without pretrained weights: for synthetic scenes, tests, and as an example of a
backbone that is one file. `name` is its width in channels, for example "96".
"""

from __future__ import annotations

from torch import Tensor, nn

from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError

LEVELS = (4, 8)


class SmallCnn(nn.Module):
    """Images f32 [B, 3, H, W] → f32 [B, width, ceil(H/stride), ceil(W/stride)].

    Receptive field at stride 4: 47 pixels, at stride 8: 95; enough for the grating of a region and its neighbours.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = width, stride
        self.mean, self.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        half = width // 2
        layers = [conv(3, half, 2), conv(half, half, 1), conv(half, width, 2), Residual(width), Residual(width)]
        if stride == 8:
            layers += [conv(width, width, 2), Residual(width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width, 1), conv(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y


def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def build(config: BackboneConfig, *, image_size: int | None = None) -> nn.Module:
    """The network at stride `level` (4 or 8; 0 = 8)."""
    if not config.name.isdigit() or int(config.name) < 2:
        raise UserError(f"backbone.name = {config.name!r}, wanted a width in channels such as '96' for kind small_cnn")
    if config.weights is not None:
        raise UserError("backbone.weights is set, but small_cnn has no published weights; set it to null")
    stride = config.level or LEVELS[-1]
    if stride not in LEVELS:
        raise UserError(
            f"backbone.level = {config.level}, wanted one of 0, {', '.join(map(str, LEVELS))} for small_cnn"
        )
    return SmallCnn(int(config.name), stride)
