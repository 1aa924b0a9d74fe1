"""The command line of the programs in benchmarks/ that measure named comparisons into one result file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipelines.bench.comparisons import Comparisons, compare, known_in
from pipelines.bench.machine import free_gib

#: share of the free memory that is used where no limit is given
SHARE = 0.9


def measure_missing(
    description: str | None, comparisons: Comparisons, results: Path, arguments: Sequence[str] | None, *, rounds: int,
    counted: bool = False,
) -> None:  # fmt: skip
    """Measure what the result file does not have yet, so that a stopped call goes on with the next comparison.

    description: what --help says.   arguments: of the command line; None = the program's own.   rounds: where none are
    given.   counted: whether parameters and MACs are counted too.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of every variant (default: {rounds})")
    parser.add_argument("--only", default="", help="comparisons with this in their name")
    parser.add_argument("--again", action="store_true", help="also those that were measured before")
    parser.add_argument("--limit", type=float, metavar="GIB", help="memory of all processes (default: nearly all free)")
    parser.add_argument("--to", type=Path, default=results, metavar="FILE", help="default: the committed results")
    given = parser.parse_args(arguments)
    known = known_in(given.to)
    wanted = [name for name in comparisons if given.only in name and (given.again or name not in known)]
    limit = given.limit or SHARE * free_gib("cpu")
    compare(comparisons, wanted, given.to, known, rounds=given.rounds, limit_gib=limit, counted=counted)
