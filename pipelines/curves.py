"""Curves as inline SVG that takes the colours of the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.results_doc import format_number

#: legible on white and on near-black; the line style differs as well, for those who do not tell the colours apart
STYLES = (
    ("#3b82d6", "-"),
    ("#d9642b", "--"),
    ("#22976b", "-."),
    ("#b98500", ":"),
    ("#c9518f", (0, (6, 1.5))),
    ("#8577dd", (0, (1, 1, 4, 1))),
)
#: stands for the text colour of the page while matplotlib draws
TEXT_COLOUR = "#010203"
#: series with at most this many points show each of them
MARKED_POINTS = 16


@dataclass(frozen=True)
class Curve:
    """One diagram. series: name → (x values, y values), of equal length; NaN leaves a gap. note: a line below it."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    y_range: tuple[float, float] | None = None
    x_scale: Literal["linear", "log"] = "linear"
    note: str = ""


def curve_svg(curve: Curve) -> str:
    """The diagram as an <svg> element: text stays text, no ids but those it refers to, nothing from outside."""
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": curve.title, "text.parse_math": False, "font.size": 10.5}
    ):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        figure.patch.set_alpha(0)
        draw_axes(figure.add_subplot(), curve)
        figure.legend(
            loc="outside lower left",
            ncols=legend_columns(curve),
            frameon=False,
            labelcolor=TEXT_COLOUR,
            handlelength=2.6,
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return inline(buffer.getvalue(), in_words(curve))


def legend_columns(curve: Curve) -> int:
    """As many names in a line as its width holds (about 60 letters, 8 of them taken by each line sample)."""
    widest = max((len(name) for name in curve.series), default=0) + 8
    return max(1, min(len(curve.series), 60 // widest))


def draw_axes(axes: Axes, curve: Curve) -> None:
    """Lines, labels and a quiet grid."""
    for number, (name, (x, y)) in enumerate(curve.series.items()):
        colour, style = STYLES[number % len(STYLES)]
        marker = "o" if len(x) <= MARKED_POINTS else ""
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.8, marker=marker, markersize=4, label=name)
    axes.set(xlabel=curve.x_label, ylabel=curve.y_label, xscale=curve.x_scale)
    if curve.y_range is not None:
        axes.set_ylim(*curve.y_range)
    if curve.x_scale == "log":
        points = sorted({float(value) for x, _ in curve.series.values() for value in x})
        axes.set_xticks(points[:MARKED_POINTS], [f"{value:g}" for value in points[:MARKED_POINTS]])
        axes.minorticks_off()
    axes.patch.set_alpha(0)
    axes.grid(True, color=TEXT_COLOUR, alpha=0.12, linewidth=0.8)
    axes.tick_params(colors=TEXT_COLOUR, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(TEXT_COLOUR)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=TEXT_COLOUR, alpha=0.35)


def inline(document: str, words: str) -> str:
    """A matplotlib SVG document as an element of a page."""
    body = re.sub(r"<metadata>.*?</metadata>", "", document[document.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # would repeat from diagram to diagram
    # the page's own font; matplotlib has written `font: SIZE NAMES` and, later, `font-size: SIZE; font-family: NAMES`
    body = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", body)
    body = re.sub(r'font-family: [^;"]*;? ?', "", body)
    body = body.replace(TEXT_COLOUR, "currentColor")
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None  # matplotlib always writes one
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    content = body[body.index(">") + 1 :]
    return f'<svg {names} {box[0]} role="img"><title>{escape(words)}</title>{content}'


def in_words(curve: Curve) -> str:
    """A diagram for those who do not see it: where each line starts and ends."""
    lines = [
        f"{name} from {format_number(float(y[0]))} at {format_number(float(x[0]))} "
        f"to {format_number(float(y[-1]))} at {format_number(float(x[-1]))}"
        for name, (x, y) in curve.series.items()
        if len(x)
    ]
    return f"{curve.title}. {curve.y_label} over {curve.x_label}: {'; '.join(lines)}"
