"""The section of docs/performance.md about what `kappaseg plan` estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.results_doc import ResultTable, Section, read_results

FILE = "benchmarks/results/plan_memory.json"
COMMAND = "OMP_NUM_THREADS=1 python benchmarks/plan_memory.py"


def sections() -> Iterator[Section]:
    """Estimated memory beside that of runs."""
    result = read_results(Path(__file__).parents[1] / FILE)
    cases = result["cases"]
    rows = tuple(
        (name, case["estimated_mib"], case["measured_mib"], ratio(case, 0.0), ratio(case, case["process_mib"]))
        for name, case in cases.items()
    )  # fmt: skip
    ratios = sorted(ratio(case, 0.0) for case in cases.values())
    process = round(sum(case["process_mib"] for case in cases.values()) / len(cases))
    said = (
        "Largest resident memory of runs of a few steps with an evaluation, in MiB, beside the estimate made before "
        f"them. The {len(cases)} ratios lie between {ratios[0]:.2f} and {ratios[-1]:.2f}; within a fifth was aimed at. "
        f"{process} MiB of each are the process before it has a network. The factor on what tensors take and the room "
        "for libraries (`pipelines/plan/estimate.py`) were set after a look at some of these cases."
    )
    where = f"Machine: {result['machine']['cpu']}, {result['machine']['threads']} thread."
    table = ResultTable(
        ("run", "estimated", "measured", "estimated / measured", "without the process"), rows, (COMMAND,), (FILE,)
    )
    yield Section("What kappaseg plan estimates", (said, where), (table,))


def ratio(case: Mapping[str, float], without: float) -> float:
    """Estimated over measured, both less so many MiB."""
    return (case["estimated_mib"] - without) / (case["measured_mib"] - without)
