"""The section of docs/performance.md about feeding, from benchmarks/results/feeding.json (benchmarks/feeding.py)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.results_doc import Cell, ResultTable, Section, read_results

RESULTS = Path(__file__).parent / "results" / "feeding.json"


def sections() -> Iterator[Section]:
    """Milliseconds of processor time per image, ours beside the plain way."""
    results: dict[str, Any] = read_results(RESULTS)
    handed, cpu = results["bytes"], results["machine"]["cpu"]
    rows = tuple(row for title, variants in results["comparisons"].items() for row in rows_of(title, variants))
    columns = ("what", "how", "ms per image", "images/s", "times faster", "in turns")
    table = ResultTable(
        columns, rows, (results["command"],), ("benchmarks/results/feeding.json",),
        note=f"Medians of {results['turns']} turns; ratios to the first variant of each. Machine: {cpu}, one thread.",
    )  # fmt: skip
    yield Section(
        "Feeding: from files to crops",
        (
            "Photos of about 480 x 640 as JPEG and label maps as PNG, both drawn by the program, become crops of 512 "
            "as in the published recipes of stage two. *Plain* does everything to whole images with torchvision alone; "
            "*ours* crops first, works in strips and leaves normalising to the device, and gives the same bits "
            "(`tests/stage2_segmentation/test_augment.py`). *Freed memory kept*: the C library does not give freed "
            "memory back to the system (`kappaseg_core/allocator.py`), as in loader workers. Times are processor time "
            "of one process; `kappaseg bench data CONFIG` measures a loader with its workers on your images.",
            f"A loader worker hands {handed['ours'] / 2**20:.2f} MiB per image to the device, where tasks take "
            f"{handed['plain'] / 2**20:.2f} MiB.",
        ),
        (table,),
    )


def rows_of(title: str, variants: list[Mapping[str, Any]]) -> list[tuple[Cell, ...]]:
    first = variants[0]
    rows: list[tuple[Cell, ...]] = []
    for variant in variants:
        taken = statistics.median(variant["cpu_seconds"])
        turns = sorted(a / b for a, b in zip(first["cpu_seconds"], variant["cpu_seconds"], strict=True))
        spread = "–" if variant is first else f"{turns[0]:.2f} to {turns[-1]:.2f}"
        faster = statistics.median(first["cpu_seconds"]) / taken
        rows.append((title, variant["name"], f"{1000 * taken:.2f}", f"{1 / taken:.0f}", f"{faster:.2f}", spread))
    return rows
