"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; numbers to the right. Plain text where the output is no terminal."""
    show_header = any(columns)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=show_header)
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(is_number(row[place]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=False).print(table)


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
    return cell.replace(".", "", 1).replace(",", "").replace("-", "", 1).isdigit()
