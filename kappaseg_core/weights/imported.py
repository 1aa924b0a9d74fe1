"""A run directory of a network that was not trained here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from kappaseg_core.checkpoint import IMPORTED, RunDirectory, Summary
from kappaseg_core.config import to_plain
from kappaseg_core.files import new_folder, no_empty_folders, write_text


def write_run(
    folder: Path,
    network: nn.Module,
    *,
    model: str,
    config: Any,
    class_names: Sequence[str],
    inputs: Mapping[str, str],
    origin: Mapping[str, Any],
) -> None:
    """A complete run directory, there whole or not at all, which every verb takes that takes a trained one.

    model: the module whose `build_model` rebuilds the network.   inputs: the file's format and fingerprint.
    origin: for import.json, what came from where.
    """
    record = {"model": model, "config": to_plain(config), "inputs": dict(inputs), "class_names": list(class_names)}
    assert IMPORTED in inputs
    with no_empty_folders(folder), new_folder(folder) as temporary:
        write_text(temporary / "run.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
        write_text(temporary / "import.json", json.dumps(dict(origin), indent=1, ensure_ascii=False) + "\n")
        RunDirectory(temporary).finish(network, summary_of(folder, network))


def summary_of(folder: Path, network: nn.Module) -> Summary:
    """That of a run without a training."""
    return Summary(
        run=str(folder), steps=0, seconds=0.0, peak_memory_mib=0, metrics={}, best_step=0,
        parameters=sum(parameter.numel() for parameter in network.parameters()), trained_parameters=0,
    )  # fmt: skip
