"""What docs/performance.md says of optimisers that change selected rows alone (benchmarks/selected_rows.py)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.results_doc import Cell, ResultTable, Section, read_results

FILE = "benchmarks/results/selected_rows.json"
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/selected_rows.py"
COLUMNS = (
    "network, optimiser", "optimiser, all rows, ms", "selected, ms", "times faster", "step, all rows, ms",
    "selected, ms", "times faster", "in turns", "memory, all rows, MiB", "selected, MiB",
)  # fmt: skip
NAMES = {"adamw": "AdamW", "sgd": "SGD"}


def sections() -> Iterator[Section]:
    found = read_results(Path(__file__).parents[1] / FILE)
    rows = tuple(row(case) for case in found["cases"].values())
    about = (
        "With `optim.selected_rows` AdamW and SGD change of the class table [K, D] the rows alone that a step gives a "
        "gradient, at most κ of each image, and the gradient of the whole table is never made; the rule and how it "
        "differs from the dense one stand in `kappaseg_core/row_optim.py`. *Optimiser* is clipping and the "
        "optimiser's step. Where weights are averaged (`loop.ema`), that still reads all rows.",
        f"A step is on two images of ViT-T or one of ViT-B, κ = {found['kappa']}, so that the optimiser weighs more in "
        f"it than in one on a full batch. Machine: {machines(found['cases'])}; its other core had work beside, and the "
        "spread over turns is larger than what the optimiser saves of a step.",
    )
    yield Section("An optimiser that changes selected rows", about, (ResultTable(COLUMNS, rows, (COMMAND,), (FILE,)),))


def row(case: Mapping[str, Any]) -> tuple[Cell, ...]:
    every, some = case["all"], case["selected"]
    optimiser = [1e3 * statistics.median(way["optimiser_seconds"]) for way in (every, some)]
    step = [1e3 * statistics.median(way["step_seconds"]) for way in (every, some)]
    turns = sorted(a / b for a, b in zip(every["step_seconds"], some["step_seconds"], strict=True))
    return (
        f"{case['backbone']}, {NAMES[case['kind']]}, K = {case['classes']:,}",
        *optimiser, optimiser[0] / optimiser[1], *step, step[0] / step[1], f"{turns[0]:.2f} to {turns[-1]:.2f}",
        every["memory_mib"], some["memory_mib"],
    )  # fmt: skip


def machines(cases: Mapping[str, Any]) -> str:
    found = {f"{case['machine']['cpu']}, {case['machine']['threads']} thread" for case in cases.values()}
    return "; ".join(sorted(found))
