"""Layers of transformers on the CPU: torch's own against kappaseg_core.products and kappaseg_core.attention.

    OMP_NUM_THREADS=2 python benchmarks/products.py

Forward and backward pass of one layer with random numbers, torch's and ours in turns in one process, processor time.
Where ours is used is decided by what is measured here. The result is benchmarks/results/products.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from experiments import machine
from torch import Tensor

from kappaseg_core.attention import packed_attention
from kappaseg_core.products import gelu_linear, linear, torch_alone

RESULTS = Path(__file__).parent / "results" / "products.json"
#: images, tokens, heads, width of a head: windows and small images, ViT-T and ViT-B at 512 pixels, ViT-B at 1024
ATTENTION = [(16, 49, 3, 32), (2, 197, 3, 64), (2, 256, 3, 64), (2, 1025, 3, 64), (1, 1025, 12, 64), (1, 4097, 12, 64)]
#: rows, inputs, outputs
LINEAR = [(16, 64, 64), (128, 128, 128), (256, 192, 192), (2050, 192, 576), (2050, 768, 192), (1025, 768, 3072)]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args(arguments).rounds
    torch.manual_seed(0)
    layers = []
    for name, kind in KINDS.items():
        for images, tokens, heads, width in ATTENTION:
            packed = torch.randn(images, tokens, 3, heads, width).to(kind)
            layers.append(compared("attention", name, packed_attention, [packed], rounds))
    for rows, inputs, outputs in LINEAR:
        given = [torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)]
        layers.append(compared("linear", "fp32", linear, given, rounds))
        layers.append(compared("gelu and linear", "fp32", gelu_linear, given, rounds))
    record = {"machine": machine(), "threads": torch.get_num_threads(), "rounds": rounds, "layers": layers}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def compared(
    name: str, precision: str, layer: Callable[..., Tensor], given: Sequence[Tensor], rounds: int
) -> dict[str, Any]:
    """Milliseconds of both ways, medians, and the median of torch / ours."""
    leaves = [tensor.requires_grad_() for tensor in given]
    change = torch.randn_like(layer(*leaves))

    def seconds(*, alone: bool) -> float:
        begun = time.process_time()
        with torch_alone() if alone else nullcontext():
            torch.autograd.grad(layer(*leaves), leaves, change)
        return time.process_time() - begun

    taken = [(seconds(alone=True), seconds(alone=False)) for _ in range(rounds + 1)][1:]
    theirs, ours = (1e3 * statistics.median(times) for times in zip(*taken, strict=True))
    ratio = statistics.median(one / other for one, other in taken)
    shapes = [list(tensor.shape) for tensor in given]
    print(f"{name} {precision} {shapes[0]} torch {theirs:.2f} ms, ours {ours:.2f} ms, {ratio:.2f} times faster")
    return {
        "layer": name, "precision": precision, "shapes": shapes, "torch_ms": theirs, "ours_ms": ours, "ratio": ratio,
    }  # fmt: skip


if __name__ == "__main__":
    main()
