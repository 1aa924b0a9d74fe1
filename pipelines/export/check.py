"""How far the outputs of an exported network are from those of the network itself.

Legend: B images, K all labels, κ kept labels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from pipelines.export.networks import Exported, Tensors, rank_scores

TOLERANCE = 1e-4
BATCHES = (1, 3)  # images at a time; the graph was made with another number


@dataclass(frozen=True)
class Agreement:
    """differences: by output; wanted at most TOLERANCE, for scores and labels more by what rounding does to scores.

    logits: the largest, over the largest value; those of ranks where both have the same ranking.
    scores: the largest.   labels: by how much a label's score misses that of the rank that it took.   label_map: by how
    much a pixel's label misses the largest score of a rank there, over the largest value.
    equal: share of the labels, and of the pixels, that are the same: where scores or logits tie, either may win.
    """

    differences: dict[str, float]
    equal: dict[str, float]


@torch.no_grad()
def agreement(network: Exported, run: Callable[[Tensors], Tensors], size: tuple[int, int]) -> Agreement:
    """Network and exported network on the same random images. Raises UserError where they differ by too much."""
    generator = torch.Generator().manual_seed(0)
    differences: dict[str, float] = {}
    equal: dict[str, float] = {}
    for images in BATCHES:
        inputs = network.examples(images, size, generator)
        wanted, found = network(**inputs), run(inputs)
        for name, value in compared(network, inputs, found, wanted).items():
            differences[name] = larger(value, differences.get(name, 0.0))
        for name in ("labels", "label_map"):
            if name in wanted:
                share = float((found[name] == wanted[name]).double().mean())
                equal[name] = min(share, equal.get(name, 1.0))
    refuse_other(differences, network)
    return Agreement(differences, equal)


def larger(one: float, other: float) -> float:
    """The larger number; NaN where one of them is, which max would lose."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def refuse_other(differences: dict[str, float], network: Exported) -> None:
    """Raise UserError for the first output that is not the network's own."""
    if "label_map" not in differences and network.kind != "classifier":
        raise UserError("the exported network ranks all test images in another way; export in the other --format")
    for name, value in differences.items():
        allowed = TOLERANCE + (network.score_step if name in ("scores", "labels") else 0.0)
        if not value <= allowed:  # nan is too much as well
            raise UserError(
                f"{name} of the exported network differ by {value:.1e} from its own, wanted at most {allowed:.1e}; "
                "nothing is written, export in the other --format"
            )


def compared(network: Any, inputs: Tensors, found: Tensors, wanted: Tensors) -> dict[str, float]:
    """The differences of one batch."""
    differences = {}
    if "label_logits" in wanted:
        scores = network.scores(wanted["label_logits"])
        differences["label_logits"] = relative(found["label_logits"], wanted["label_logits"])
        differences["scores"] = float((found["scores"] - wanted["scores"]).abs().max())
        differences["labels"] = float((scores.gather(1, found["labels"]) - wanted["scores"]).abs().max())
    if "label_map" in wanted:
        kept = network.kept(inputs, wanted)
        same = (network.kept(inputs, found) == kept).all(1)
        if bool(same.any()):
            alike, own = ({name: tensor[same] for name, tensor in outputs.items()} for outputs in (found, wanted))
            differences |= compared_maps(alike, own, kept[same], network.network.cell)
    return differences


def compared_maps(found: Tensors, wanted: Tensors, kept: Tensor, cell: int) -> dict[str, float]:
    """The same for label maps of images with the same ranking."""
    maps = wanted["label_map"]
    empty = kept == IGNORE
    differences: dict[str, float] = {
        name: relative(*(without_ranks(name, outputs[name], empty) for outputs in (found, wanted)))
        for name in ("rank_logits", "class_logits", "mask_logits")
        if name in wanted
    }
    scores = rank_scores(wanted, (maps.shape[1], maps.shape[2]), cell)
    missing = max(map(shortfall, scores, kept, found["label_map"], maps))
    return {**differences, "label_map": missing / largest(scores.masked_fill(empty[..., None, None], 0.0))}


def without_ranks(name: str, logits: Tensor, empty: Tensor) -> Tensor:
    """Logits of that name, 0 where they belong to a rank without a label. empty: bool [B, κ]."""
    match name:
        case "rank_logits":
            return logits.masked_fill(empty[..., None, None], 0.0)
        case "class_logits":
            return logits.masked_fill(F.pad(empty, (0, 1))[:, None], 0.0)
    return logits


def shortfall(scores: Tensor, kept: Tensor, found: Tensor, wanted: Tensor) -> float:
    """By how much the scores of the labels in one map miss the largest ones, where it differs from the other map.

    scores [κ, H, W] and kept [κ] of one image; maps [H, W]. Infinite for a label that was not kept.
    """
    differ = found != wanted
    if not bool(differ.any()):
        return 0.0
    here = scores[:, differ]
    reached = here.masked_fill(kept[:, None] != found[differ], -torch.inf).amax(0)
    return float((here.amax(0) - reached).max())


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found - wanted).abs().max()) / largest(wanted)


def largest(values: Tensor) -> float:
    """The largest absolute value; above 0, also where κ = 1 and the normalised logits are all 0."""
    return max(float(values.abs().max()), torch.finfo(torch.float32).tiny)
