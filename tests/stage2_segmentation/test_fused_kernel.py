"""The GPU kernel of the loss, in Triton's interpreter and through its compiler; on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kappaseg_core.ranking import IGNORE, complete_ranking
from stage2_segmentation.losses import segmentation_loss

pytest.importorskip("triton", reason="triton comes with torch for GPUs alone")
ROOT = Path(__file__).parents[2]

COMPARED = """
import torch
from torch.nn import functional as F
from stage2_segmentation.fused_kernel import block_loss

for images, kappa, h, w, factor, height, width in (
    (2, 5, 3, 4, 4, 11, 14), (1, 3, 2, 2, 1, 2, 2), (1, 7, 3, 3, 3, 9, 8), (1, 130, 2, 3, 2, 4, 5),
    (2, 4, 1, 1, 4, 3, 4),
):
    generator = torch.Generator().manual_seed(kappa)
    cells = (torch.randn(images, kappa, h, w, generator=generator) * 3).requires_grad_()
    target = torch.randint(-1, kappa, (images, height, width), generator=generator)
    target[0, :2] = -1
    pixels = F.interpolate(cells, (h * factor, w * factor), mode="bilinear")[..., :height, :width]
    plain = F.cross_entropy(pixels, target, ignore_index=-1, reduction="sum")
    plain.backward()
    loss, right, gradient = block_loss(cells.detach().permute(0, 2, 3, 1).contiguous(), target, factor)
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.permute(0, 3, 1, 2), cells.grad, rtol=1e-5, atol=2e-6)
    assert right.item() == (pixels.argmax(1) == target).sum().item()
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stage2_segmentation.fused_kernel import block_kernel, pixels_at_once

numbers = dict.fromkeys(("kappa", "height", "width", "rows", "columns"), "i32")
arrays = {"cells": "*fp32", "target": "*i64", "gradient": "*fp32", "loss": "*fp32", "right": "*i32"}
constants = dict.fromkeys(("FACTOR", "RANKS", "PIXELS"), "constexpr")
for capability, ranks in ((80, 128), (90, 1024)):
    values = {"FACTOR": 16, "RANKS": ranks, "PIXELS": pixels_at_once(16, ranks)}
    source = ASTSource(block_kernel, arrays | numbers | constants, values)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert ".local" not in kernel.asm["ptx"], "registers are spilled"
"""


def in_own_process(code: str, **environment: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_DEFAULT_FP_FUSION": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_loss_and_gradient_are_those_of_the_plain_form() -> None:
    """Odd sizes, rows without labels, cells of one pixel, a single cell, ranks that are no power of two."""
    in_own_process(COMPARED, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_it_compiles_for_two_generations_of_gpus_without_spilling(tmp_path: Path) -> None:
    in_own_process(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_loss_and_gradient_of_the_cpu(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(IGNORE, 100, (2, 61, 77), generator=generator)
    logits = (torch.randn(2, 100, 4, 5, generator=generator) * 3).to(dtype)
    found = []
    for device in ("cpu", "cuda"):
        here = logits.detach().to(device).requires_grad_()
        ranking = complete_ranking(2, 100, device)
        loss, figures = segmentation_loss(here, mask.to(device), ranking, 100, cell=16)
        loss.backward()
        assert here.grad is not None
        found.append((loss.item(), figures["pixel_accuracy"].item(), here.grad.float().cpu()))
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-6)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-6)
    plain = F.cross_entropy(
        F.interpolate(logits.float(), scale_factor=16, mode="bilinear")[..., :61, :77], mask, ignore_index=IGNORE,
        reduction="sum",
    )  # fmt: skip
    assert found[1][0] == pytest.approx(plain.item() / mask.numel(), rel=1e-6)
