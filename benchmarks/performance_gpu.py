"""What docs/performance.md says of GPUs (benchmarks/gpu.py)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.bench.turns import Record
from pipelines.results_doc import Cell, ResultTable, Section, read_results

FILE = "benchmarks/results/gpu.json"
COMMAND = "python benchmarks/gpu.py"


def sections() -> Iterator[Section]:
    path = Path(__file__).parents[1] / FILE
    if not path.exists():
        yield Section(
            "On a GPU",
            (
                f"Nothing here has been measured on a GPU. `{COMMAND}` is written for one: images per second of ViT-B "
                "and ViT-L at 512 and 640 pixels, training and inference, bf16 and fp32, with the kernel of the loss "
                "and without it, beside the time that the network's operations take at the GPU's own matrix rate. It "
                "writes this section's results; what of it needs no GPU is tested on a CPU.",
            ),
        )
        return
    comparisons: dict[str, Any] = read_results(path)["comparisons"]
    for name, comparison in comparisons.items():
        yield Section(f"On a GPU: {name}", (rates_of(comparison),), (table(comparison),))


def rates_of(comparison: Mapping[str, Any]) -> str:
    rates = comparison["rates"]
    products = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {precision}" for precision, rate in rates["flops"].items())
    return (
        f"{comparison['machine']['gpu']}: {products} of a large matrix product, {rates['bandwidth'] / 1e9:,.0f} GB/s "
        "of a large copy. The floor is the larger of the two times that the step takes at these rates."
    )


def table(comparison: Mapping[str, Any]) -> ResultTable:
    columns = ("variant", "K", "images/s", "% of the floor's speed", "memory, MiB")
    rows = tuple(row(record) for record in comparison["variants"])
    return ResultTable(columns, rows, (COMMAND,), (FILE,), f"Medians of {comparison['rounds']} turns; † estimated.")


def row(record: Record) -> tuple[Cell, ...]:
    if "skipped" in record:
        return (record["name"], record["classes"], None, None, f"{record['needed_mib']:,} †")
    taken = statistics.median(record["seconds"])
    share = f"{100 * record['floor_seconds'] / taken:.0f}"
    return (record["name"], record["classes"], record["images"] / taken, share, f"{record['memory_mib']:,}")
