"""The loss of upsampled scores in one GPU kernel: cells in, loss and gradient out, pixels in registers alone.

Legend: B images, κ ranks, h w cells, H W pixels, f pixels per cell and axis.

Between four neighbouring cell centres lie f × f pixels, a block, whose scores are weighted means of the four cells.
One program computes one block: softmax and loss of its pixels, and what they add to the gradient of its four cells.
Sums are taken in a fixed order, so that equal runs give equal bits.

Tested in Triton's interpreter and compiled for two generations of GPUs; it has not been run on one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: scores that a program holds at a time: 16 registers of each of its 128 threads
AT_ONCE = 2048
FAR_BELOW = tl.constexpr(-1e30)  # the score of what fills κ up to a power of two


@triton.jit
def block_kernel(  # type: ignore[no-untyped-def]
    cells, target, gradient, loss, right,
    kappa, height, width, rows, columns,
    FACTOR: tl.constexpr, RANKS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """cells f32 [B, h, w, κ], target i64 [B, H, W] → gradient f32 [blocks, 4, κ], loss f32 and right i32 [blocks].

    Blocks [B, h + 1, w + 1]; the outer ones lie beyond the outer cell centres and see their nearest cells.
    """
    block = tl.program_id(0)
    j = block % (columns + 1) - 1
    i = (block // (columns + 1)) % (rows + 1) - 1
    image = block // ((columns + 1) * (rows + 1))
    top, bottom = tl.maximum(i, 0), tl.minimum(i + 1, rows - 1)
    left, after = tl.maximum(j, 0), tl.minimum(j + 1, columns - 1)
    rank = tl.arange(0, RANKS)
    there = rank < kappa
    base = cells + image.to(tl.int64) * rows * columns * kappa
    z0 = tl.load(base + (top * columns + left) * kappa + rank, mask=there, other=FAR_BELOW)
    z1 = tl.load(base + (top * columns + after) * kappa + rank, mask=there, other=FAR_BELOW)
    z2 = tl.load(base + (bottom * columns + left) * kappa + rank, mask=there, other=FAR_BELOW)
    z3 = tl.load(base + (bottom * columns + after) * kappa + rank, mask=there, other=FAR_BELOW)
    g0 = tl.zeros([RANKS], tl.float32)
    g1 = tl.zeros([RANKS], tl.float32)
    g2 = tl.zeros([RANKS], tl.float32)
    g3 = tl.zeros([RANKS], tl.float32)
    total = tl.zeros([PIXELS], tl.float32)
    hits = tl.zeros([PIXELS], tl.int32)
    for start in range(0, FACTOR * FACTOR, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        y = i * FACTOR + FACTOR // 2 + pixel // FACTOR
        x = j * FACTOR + FACTOR // 2 + pixel % FACTOR
        inside = (pixel < FACTOR * FACTOR) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = target + image.to(tl.int64) * height * width + y * width + x
        wanted = tl.load(place, mask=inside, other=-1).to(tl.int32)
        kept = wanted >= 0
        down = (y.to(tl.float32) + 0.5) / FACTOR - 0.5 - i
        along = (x.to(tl.float32) + 0.5) / FACTOR - 0.5 - j
        w0 = (1 - down) * (1 - along)
        w1 = (1 - down) * along
        w2 = down * (1 - along)
        w3 = down * along
        score = w0[:, None] * z0[None] + w1[:, None] * z1[None] + w2[:, None] * z2[None] + w3[:, None] * z3[None]
        best = tl.max(score, 1)
        softmax = tl.exp(score - best[:, None])
        mass = tl.sum(softmax, 1)
        is_own = rank[None] == wanted[:, None]
        own = tl.sum(tl.where(is_own, score, 0.0), 1)
        total += tl.where(kept, tl.log(mass) + best - own, 0.0)
        hits += (kept & (own == best)).to(tl.int32)
        slope = tl.where(kept[:, None], softmax / mass[:, None] - is_own.to(tl.float32), 0.0)
        g0 += tl.sum(w0[:, None] * slope, 0)
        g1 += tl.sum(w1[:, None] * slope, 0)
        g2 += tl.sum(w2[:, None] * slope, 0)
        g3 += tl.sum(w3[:, None] * slope, 0)
    out = gradient + block.to(tl.int64) * 4 * kappa + rank
    tl.store(out, g0, mask=there)
    tl.store(out + kappa, g1, mask=there)
    tl.store(out + 2 * kappa, g2, mask=there)
    tl.store(out + 3 * kappa, g3, mask=there)
    tl.store(loss + block, tl.sum(total, 0))
    tl.store(right + block, tl.sum(hits, 0))


def block_loss(cells: Tensor, target: Tensor, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """Σ loss f32, pixels that are right i64, and the gradient f32 [B, h, w, κ].

    cells: f32 [B, h, w, κ], contiguous, κ up to losses.KERNEL_RANKS.   target: i64 [B, H, W], ranks or IGNORE,
    contiguous.   factor: pixels per cell and axis.
    """
    images, rows, columns, kappa = cells.shape
    ranks = triton.next_power_of_2(kappa)
    blocks = (images, rows + 1, columns + 1)
    count = images * (rows + 1) * (columns + 1)
    gradient, loss = cells.new_empty(*blocks, 4, kappa), cells.new_empty(count)
    right = torch.empty(count, dtype=torch.int32, device=cells.device)
    block_kernel[(count,)](
        cells, target, gradient, loss, right, kappa, *target.shape[1:], rows, columns,
        FACTOR=factor, RANKS=ranks, PIXELS=pixels_at_once(factor, ranks),
    )  # fmt: skip
    return loss.sum(), right.sum(), of_cells(gradient)


def pixels_at_once(factor: int, ranks: int) -> int:
    """How many pixels of a block a program computes at a time: a power of two."""
    return min(max(1, AT_ONCE // ranks), triton.next_power_of_2(factor * factor))


def of_cells(gradient: Tensor) -> Tensor:
    """What the blocks [B, h + 1, w + 1, 4, κ] add to their four cells, summed over blocks: [B, h, w, κ]."""
    images, rows, columns, _, kappa = gradient.shape
    found = gradient.new_zeros(images, rows + 1, columns + 1, kappa)
    found[:, :-1, :-1] += gradient[..., 0, :]
    found[:, :-1, 1:] += gradient[..., 1, :]
    found[:, 1:, :-1] += gradient[..., 2, :]
    found[:, 1:, 1:] += gradient[..., 3, :]
    for axis in (1, 2):  # the outer blocks saw the nearest cell in the place of one that is not there
        first, last = found.select(axis, 0), found.select(axis, -1)
        found.select(axis, 1).add_(first)
        found.select(axis, -2).add_(last)
        found = found.narrow(axis, 1, found.shape[axis] - 2)
    return found
