"""Named comparisons and the file that holds what they took.

{"comparisons": {NAME: {"rounds", "machine", "threads", "limit_gib", "variants": [...]}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kappaseg_core.config import to_plain
from kappaseg_core.files import write_text, writing
from kappaseg_core.progress import say
from pipelines.bench.floor import floor_seconds, rates
from pipelines.bench.machine import machine
from pipelines.bench.needs import cost
from pipelines.bench.turns import Record, measured
from pipelines.bench.variants import Variant
from pipelines.results_doc import read_results

Comparisons = Mapping[str, Sequence[Variant]]


def compare(
    comparisons: Comparisons, wanted: Sequence[str], file: Path, known: Mapping[str, Any], *, rounds: int,
    limit_gib: float, floor: bool = False, counted: bool = False, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measure the wanted ones of the comparisons, one after the other, and give them all.

    The file is written after each, in the order of `comparisons`, together with the known ones that were not wanted.
    floor: whether each is also compared with what the machine can do at most.   counted: whether parameters and MACs of
    each are counted.   more: what else the file is to hold.
    """
    found = dict(known)
    for name in wanted:
        say(name)
        variants = comparisons[name]
        found[name] = {
            "rounds": rounds, "machine": machine(), "threads": torch.get_num_threads(), "limit_gib": limit_gib,
            "variants": measured(variants, rounds, limit_gib),
        }  # fmt: skip
        if floor:
            found[name] |= with_floor(variants, found[name]["variants"])
        if counted:
            found[name]["variants"] = with_cost(variants, found[name]["variants"])
        ordered = {key: found[key] for key in comparisons if key in found}
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**more, "comparisons": ordered}, indent=1, ensure_ascii=False) + "\n")
    return found


def with_floor(variants: Sequence[Variant], records: Sequence[Record]) -> dict[str, Any]:
    """The machine's rates, and the records with the least seconds of each."""
    device = variants[0].device
    reached = rates(device, list(dict.fromkeys(variant.precision for variant in variants)))
    return {
        "rates": to_plain(reached),
        "variants": [
            record if "skipped" in record else {**record, "floor_seconds": floor_seconds(variant, reached)}
            for variant, record in zip(variants, records, strict=True)
        ],
    }


def with_cost(variants: Sequence[Variant], records: Sequence[Record]) -> list[Record]:
    """The records with parameters and MACs of each, also of those that were left out."""
    costs = [cost(variant) for variant in variants]
    return [
        {**record, "parameters": one.parameters, "macs": one.macs} for record, one in zip(records, costs, strict=True)
    ]


def known_in(file: Path) -> dict[str, Any]:
    """The comparisons that a file holds; none where it is not there."""
    return dict(read_results(file)["comparisons"]) if file.exists() else {}
