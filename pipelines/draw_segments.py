"""Pictures of segments: a colour per label, a shade of it per object. In the manner of draw.py.

Legend: H W pixels of the map, S segments.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.panoptic_files import Categories
from kappaseg_core.segments import VOID, Segments
from pipelines.draw import NEUTRAL, Found, beside, borders, labels_found, legend, nearest, photograph
from pipelines.palette import palette

#: The shades of the objects of a label lie between these shares of white (above 0) and black (below 0), mixed in.
DARKEST, LIGHTEST = -0.3, 0.4
#: of the colours over the photograph: more than for label maps, or shades are not told apart
OPACITY = 0.7
#: multiples of it, without their whole parts, are spread evenly however many there are
GOLDEN = 0.618034
#: pixels of the lines between segments
LINE = 2


def segment_overlay(image: np.ndarray, segments: Segments, categories: Categories) -> Image.Image:
    """Segments over the grey photograph, with a legend of labels, how many objects they have, and their share.

    image: u8 [3, H, W] or [H, W, 3]. Objects of a label are told by shades and a white line; a crowd has stripes.
    """
    return beside(paint_segments(image, segments, categories), legend(counted(segments, categories)))


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
    blended[borders(np.where(thing, number, VOID))] = 255
    return Image.fromarray(blended.astype(np.uint8))


def colours_of(segments: Segments) -> np.ndarray:
    """The colour of each number of the map, f64 [S + 1, 3]: NEUTRAL, then a shade of its label's for each segment.

    The shades of n segments of a label are spread evenly, neighbours in number far apart; one alone has the colour of
    the label.
    """
    labels = segments.labels.numpy()
    base = palette(int(labels.max(initial=0)) + 1)[labels].astype(float)
    shade = np.zeros(len(labels))
    for label in np.unique(labels):
        own = labels == label
        order = np.argsort(np.arange(own.sum()) * GOLDEN % 1)
        shade[np.flatnonzero(own)[order]] = np.linspace(DARKEST, LIGHTEST, len(order)) if len(order) > 1 else 0.0
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
    """The labels found, largest area first, those of things with what there is of them: "car × 3", "person + crowd"."""
    labels, crowd = segments.labels.numpy(), segments.crowd.numpy()
    objects = np.bincount(labels[~crowd], minlength=len(categories.names))
    crowded = set(labels[crowd].tolist())

    def told(label: int, name: str) -> str:
        if label == IGNORE or not categories.things[label]:
            return name
        return name + (f" × {objects[label]}" if objects[label] else "") + (" + crowd" if label in crowded else "")

    found = labels_found(segments.label_map().numpy(), categories.names)
    return tuple(Found(f.label, told(f.label, f.name), f.share) for f in found)
