"""export.json: what goes into an exported network, what comes out, and how it was checked."""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kappaseg_core.ranking import IGNORE
from pipelines.export.check import BATCHES, TOLERANCE, Agreement
from pipelines.export.formats import FORMATS
from pipelines.export.networks import Exported, Tensors

INPUTS = {
    "image": "RGB, 0 to 255, of exactly this size",
    "labels": f"ids of the labels to choose among, most probable first; {IGNORE} in last ranks that are left empty",
}
OUTPUTS = {
    "label_map": "id of each pixel's label, a line number of classes.txt from 0",
    "rank_logits": "logit of each kept label in each cell, in rank order",
    "class_logits": "logit of each kept label for each query, in rank order, and of no object last",
    "mask_logits": "logit of each query in each cell",
    "labels": "ids of the kept labels, most probable first; equal scores in order of id",
    "scores": "their probabilities",
    "label_logits": "logit of every label, in order of id",
}


def card_of(
    network: Exported, inputs: Tensors, outputs: Tensors, *, file: Path, form: str, found: Agreement,
    run: Mapping[str, Any],
) -> str:  # fmt: skip
    """The card as JSON. inputs, outputs: examples.   file: of the network.   run: which one, its fingerprint."""
    backbone = network.network.backbone
    packages = ("timm", *FORMATS[form].packages)
    card = {
        "kind": network.kind, "format": form, "file": file.name, **run, "kappa": network.kappa,
        "image": {
            "size": list(inputs["image"].shape[2:]), "normalisation": "inside: (image / 255 - mean) / std",
            "mean": backbone.mean, "std": backbone.std,
        },
        "inputs": described(inputs, INPUTS), "outputs": described(outputs, OUTPUTS),
        "check": {"batches": BATCHES, "tolerance": TOLERANCE, **asdict(found)},
        "versions": {
            "kappaseg": version("kappaseg"), "python": platform.python_version(),
            **{name: str(importlib.import_module(name).__version__) for name in packages},
        },
    }  # fmt: skip
    return json.dumps(card, indent=1, ensure_ascii=False) + "\n"


def described(tensors: Tensors, meanings: Mapping[str, str]) -> list[dict[str, Any]]:
    """Name, type, shape and meaning of each; "batch" is the one axis that is free."""
    return [
        {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["batch", *tensor.shape[1:]],
         "meaning": meanings[name]}
        for name, tensor in tensors.items()
    ]  # fmt: skip
