"""What was measured, as a table on standard output."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from pipelines.bench.turns import Record, seconds
from pipelines.results_doc import format_number
from pipelines.tables import show_table

NONE = "–"


def show(title: str, records: Sequence[Record]) -> None:
    """A row for each variant and K. Ratios are to the first variant of the same K and precision, the published one
    where it was measured; what was left out says why below."""
    on_gpu, with_floor = records[0]["device"] != "cpu", any("floor_seconds" in one for one in records)
    columns = ["variant", "K", "seconds" if on_gpu else "processor s", "times faster", "MiB", "times less"]
    columns += ["images/s"] if on_gpu else []
    columns += ["% of the floor's speed"] if with_floor else []
    firsts: dict[tuple[str, int], Record] = {}
    for record in records:
        firsts.setdefault((record["precision"], record["classes"]), record)
    rows = [row(one, firsts[one["precision"], one["classes"]], on_gpu=on_gpu, floor=with_floor) for one in records]
    show_table(title, columns, rows)
    for record in records:
        if "skipped" in record:
            print(f"{record['name']}, K = {record['classes']:,}: left out, {record['skipped']}")


def row(record: Record, first: Record, *, on_gpu: bool, floor: bool) -> list[str]:
    cells = [str(record["name"]), f"{record['classes']:,}"]
    if "skipped" in record:
        return cells + [NONE] * (4 + on_gpu + floor)
    time, memory = seconds(record), record["memory_mib"]
    cells += [format_number(time), ratio(first, time, seconds), format_number(memory)]
    cells.append(ratio(first, memory, lambda one: one["memory_mib"]))
    cells += [format_number(record["images"] / time)] if on_gpu else []
    wall = statistics.median(record["seconds"])
    cells += [format_number(100 * record["floor_seconds"] / wall)] if floor else []
    return cells


def ratio(first: Record, value: float, of: Callable[[Record], float]) -> str:
    """How many times the first variant's; a dash where that was left out."""
    return NONE if "skipped" in first else f"{of(first) / max(value, 1e-9):.2f}"
