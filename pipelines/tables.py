"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

UNLIMITED = 10_000  # columns of text that goes to a file or a program


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers to the right. Plain text, a line per row, where the output is no terminal."""
    table = Table(box=box.SIMPLE_HEAD, show_header=any(columns))
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(is_number(row[place]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = UNLIMITED
    if title:
        console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def show_numbers(title: str, numbers: Mapping[str, float]) -> None:
    """Print flat numbers: plain ones in a list, those named measure@κ as a table with a column per κ."""
    plain = [[name, f"{value:,.4g}"] for name, value in numbers.items() if "@" not in name]
    show_table(title, ["", ""], plain)
    kappas = sorted({int(name.split("@")[1]) for name in numbers if "@" in name})
    measures = dict.fromkeys(name.split("@")[0] for name in numbers if "@" in name)
    if measures:
        cells = [[m, *(f"{100 * numbers[f'{m}@{k}']:.1f}" for k in kappas)] for m in measures]
        show_table("", ["% at κ =", *map(str, kappas)], cells)


def is_number(cell: str) -> bool:
    """A figure, or the dash that stands for one that there is not."""
    return cell == "–" or cell.removeprefix("+").replace(".", "", 1).replace(",", "").replace("-", "", 1).isdigit()
