"""Variants measured in turns, as many at a time as fit into the memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.progress import say
from pipelines.bench.clocks import Taken
from pipelines.bench.needs import Needs, needs
from pipelines.bench.variants import Variant
from pipelines.bench.worker import Ended, Worker

Record = dict[str, Any]


def measured(variants: Sequence[Variant], rounds: int, limit_gib: float) -> list[Record]:
    """A record for each variant, in their order.

    One that needs more than the limit is not run: its record says under `skipped` why. The estimate of all is in
    `needed_mib`. Raises UserError where that is so of all of them.
    """
    estimates = {place: needs(variant) for place, variant in enumerate(variants)}
    least = min(need.alone for need in estimates.values()) / 1024
    if least > limit_gib:
        raise UserError(
            f"the smallest variant needs about {least:.1f} GiB, the limit is {limit_gib:.1f}; raise --limit"
        )
    records: dict[int, Record] = {}
    for place, need in estimates.items():
        if need.alone > limit_gib * 1024:
            reason = f"needs about {need.alone / 1024:.1f} GiB, the limit is {limit_gib:.1f} GiB"
            records[place] = {"skipped": reason}
            say(f"  {variants[place].name}, K = {variants[place].classes:,}: left out, {reason}")
    left = {place: need for place, need in estimates.items() if place not in records}
    for group in fitting(left, limit_gib * 1024):
        found = in_turns([variants[place] for place in group], rounds)
        records |= dict(zip(group, found, strict=True))
    return [
        {**variant.plain(), "needed_mib": round(estimates[place].step), **records[place]}
        for place, variant in enumerate(variants)
    ]


def fitting(estimates: Mapping[int, Needs], limit_mib: float) -> Iterator[list[int]]:
    """The variants in groups: what all processes of a group hold and the largest step of one are within the limit."""
    group, held, step = list[int](), 0.0, 0.0
    for place, need in estimates.items():
        if group and held + need.held + max(step, need.step) > limit_mib:
            yield group
            group, held, step = [], 0.0, 0.0
        group, held, step = [*group, place], held + need.held, max(step, need.step)
    if group:
        yield group


def in_turns(variants: Sequence[Variant], rounds: int) -> list[Record]:
    """What each variant takes: asked once to warm up, and in this order `rounds` times.

    Raises Ended for a process that fails otherwise than for want of memory.
    """
    records: dict[int, Record] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(variant)) for variant in variants]
        answers: dict[Worker, list[Taken]] = {}
        for worker in workers:
            try:
                worker.step()
                answers[worker] = []
            except Ended as ended:
                if not ended.out_of_memory:
                    raise
                records[id(worker.variant)] = {"skipped": "its process ran out of memory"}
        for turn in range(rounds):
            say(f"  round {turn + 1} of {rounds}, {len(answers)} variants in turns")
            for worker, taken in answers.items():
                taken.append(worker.step())
    for worker, taken in answers.items():
        records[id(worker.variant)] = record(taken)
        say(f"  {line(worker.variant, records[id(worker.variant)])}")
    return [records[id(variant)] for variant in variants]


def record(taken: Sequence[Taken]) -> Record:
    """Times of all rounds, medians of the rest."""
    return {
        "cpu_seconds": [round(one.cpu, 5) for one in taken],
        "seconds": [round(one.seconds, 5) for one in taken],
        "memory_mib": round(statistics.median(one.memory for one in taken)),
        "parts": {part: round(statistics.median(one.parts[part] for one in taken), 5) for part in taken[0].parts},
    }


def line(variant: Variant, found: Record) -> str:
    return (
        f"{variant.name}, K = {variant.classes:,}: {seconds(found | variant.plain()):.3g} s, {found['memory_mib']} MiB"
    )


def seconds(found: Mapping[str, Any]) -> float:
    """Median of the rounds: processor seconds on a CPU, seconds of the GPU on one."""
    return statistics.median(found["cpu_seconds" if found.get("device", "cpu") == "cpu" else "seconds"])
