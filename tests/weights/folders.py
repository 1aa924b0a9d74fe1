"""Small networks of transformers with random numbers, written to folders as their own program writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kappaseg_core.checkpoint import load_model
from pipelines.cli import main
from tests.weights.published import shaken

NAMES = ("sky", "road", "tree", "car", "sea")
K = len(NAMES)


def named(names: Sequence[str] = NAMES) -> dict[str, Any]:
    """What a configuration is given for these classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def folder_of(network: Any, path: Path, *, original: bool = True, **more: Any) -> Path:
    """Save a network with other random numbers. original: under the names of released files, where they had others."""
    shaken(network)
    network.save_pretrained(path, save_original_format=original, **more)
    return path


def import_folder(path: Path, *words: str, out: str = "stage2-hf") -> nn.Module:
    """The network that the command makes of a folder, read back from its run directory beside it."""
    destination = path.parent / out
    assert main(["import-weights", "hf", str(path), str(destination), *words]) == 0
    network, _ = load_model(destination)
    return network.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-4 of the largest number."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * max(1e-3, float(theirs.abs().max())))
