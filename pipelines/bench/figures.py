"""Time and memory against K: one drawing for a comparison, two diagrams for each precision."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipelines.bench.turns import Record, seconds

INK = "#333a45"
#: title of a way → colour, line, marker; legible in print, and where colours are not told apart
STYLES: dict[str, tuple[str, Any, str]] = {
    "published": ("#8f2d2d", "-", "s"),
    "kept labels, published": ("#d9642b", (0, (5, 1.5)), "^"),
    "all labels, ours": ("#b98500", "-.", "D"),
    "kept labels, plain": ("#8577dd", "--", "v"),
    "kept labels, ours": ("#1f6fc4", "-", "o"),
    "kept labels, ours, no kernel": ("#22976b", (0, (1, 1)), "P"),
    "backbone alone": ("#7a828e", ":", ""),
}
LEGEND_COLUMNS = 4


def cost_figure(title: str, records: Sequence[Record]) -> str:
    """An SVG document, on white. Filled marks are measured, hollow ones estimated (what was too large to run)."""
    precisions = list(dict.fromkeys(record["precision"] for record in records))
    ways = [way for way in STYLES if any(way_of(record) == way for record in records)]
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10, "font.sans-serif": ["DejaVu Sans"]}
    ):
        figure = Figure(figsize=(9.2, 0.9 + 3.1 * len(precisions)), layout="constrained", facecolor="white")
        figure.suptitle(title, color=INK, fontsize=12)
        axes = figure.subplots(len(precisions), 2, squeeze=False, sharex=True, sharey="col")
        for precision, (times, memory) in zip(precisions, axes, strict=True):
            lines = {w: [r for r in records if way_of(r) == w and r["precision"] == precision] for w in ways}
            draw(
                times, f"time of a step, {precision}", time_unit(records), {w: time_points(r) for w, r in lines.items()}
            )
            draw(memory, f"memory of a step, {precision}", "MiB", {w: memory_points(r) for w, r in lines.items()})
        for one in axes.flat:
            finish(one, sorted({record["classes"] for record in records}))
        for one in axes[-1]:
            one.set_xlabel("K, labels of the vocabulary", color=INK)
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, labelcolor=INK,
            handlelength=3,
        )  # fmt: skip
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return re.sub(r"(\d\.\d\d)\d+", r"\1", buffer.getvalue())  # a hundredth of a point is enough


#: (K, value, whether it was measured)
Point = tuple[int, float, bool]


def time_unit(records: Sequence[Record]) -> str:
    return "processor seconds" if records[0]["device"] == "cpu" else "seconds"


def time_points(records: Sequence[Record]) -> list[Point]:
    return [(record["classes"], seconds(record), True) for record in records if "skipped" not in record]


def memory_points(records: Sequence[Record]) -> list[Point]:
    """At least 1 MiB, which has a place on a logarithmic axis."""
    return [
        (
            record["classes"],
            max(1, record["needed_mib" if "skipped" in record else "memory_mib"]),
            "skipped" not in record,
        )
        for record in records
    ]


def way_of(record: Record) -> str:
    """The title of a record's way, without its precision."""
    return str(record["name"]).removesuffix(", bf16")


def draw(axes: Axes, title: str, unit: str, lines: Mapping[str, Sequence[Point]]) -> None:
    """One diagram, both axes logarithmic. What was measured for one K alone does not depend on it: a line across."""
    for way, unordered in lines.items():
        points, (colour, style, marker) = sorted(unordered), STYLES[way]
        look: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.8}
        if way == "backbone alone":
            if points:
                axes.axhline(points[0][1], label=way, **look)
            continue
        place, values, _ = zip(*points, strict=True) if points else ((), (), ())
        known = [value if there else math.nan for _, value, there in points]
        axes.plot(place, known, marker=marker, markersize=5, label=way, **look)
        axes.plot(place, values, color=colour, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        guessed = [(count, value) for count, value, there in points if not there]
        axes.plot(
            [count for count, _ in guessed], [value for _, value in guessed], linestyle="", color=colour,
            marker=marker, markersize=5, markerfacecolor="white",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", ylabel=unit)
    axes.set_title(title, color=INK, fontsize=10.5)


def finish(axes: Axes, vocabularies: Sequence[int]) -> None:
    """Numbers on the axes, over at least a decade, so that what hardly changes looks flat; a quiet grid."""
    low, high = axes.get_ylim()
    if low <= 0:  # nothing was measured
        axes.set_ylim(1, 10)
    elif high < 10 * low:
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
    axes.set_xticks(apart(vocabularies), [f"{count:,}" for count in apart(vocabularies)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.minorticks_off()
    axes.grid(True, color=INK, alpha=0.14, linewidth=0.8)
    axes.tick_params(colors=INK, length=0)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=INK, alpha=0.4)


def apart(counts: Sequence[int]) -> list[int]:
    """Those of ascending numbers that can be written beside each other on a logarithmic axis."""
    shown: list[int] = []
    for count in counts:
        if not shown or count >= 1.4 * shown[-1]:
            shown.append(count)
    return shown
