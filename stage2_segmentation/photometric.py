"""torchvision's random photometric distortion, number for number and faster.

Its functions work on whole images: what lies between two operations is many times as large as the image, falls out of
the processor's caches, and may be given back to the system each time. Here they work on strips. Changing the hue, by
far the slowest, is written anew: the same sums in the same order, with selections that branch nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

ROWS = 64  # of a strip: 512 columns of one channel are 128 KiB as f32
TINY = np.float32(1e-6)  # stands for 0 below a fraction whose upper side is 0 then; the smallest other value is 1/255
BYTES = 255 + 1.0 - 1e-3  # torchvision's factor from [0, 1] back to 0..255


class Photometric:
    """u8 [3, H, W] → the same after random brightness, contrast, saturation, hue and order of channels."""

    def __init__(self) -> None:
        self.draws = v2.RandomPhotometricDistort()

    def __call__(self, image: Tensor) -> Tensor:
        drawn = self.draws.make_params([image])
        brightness, saturation, hue = (drawn[f"{name}_factor"] for name in ("brightness", "saturation", "hue"))
        contrast, before = drawn["contrast_factor"], drawn["contrast_before"]
        if brightness is not None:
            image = in_strips(lambda strip: F.adjust_brightness(strip, brightness), image)
        if contrast is not None and before:
            image = with_contrast(image, contrast)
        if saturation is not None:
            image = in_strips(lambda strip: F.adjust_saturation(strip, saturation), image)
        if hue is not None:
            image = in_strips(lambda strip: with_hue(strip, hue), image)
        if contrast is not None and not before:
            image = with_contrast(image, contrast)
        return image if drawn["channel_permutation"] is None else image[drawn["channel_permutation"]]


def in_strips(step: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """step(image) for a step that looks at single pixels."""
    return torch.cat([step(strip) for strip in image.split(ROWS, dim=1)], dim=1)


def with_contrast(image: Tensor, factor: float) -> Tensor:
    """Away from, or towards, the mean grey value of the image."""
    grey = torch.cat([grey_values(strip) for strip in image.split(ROWS, dim=1)], dim=1)
    mean = grey.mean(dim=(-3, -2, -1), keepdim=True)
    return in_strips(lambda strip: strip.mul(factor).add_(mean, alpha=1.0 - factor).clamp_(0, 255).byte(), image)


def grey_values(image: Tensor) -> Tensor:
    """u8 [3, H, W] → whole numbers in f32 [1, H, W]."""
    red, green, blue = image.unsqueeze(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def with_hue(image: Tensor, turn: float) -> Tensor:
    """Hue moved by `turn` of the colour circle, by way of HSV. u8 [3, H, W]."""
    pixels = image.numpy()
    hue, saturation, value = hsv(pixels)
    hue += np.float32(turn)
    hue += (hue < 0).astype(np.float32)
    hue -= (hue >= 1).astype(np.float32)
    return torch.from_numpy(rgb(hue, saturation, value, pixels.max(0)))


def hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u8 [3, H, W] → hue, saturation and value, f32 in [0, 1]."""
    scaled = pixels.astype(np.float32)
    scaled *= np.float32(1 / 255)
    red, green, _ = scaled
    most = scaled.max(0)
    spread = most - scaled.min(0)
    saturation = spread / np.maximum(most, TINY)
    is_red = most == red
    is_green = (most == green) & ~is_red
    is_blue = ~(is_red | is_green)
    np.subtract(most, scaled, out=scaled)
    scaled /= np.maximum(spread, TINY)
    from_red, from_green, from_blue = scaled
    hue = (from_blue - from_green) * is_red.astype(np.float32)
    hue += (from_red + np.float32(2) - from_blue) * is_green.astype(np.float32)
    hue += (from_green + np.float32(4) - from_red) * is_blue.astype(np.float32)
    hue *= np.float32(1 / 6)
    hue += np.float32(1)
    hue -= (hue >= 1).astype(np.float32)
    return hue, saturation, most


def rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray, most: np.ndarray) -> np.ndarray:
    """u8 [3, H, W] of hue, saturation and value; most: the value in bytes, u8 [H, W]."""
    sixth = hue * np.float32(6)
    number = sixth.astype(np.uint8)
    sixth -= number
    number[number == 6] = 0
    rest = np.float32(1) - saturation
    rising = saturation * sixth
    falling = as_bytes((np.float32(1) - rising) * value)
    rising = as_bytes((rising + rest) * value)
    least = as_bytes(rest * value)
    at = [-(number == each).view(np.uint8) for each in range(6)]  # 255 where a pixel is in that sixth of the circle
    return np.stack(
        [
            (most & (at[0] | at[5])) | (falling & at[1]) | (least & (at[2] | at[3])) | (rising & at[4]),
            (rising & at[0]) | (most & (at[1] | at[2])) | (falling & at[3]) | (least & (at[4] | at[5])),
            (least & (at[0] | at[1])) | (rising & at[2]) | (most & (at[3] | at[4])) | (falling & at[5]),
        ]
    )


def as_bytes(values: np.ndarray) -> np.ndarray:
    """f32 in about [0, 1] → u8."""
    np.clip(values, 0, 1, out=values)
    values *= np.float32(BYTES)
    return values.astype(np.uint8)
