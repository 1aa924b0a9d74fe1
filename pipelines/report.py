"""One self-contained HTML page that tells a run from its first command to its label maps.

Everything is inside the file: pictures as data URIs, curves and rankings as inline SVG, no script.
Legend: K all labels, κ kept labels, H W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from kappaseg_core.files import write_text
from kappaseg_core.ranking import IGNORE
from pipelines.curves import Curve, curve_svg
from pipelines.draw import Found, colour_of, labels_found, paint, percent, photograph, ranking_bars
from pipelines.results_doc import Cell, figure_columns, format_number, format_rows, format_seconds

#: labels named in the legend of one example; the others are counted in one line
LEGEND_ROWS = 12


@dataclass(frozen=True)
class Step:
    """One command of the run. numbers: what it has to say, in the order to show."""

    name: str
    command: str
    seconds: float
    peak_memory_mib: float
    numbers: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def figures(self) -> tuple[bool, ...]:
        """Which columns stand to the right."""
        return figure_columns(self.columns, self.rows)

    @property
    def text(self) -> list[list[str]]:
        """The cells as they are shown."""
        return format_rows(self.rows)


@dataclass(frozen=True)
class RankedLabel:
    """One rank of an image. score: in 0..1; present: whether the truth has a pixel of the label."""

    label: int
    score: float
    present: bool


@dataclass(frozen=True)
class Example:
    """One image: what is there, how its labels were ranked, and the map that each scheme makes of it.

    image: u8 [3, H, W]. truth and every map: integer [H, W], 0..K-1 or IGNORE. ranking: best first.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    maps: Mapping[str, np.ndarray]
    ranking: tuple[RankedLabel, ...]


@dataclass(frozen=True)
class Report:
    """What the page shows, top to bottom. headline, findings: the result, before anything else.

    class_names: the K names that the examples' ids mean.
    """

    title: str
    intro: tuple[str, ...] = ()
    headline: Table | None = None
    findings: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    curves: tuple[Curve, ...] = ()
    tables: tuple[Table, ...] = ()
    steps: tuple[Step, ...] = ()
    class_names: tuple[str, ...] = ()
    footer: str = ""


def write_report(path: Path, report: Report) -> None:
    """Write the page, whole or not at all. Raises UserError where it cannot be written."""
    page = template("report.html").render(
        title=report.title,
        intro=report.intro,
        footer=report.footer,
        report=report,
        examples=[example_view(example, report.class_names) for example in report.examples],
        curves=[Markup(curve_svg(curve)) for curve in report.curves],
        total_seconds=sum(step.seconds for step in report.steps),
        peak_memory_mib=max((step.peak_memory_mib for step in report.steps), default=0),
    )
    write_text(path, page)


def template(name: str) -> jinja2.Template:
    """A page of pipelines/templates; a name that it is not given is an error, and what it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, seconds=format_seconds, percent=percent)
    return environment.get_template(name)


def example_view(example: Example, class_names: Sequence[str]) -> dict[str, object]:
    """What the template needs to know of an example: pictures with captions and alternative texts, bars, legend."""
    maps = {"Truth": example.truth, **example.maps}
    right = {name: f"{percent(agreement(made, example.truth))} of pixels right" for name, made in example.maps.items()}
    pictures = [("Image", "", f"Image {example.title}", photograph(example.image, example.truth.shape))]
    for name, label_map in maps.items():
        words = spoken(name, labels_found(label_map, class_names))
        pictures.append((name, right.get(name, ""), words, paint(example.image, label_map)))
    ranks = example.ranking
    bars = ranking_bars(
        [class_names[r.label] for r in ranks],
        [r.score for r in ranks],
        [r.present for r in ranks],
        labels=[r.label for r in ranks],
    )
    return {
        "title": example.title,
        "pictures": [(name, caption, alt, data_uri(picture)) for name, caption, alt, picture in pictures],
        "ranking": Markup(bars) if ranks else "",
        "legend_columns": list(maps),
        "legend": legend_rows([labels_found(label_map, class_names) for label_map in maps.values()]),
    }


def agreement(label_map: np.ndarray, truth: np.ndarray) -> float:
    """Share of the labelled pixels that a map gets right, in 0..1; 0 where no pixel is labelled."""
    labelled = truth != IGNORE
    return float((label_map == truth)[labelled].mean()) if labelled.any() else 0.0


def legend_rows(maps: Sequence[Sequence[Found]]) -> list[tuple[str, str, list[float]]]:
    """(colour, name, share in each map) of the labels with the largest area in any map, then one line for the other
    labels and one for pixels without a label."""
    shares = [{found.label: found.share for found in one} for one in maps]
    names = {found.label: found.name for one in maps for found in one}
    order = sorted(names.keys() - {IGNORE}, key=lambda label: (-max(one.get(label, 0.0) for one in shares), label))

    def row(colour: str, name: str, *labels: int) -> tuple[str, str, list[float]]:
        return colour, name, [sum(one.get(label, 0.0) for label in labels) for one in shares]

    rows = [row(css(label), names[label], label) for label in order[:LEGEND_ROWS]]
    if others := order[LEGEND_ROWS:]:
        rows.append(row("transparent", f"{len(others)} more", *others))
    if IGNORE in names:
        rows.append(row(css(IGNORE), names[IGNORE], IGNORE))
    return rows


def css(label: int) -> str:
    """The colour of a label as CSS has it."""
    return "rgb({} {} {})".format(*colour_of(label))


def spoken(name: str, found: Sequence[Found]) -> str:
    """A map in words, for those who do not see it."""
    parts = [f"{f.name} {percent(f.share)}" for f in found[:8]] + (["and others"] if len(found) > 8 else [])
    return f"Label map, {name}: {', '.join(parts)}"


def data_uri(picture: Image.Image) -> str:
    """A picture as text that HTML takes for an address (JPEG, full colour resolution)."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
