"""docs/performance.md from the result files.

    python benchmarks/performance.py

A part of the document is a module beside this one whose `sections()` reads its own result file; PARTS has their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import performance_feeding
import performance_gpu
import performance_heads
import performance_in_k
import performance_matrix
import performance_plan
import performance_rows
import performance_same

from pipelines.results_doc import Section, write_results

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
YOURS = """```sh
kappaseg bench network --backbone vit-s --classes 150 1284 20000 --kappa 100 --precision fp32 bf16 --out COST
kappaseg bench network CONFIG --data.root DATA                 # a configuration of run-stage2: its κ, K of its data
kappaseg bench network CONFIG --classes 5000 --variants ours published backbone --infer --limit 16
```"""


def yours() -> Iterator[Section]:
    yield Section(
        "Your network, your machine",
        (
            "The variants of this page for any backbone, configuration and K: a table, `network.json`, and figures of "
            "time and memory against K. What would not fit into the memory (`--limit`) is estimated and left out. "
            "`--floor` adds how near a step comes to the machine's matrix rate; `--device cuda` measures a GPU.",
            YOURS,
        ),
    )


PARTS: tuple[Callable[[], Iterable[Section]], ...] = (
    performance_in_k.sections,
    performance_same.sections,
    performance_matrix.sections,
    performance_rows.sections,
    performance_heads.sections,
    performance_gpu.sections,
    performance_feeding.sections,
    performance_plan.sections,
    yours,
)


def main() -> None:
    write_results(DOCUMENT, [section for part in PARTS for section in part()], title="Performance")


if __name__ == "__main__":
    main()
