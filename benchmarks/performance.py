"""docs/performance.md from the result files.

    python benchmarks/performance.py

A part of the document is a module beside this one whose `sections()` reads its own result file; PARTS has their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import performance_heads
import performance_in_k

from pipelines.results_doc import Section, write_results

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
PARTS: tuple[Callable[[], Iterable[Section]], ...] = (performance_in_k.sections, performance_heads.sections)


def main() -> None:
    write_results(DOCUMENT, [section for part in PARTS for section in part()], title="Performance")


if __name__ == "__main__":
    main()
