"""One colour per label, the same in every picture and for every K."""

from __future__ import annotations

from functools import cache

import numpy as np

# OKLab → cone responses (cube roots) → linear sRGB, transposed for row vectors
LAB_TO_CONES = np.array(
    [
        [1.0, 1.0, 1.0],
        [0.3963377774, -0.1055613458, -0.0894841775],
        [0.2158037573, -0.0638541728, -1.2914855480],
    ]
)
CONES_TO_LINEAR = np.array(
    [
        [4.0767416621, -1.2684380046, -0.0041960863],
        [-3.3077115913, 2.6097574011, -0.7034186147],
        [0.2309699292, -0.3413193965, 1.7076147010],
    ]
)


@cache
def palette(num_classes: int) -> np.ndarray:
    """K distinct colours, u8 [K, 3], read-only; the first k are the same for every K, and neighbouring ids differ.

    Candidates fill a box of OKLCH (Ottosson 2020) evenly. The first 512 colours are taken from 4096 candidates, each
    as far as possible from those before it; later ones follow in the order of the candidates.
    """
    pool = candidates(4096)
    first = farthest_first(pool, 512)
    colours = pool[first]
    if num_classes > len(first):
        rest = np.setdiff1d(np.arange(num_classes), first)
        colours = np.concatenate([colours, candidates(max(num_classes, 4096))[rest]])
    colours = colours[:num_classes]
    colours.flags.writeable = False
    return colours


@cache
def hex_colours(num_classes: int) -> tuple[str, ...]:
    """The same as CSS writes them: #rrggbb."""
    return tuple(hex_colour(*colour) for colour in palette(num_classes).tolist())


def hex_colour(red: int, green: int, blue: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"


def candidates(count: int) -> np.ndarray:
    """The first `count` distinct colours, u8 [count, 3], of one endless sequence through hue, lightness and chroma.

    The R3 sequence (powers of the inverse of the real root of x⁴ = x + 1) visits the box evenly at any length.
    """
    steps = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    length = 2 * count
    while True:
        hue, lightness, chroma = np.mod(0.5 + np.arange(length)[:, None] * steps, 1.0).T
        colours = oklch_to_rgb(0.46 + 0.42 * lightness, 0.07 + 0.14 * chroma, 2 * np.pi * hue)
        kept = np.sort(np.unique(colours, axis=0, return_index=True)[1])
        if len(kept) >= count:
            return colours[kept[:count]]
        length *= 2


def oklch_to_rgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """OKLCH (lightness 0..1, chroma, hue in radians; f64 [n]) → sRGB u8 [m, 3], without what no screen shows."""
    cones = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1) @ LAB_TO_CONES
    linear = cones**3 @ CONES_TO_LINEAR
    linear = np.clip(linear[((linear >= 0) & (linear <= 1)).all(1)], 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


def farthest_first(colours: np.ndarray, count: int) -> np.ndarray:
    """Indices i64 [count] into colours u8 [n, 3]: the first, then always the one furthest from all before it.

    Distances are "redmean" ones at medium red, a cheap stand-in for how different two sRGB colours look.
    """
    points = colours * np.sqrt([2.5, 4.0, 2.5])
    chosen = [0]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
    return np.array(chosen)
