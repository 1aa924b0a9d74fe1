"""Pictures of segments: a colour per label, a shade of it per object. In the manner of draw.py.

Legend: H W pixels of the map, S segments.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from kappaseg_core.scenes.panoptic_files import Categories
from kappaseg_core.segments import Segments
from pipelines.draw import NEUTRAL, PAPER, Found, borders, labels_found, legend, nearest, photograph
from pipelines.palette import palette

#: The shades of the objects of a label lie between these shares of white (above 0) and black (below 0), mixed in.
DARKEST, LIGHTEST = -0.3, 0.4
#: of the colours over the photograph: more than for label maps, or shades are not told apart
OPACITY = 0.7
#: thickness of the line around objects: they are the same colour as their neighbours, nearly
LINE = 2


def segment_overlay(
    image: np.ndarray, segments: Segments, categories: Categories, *, opacity: float = 0.65
) -> Image.Image:
    """Segments over the grey photograph, with a legend of labels, how many objects they have, and their share.

    image: u8 [3, H, W] or [H, W, 3]. Objects of a label are told by shades and a white line; a crowd has stripes.
    """
    picture = paint_segments(image, segments, categories)
    key = legend(counted(segments, categories))
    canvas = Image.new("RGB", (picture.width + key.width, max(picture.height, key.height)), PAPER)
    canvas.paste(picture, (0, 0))
    canvas.paste(key, (picture.width, 0))
    return canvas


def paint_segments(image: np.ndarray, segments: Segments, categories: Categories) -> Image.Image:
    """The same without the legend."""
    number = segments.map.numpy()
    photo = photograph(image, number.shape).convert("L").convert("RGB")
    width, height = photo.size
    number = nearest(number, height, width)
    blended = (1 - OPACITY) * np.asarray(photo) + OPACITY * colours_of(segments)[number]
    crowd = np.concatenate([[False], segments.crowd.numpy()])[number]
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // 6) % 2 == 0
    blended[crowd & stripes] = 0.5 * blended[crowd & stripes] + 0.5 * 255
    thing = np.array([False, *(categories.things[label] for label in segments.labels.tolist())])[number]
    blended[thick(borders(number), LINE - 1)] *= 0.45
    blended[borders(number) & thing] = 255
    return Image.fromarray(blended.astype(np.uint8))


def colours_of(segments: Segments) -> np.ndarray:
    """The colour of each number of the map, f64 [S + 1, 3]: NEUTRAL, then a shade of its label's for each segment.

    The shades of n segments of a label are spread evenly; one alone has the colour of the label.
    """
    labels = segments.labels.numpy()
    base = palette(int(labels.max(initial=0)) + 1)[labels].astype(float)
    shade = np.zeros(len(labels))
    for label in np.unique(labels):
        own = labels == label
        shade[own] = np.linspace(DARKEST, LIGHTEST, own.sum()) if own.sum() > 1 else 0.0
    towards = np.where(shade > 0, 255.0, 0.0)[:, None]
    return np.concatenate([[NEUTRAL], base + np.abs(shade)[:, None] * (towards - base)])


def thick(lines: np.ndarray, pixels: int) -> np.ndarray:
    """Lines bool [H, W] with so many pixels more to the right and below."""
    wide = lines.copy()
    for step in range(1, pixels + 1):
        wide[step:] |= lines[:-step]
        wide[:, step:] |= lines[:, :-step]
    return wide


def counted(segments: Segments, categories: Categories) -> tuple[Found, ...]:
    """The labels found, largest area first, those of things with the number of their objects: "car × 3"."""
    objects = np.bincount(segments.labels.numpy()[~segments.crowd.numpy()], minlength=len(categories.names))
    found = labels_found(segments.label_map().numpy(), categories.names)
    return tuple(
        Found(f.label, f"{f.name} × {objects[f.label]}", f.share) if f.label >= 0 and categories.things[f.label] else f
        for f in found
    )
