"""Cells of the tables: numbers of a scheme's entry in results.json as they are shown. Shares are shown in percent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.report import Table
from pipelines.results_doc import Cell

Results = Mapping[str, Any]
#: column heading → the cell of a scheme's entry
Columns = Mapping[str, Callable[[Mapping[str, Any]], Cell]]


def share(name: str) -> Callable[[Mapping[str, Any]], Cell]:
    """A share of the entry, in percent."""
    return lambda entry: None if entry.get(name) is None else in_percent(entry[name])


def plain(name: str, unit: float = 1.0) -> Callable[[Mapping[str, Any]], Cell]:
    """A number of the entry in the given unit."""
    return lambda entry: None if entry.get(name) is None else entry[name] / unit


def interval(name: str) -> Callable[[Mapping[str, Any]], Cell]:
    """An interval of shares in percent: "41.2 to 43.9"."""
    return lambda entry: between(entry.get(name))


def between(shares: Sequence[float] | None) -> Cell:
    if shares is None:
        return None
    decimals = 1 if max(abs(share) for share in shares) >= 0.1 else 2
    return " to ".join(f"{round(100 * share, decimals) + 0.0:.{decimals}f}" for share in shares)  # + 0: no "-0.0"


def points(difference: Mapping[str, Any] | None) -> Cell:
    """A difference of shares in percent points."""
    return None if difference is None else in_percent(difference["mean"])


def in_percent(value: float) -> float:
    """A share in percent; what the one decimal of the tables would not show is 0."""
    return 100 * value if abs(100 * value) >= 0.05 else 0.0


def over_images(entry: Mapping[str, Any]) -> Cell:
    return between((entry.get("miou_difference") or {}).get("interval"))


def by_scheme(results: Results, title: str, columns: Columns, note: str = "") -> Table | None:
    """One row per scheme that has any of these numbers; columns that no scheme has are left out. None: nothing."""
    entries = [entry for entry in results["schemes"].values() if entry["seeds"]]
    cells = [[cell(entry) for cell in columns.values()] for entry in entries]
    used = [place for place in range(len(columns)) if any(row[place] is not None for row in cells)]
    rows = [(entry["label"], *(row[place] for place in used)) for entry, row in zip(entries, cells, strict=True)]
    rows = [row for row in rows if any(cell is not None for cell in row[1:])]
    names = list(columns)
    return Table(title, ("scheme", *(names[place] for place in used)), tuple(rows), note) if rows else None


def span(seeds: Sequence[int]) -> str:
    """How many seeds there are, in words."""
    low, high = min(seeds, default=0), max(seeds, default=0)
    return f"{low} seed{'s' * (low != 1)}" if low == high else f"{low} to {high} seeds"
