"""Finished work on standard output."""

from __future__ import annotations

from kappaseg_core.checkpoint import Summary
from label_cache import LabelCache
from pipelines.look_up import print_info
from pipelines.tables import show_numbers


def show_summary(summary: Summary) -> None:
    """A finished training run."""
    cost = {
        "steps": summary.steps,
        "seconds": summary.seconds,
        "peak memory, MiB": summary.peak_memory_mib,
        "parameters": summary.parameters,
        "of them trained": summary.trained_parameters,
    }
    show_numbers(summary.run, {**cost, **summary.metrics})


def show_cache(cache: LabelCache) -> None:
    """A finished label cache."""
    print_info(cache.path)
