"""Pictures of label maps and rankings.

Legend: K all labels, κ kept labels, H W pixels of the map. A picture is enlarged or reduced so that its longer side
lies within LONG_SIDE; label maps are never interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kappaseg_core.ranking import IGNORE
from pipelines.palette import hex_colour, palette

#: colour of pixels without a label; no colour of the palette comes near it
NEUTRAL = (128, 128, 128)
INK, MUTED, PAPER, TRACK = (28, 32, 38), (92, 100, 110), (255, 255, 255), (226, 230, 235)
LONG_SIDE = (384, 768)
ROW, TEXT, MARGIN = 24, 15, 12


@dataclass(frozen=True)
class Found:
    """A label that a map contains. share: of all pixels of the map, in 0..1."""

    label: int
    name: str
    share: float


def overlay(
    image: np.ndarray, label_map: np.ndarray, class_names: Sequence[str], *, opacity: float = 0.6, rows: int = 20
) -> Image.Image:
    """The map over the photograph with a legend on the right: the labels found, largest first, with their share.

    image: u8 [3, H, W] or [H, W, 3]. label_map: integer [H, W], 0..K-1 or IGNORE. At most `rows` labels are named;
    one more line counts the others. Raises ValueError for sizes that differ and ids outside the vocabulary.
    """
    return beside(paint(image, label_map, opacity=opacity), legend(labels_found(label_map, class_names), rows=rows))


def beside(picture: Image.Image, key: Image.Image) -> Image.Image:
    """A picture with its legend on the right."""
    canvas = Image.new("RGB", (picture.width + key.width, max(picture.height, key.height)), PAPER)
    canvas.paste(picture, (0, 0))
    canvas.paste(key, (picture.width, 0))
    return canvas


def paint(image: np.ndarray, label_map: np.ndarray, *, opacity: float = 0.6) -> Image.Image:
    """The map over the photograph, without a legend. Arguments as for `overlay`.

    The photograph is shown in grey, so that a colour in the picture can only be that of a label.
    """
    photo = photograph(image, label_map.shape).convert("L").convert("RGB")
    width, height = photo.size
    labels = nearest(label_map, height, width)
    colours = np.concatenate([palette(int(label_map.max(initial=0)) + 1), np.array([NEUTRAL], np.uint8)])
    blended = (1 - opacity) * np.asarray(photo) + opacity * colours[labels]  # IGNORE = -1 picks the last row
    blended[borders(labels)] *= 0.45
    return Image.fromarray(blended.astype(np.uint8))


def photograph(image: np.ndarray, shape: tuple[int, ...] | None = None) -> Image.Image:
    """The image at the size of the painted maps. image: u8 [3, H, W] or [H, W, 3]; shape: (H, W) that it must have."""
    pixels = channels_last(image, shape)
    height, width = pixels.shape[:2]
    scale = min(max(1.0, LONG_SIDE[0] / max(height, width)), LONG_SIDE[1] / max(height, width))
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)


def channels_last(image: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """u8 [3, H, W] or [H, W, 3] → [H, W, 3]. Raises ValueError where neither is (H, W) = `shape`."""
    if image.ndim == 3 and image.shape[0] == 3 and shape in (None, image.shape[1:]):
        return image.transpose(1, 2, 0)
    if image.ndim == 3 and image.shape[2] == 3 and shape in (None, image.shape[:2]):
        return image
    wanted = f"[3, {shape[0]}, {shape[1]}] as its label map has it" if shape else "[3, H, W]"
    raise ValueError(f"image has shape {list(image.shape)}, wanted {wanted}")


def labels_found(label_map: np.ndarray, class_names: Sequence[str]) -> tuple[Found, ...]:
    """The labels of a map, largest area first (equal areas by id); pixels without a label come last, as "no label".

    Raises ValueError for an id outside the vocabulary.
    """
    labels, pixels = np.unique(label_map, return_counts=True)
    if len(labels) and not IGNORE <= labels[0] <= labels[-1] < len(class_names):
        raise ValueError(f"label map holds ids {labels[0]}..{labels[-1]}, wanted -1..{len(class_names) - 1}")
    order = np.lexsort([labels, -pixels, labels == IGNORE])
    found = [(int(labels[i]), float(pixels[i] / label_map.size)) for i in order]
    return tuple(Found(label, "no label" if label == IGNORE else class_names[label], share) for label, share in found)


def legend(found: Sequence[Found], *, rows: int = 20) -> Image.Image:
    """Swatch, name and share of the labels found: at most `rows` lines, one for all others, one for "no label"."""
    named = [f for f in found if f.label != IGNORE]
    lines = [(colour_of(f.label), f.name, percent(f.share)) for f in named[:rows]]
    if others := named[rows:]:
        lines.append((PAPER, f"{len(others)} more", percent(sum(f.share for f in others))))
    lines += [(NEUTRAL, f.name, percent(f.share)) for f in found if f.label == IGNORE]
    names = max((text_width(name) for _, name, _ in lines), default=0)
    shares = max((text_width(share) for *_, share in lines), default=0)
    width = MARGIN + ROW + names + 2 * MARGIN + shares + MARGIN
    canvas = Image.new("RGB", (width, 2 * MARGIN + ROW * len(lines)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for row, (colour, name, share) in enumerate(lines):
        middle = MARGIN + ROW * row + ROW // 2
        pen.rounded_rectangle((MARGIN, middle - 7, MARGIN + 14, middle + 7), 3, fill=colour)
        pen.text((MARGIN + ROW, middle), name, fill=INK, font=font(TEXT), anchor="lm")
        pen.text((width - MARGIN, middle), share, fill=MUTED, font=font(TEXT), anchor="rm")
    return canvas


def side_by_side(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Titled pictures in a row, aligned at the top; none is resized."""
    top = ROW + MARGIN
    width = MARGIN + sum(picture.width + MARGIN for _, picture in panels)
    canvas = Image.new("RGB", (width, top + max(picture.height for _, picture in panels) + MARGIN), PAPER)
    pen, left = ImageDraw.Draw(canvas), MARGIN
    for title, picture in panels:
        pen.text((left, top - 8), title, fill=INK, font=font(TEXT + 1), anchor="ls")
        canvas.paste(picture, (left, top))
        left += picture.width + MARGIN
    return canvas


def ranking_panel(
    names: Sequence[str], scores: Sequence[float], present: Sequence[bool], *, labels: Sequence[int], height: int
) -> Image.Image:
    """A ranking as a picture for `side_by_side`: one bar per rank in its label's colour, hollow where the label is
    absent. names, scores in 0..1, present, labels: κ each, best first; ranks that do not fit `height` are left out.
    """
    bar = 130
    shown = range(min(len(names), (height - MARGIN) // ROW))
    width = bar + 2 * MARGIN + max((text_width(names[rank]) for rank in shown), default=0)
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    for rank in shown:
        middle, colour = ROW * rank + ROW // 2, colour_of(labels[rank])
        pen.rectangle((0, middle - 7, bar, middle + 7), fill=TRACK)
        box = (0, middle - 7, max(3, round(bar * scores[rank])), middle + 7)
        pen.rectangle(box, fill=colour if present[rank] else PAPER, outline=colour, width=2)
        ink = INK if present[rank] else MUTED
        pen.text((bar + MARGIN, middle), names[rank], fill=ink, font=font(TEXT), anchor="lm")
    return canvas


def ranking_bars(
    names: Sequence[str], scores: Sequence[float], present: Sequence[bool], *, labels: Sequence[int]
) -> str:
    """The same ranking as an inline SVG: rank, name, bar and score; absent labels hollow and marked "absent".

    Text takes the colour of the page. names, scores in 0..1, present, labels: κ each, best first.
    """
    ranks = list(zip(names, scores, present, labels, strict=True))
    rows = "".join(ranking_row(rank, *rest) for rank, rest in enumerate(ranks))
    spoken = ", ".join(f"{name} {score:.2f}{'' if there else ' (absent)'}" for name, score, there, _ in ranks)
    return (
        f'<svg class="ranking" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 430 {24 * len(ranks)}" role="img" '
        f'font-size="14" fill="currentColor"><title>Ranked labels: {escape(spoken)}</title>{rows}</svg>'
    )


def ranking_row(rank: int, name: str, score: float, there: bool, label: int) -> str:
    """One rank (from 0) of `ranking_bars`."""
    colour = hex_colour(*colour_of(label))
    short = name if len(name) <= 22 else name[:21] + "…"
    return (
        f'<g transform="translate(0 {24 * rank})">'
        f'<text x="22" y="17" text-anchor="end" fill-opacity=".6">{rank + 1}</text>'
        f'<text x="32" y="17">{escape(short)}</text>'
        '<rect x="205" y="5" width="120" height="14" rx="2" fill-opacity=".1"/>'
        f'<rect x="206" y="6" width="{max(1.0, 118 * score):.1f}" height="12" rx="1.5" '
        f'fill="{colour if there else "none"}" stroke="{colour}" stroke-width="2"/>'
        f'<text x="366" y="17" text-anchor="end">{score:.2f}</text>'
        + ("" if there else '<text x="376" y="17" fill-opacity=".6">absent</text>')
        + "</g>"
    )


def colour_of(label: int) -> tuple[int, int, int]:
    """The RGB colour of a label, NEUTRAL for IGNORE."""
    if label == IGNORE:
        return NEUTRAL
    red, green, blue = palette(label + 1)[label]
    return int(red), int(green), int(blue)


def nearest(label_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map at another size, every pixel the one of the original under its centre."""
    rows = ((np.arange(height) + 0.5) * label_map.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * label_map.shape[1] / width).astype(int)
    return label_map[rows[:, None], columns]


def borders(labels: np.ndarray) -> np.ndarray:
    """Where a pixel's label differs from that of its right or lower neighbour: bool [H, W]."""
    edge = np.zeros(labels.shape, bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def percent(share: float) -> str:
    """A share in 0..1 as people read it; what is there never shows as zero."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def text_width(text: str) -> int:
    return int(np.ceil(font(TEXT).getlength(text)))


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The one font that is there wherever matplotlib is."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
