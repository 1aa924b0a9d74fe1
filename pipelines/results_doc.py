"""Result files (JSON) → one Markdown document in which every table names the command that made it.

No figure is typed by hand: rows are read out of result files, and a file that lacks a value is an error.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.files import write_text

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class ResultTable:
    """Figures of one kind. commands: shell lines that made them. files: the results they were read from."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    commands: tuple[str, ...]
    files: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    heading: str
    prose: tuple[str, ...] = ()
    tables: tuple[ResultTable, ...] = ()


def write_results(destination: Path, sections: Sequence[Section], *, title: str = "Results") -> None:
    """Write the document, whole or not at all. Raises UserError where the folder is missing or cannot be written."""
    blocks = [
        f"# {title}",
        "<!-- Generated from result files: run the generating command again instead of editing. -->",
    ]
    for section in sections:
        blocks += section_blocks(section)
    write_text(destination, "\n\n".join(blocks) + "\n")


def section_blocks(section: Section) -> list[str]:
    """A section's heading, paragraphs and tables, each a Markdown block."""
    blocks = [f"## {section.heading}", *section.prose]
    for table in section.tables:
        blocks.append(markdown_table(table.columns, table.rows))
        if table.note:
            blocks.append(table.note)
        blocks.append("```sh\n" + "\n".join(table.commands) + "\n```")
        if table.files:
            blocks.append("Read from " + ", ".join(f"`{file}`" for file in table.files) + ".")
    return blocks


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table whose source is aligned too; columns of figures stand to the right.

    Raises ValueError for a row of another length.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"row {list(row)} has {len(row)} cells, wanted {len(columns)}: {', '.join(columns)}")
    figures = figure_columns(columns, rows)
    text = [[escaped(cell) for cell in row] for row in [columns, *format_rows(rows)]]
    widths = [max(3, *(len(row[i]) for row in text)) for i in range(len(columns))]
    rule = [("-" * (width - 1) + ":") if right else "-" * width for width, right in zip(widths, figures, strict=True)]
    aligned = [
        [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, figures, strict=True)]
        for row in text
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [aligned[0], rule, *aligned[1:]])


def figure_columns(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> tuple[bool, ...]:
    """Which columns hold figures (numbers, gaps, text that begins like a number) and so stand to the right."""

    def is_figure(cell: Cell) -> bool:
        return cell.lstrip("+-–−")[:1].isdigit() if isinstance(cell, str) else not isinstance(cell, bool)

    return tuple(bool(rows) and all(is_figure(row[i]) for row in rows) for i in range(len(columns)))


def format_rows(rows: Sequence[Sequence[Cell]]) -> list[list[str]]:
    """The cells of a table as text: `format_number`, with the same number of decimals down a column."""
    columns = [format_column(column) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def format_column(cells: Sequence[Cell]) -> list[str]:
    """Cells of one column: three digits that count in its largest figure, at least one decimal.

    Where that would round the smallest figure away, each cell keeps its own three digits.
    """
    sizes = [abs(cell) for cell in cells if isinstance(cell, float) and cell and math.isfinite(cell)]
    decimals = max(1, 2 - math.floor(math.log10(max(sizes)))) if sizes else 1
    if sizes and min(sizes) < 0.5 * 10**-decimals:
        return [format_number(cell) for cell in cells]
    return [
        f"{cell:,.{decimals}f}" if isinstance(cell, float) and math.isfinite(cell) else format_number(cell)
        for cell in cells
    ]


def escaped(text: str) -> str:
    """Text as a Markdown table holds it: one line, bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def format_number(value: Cell, *, digits: int = 3) -> str:
    """A figure as people read it: 12,345; 0.0123; 1.20e-05; three digits that count.

    Text stays as it is; None and NaN are "–"; truth values are yes and no.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded))) if rounded else digits - 1
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def format_percent(share: float | None, *, decimals: int = 1) -> str:
    """A share in 0..1 as percent without the sign, which belongs into the column's heading."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{decimals}f}"


def format_spread(values: Sequence[float], *, decimals: int = 1) -> str:
    """Mean ± sample standard deviation of repeated runs; a single run has no ±."""
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def format_seconds(seconds: float) -> str:
    """A duration as people read it: 0.4 s, 52 s, 3 min 12 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def read_results(path: Path) -> dict[str, Any]:
    """The values of one result file. Raises UserError where it is missing or no JSON object."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"result file {path} cannot be read ({error}); run the command that writes it again") from None
    if not isinstance(values, dict):
        raise UserError(f"result file {path} holds a {type(values).__name__}, wanted named values")
    return values
