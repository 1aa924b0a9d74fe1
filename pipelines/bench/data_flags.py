"""Flags of `kappaseg bench data`, apart from what they lead to, which needs torch."""

from __future__ import annotations

from argparse import ArgumentParser


def add_data_flags(parser: ArgumentParser) -> None:
    """What `bench data` takes besides settings."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file of stage one or two, or a run directory")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="about how long to measure (30)")
    parser.add_argument("--workers", type=int, nargs="+", metavar="N", help="numbers of loader workers (0, 1, 2, 4, …)")
    parser.add_argument("--step-seconds", type=float, metavar="S", help="what a training step takes: does it wait?")
    parser.add_argument("--network", action="store_true", help="measure such a step of the configured network")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", metavar="FILE", help="write JSON there too")
