"""Hours and memory of a recipe on one data-centre GPU, estimated from what its network costs. Nothing is measured.

Products. Training takes three forward passes' worth (one forward, two backward), evaluation one, and a product is two
operations: FLOPs = 2 · MACs · (3 · images trained on + images evaluated). A GPU of 67 TFLOP/s in fp32 and 790 in bf16
(an H200: data sheet, and a matrix product measured) is taken to reach 40 % of that. Data loading, norms and upsampling
are not counted: loaders have to keep up.

Memory. Weights, gradients and the optimiser's state (SGD one, AdamW two; averaged weights one more) at four bytes each,
and the activations that the graph keeps (`kappaseg_core.activations`; in bf16 half as many bytes). The pixel loss keeps
no map (`stage2_segmentation/losses.py`). Workspaces and fragments come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.published.recipe import Recipe

TFLOPS = {"fp32": 67.0, "bf16": 790.0}
REACHED = 0.4
FORWARDS = 3  # a training step, in forward passes


@dataclass(frozen=True)
class Load:
    """A network's numbers for one image.   activations: bytes kept in training, fp32."""

    parameters: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Estimate:
    """gib: None where nothing is trained.   images_per_second: what the loaders have to deliver."""

    hours: float
    gib: float | None
    images_per_second: float


def estimate(recipe: Recipe, load: Load, precision: str | None = None) -> Estimate:
    """Of running a recipe. precision: another than that of the recipe."""
    kind = precision or precision_of(recipe)
    one = seconds_of(load.macs, TFLOPS[kind])
    if recipe.verb == "rank":
        return Estimate(one * (recipe.data.train + recipe.data.val) / 3600, None, 1 / one)
    loop: dict[str, Any] = recipe.settings["loop"]
    trained = loop["steps"] * loop["batch_size"]
    evaluated = loop["steps"] // loop["eval_every"] * recipe.data.val
    seconds = one * (FORWARDS * trained + evaluated)
    return Estimate(seconds / 3600, bytes_in_training(recipe, load, kind) / 2**30, 1 / (one * FORWARDS))


def seconds_of(macs: float, tflops: float) -> float:
    """Of so many multiply-accumulates, on a device that multiplies matrices at that speed."""
    return 2 * macs / (REACHED * 1e12 * tflops)


def precision_of(recipe: Recipe) -> str:
    precision: str = recipe.settings.get("loop", {}).get("precision", "fp32")
    return precision


def bytes_in_training(recipe: Recipe, load: Load, precision: str) -> float:
    loop, optim = recipe.settings["loop"], recipe.settings["optim"]
    copies = 2 + {"sgd": 1, "adamw": 2}[optim["kind"]] + ("ema" in loop)
    kept = load.activations * (0.5 if precision == "bf16" else 1.0)
    return 4.0 * copies * load.parameters + loop["batch_size"] // loop.get("accumulate", 1) * kept
