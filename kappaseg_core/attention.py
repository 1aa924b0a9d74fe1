"""Attention on the CPU in blocks that stay in the cache.

    softmax(q kᵀ / √d) v, for queries q [B, H, N, D], keys k [B, H, M, D], values v [B, H, M, E]

torch's own fused attention of the CPU goes through the keys in small pieces. Here a block is some queries of one head
and all keys: two large products (kappaseg_core.products) with a softmax between them. The backward pass computes the
weights of a block again from q and k, so that no N × M is ever kept. benchmarks/products.py has the times.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product as product_of
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kappaseg_core.precision import full_precision
from kappaseg_core.products import is_ours, product

#: queries of a block for each thread (1 MiB of weights with the tokens of 512 × 512 pixels)
QUERIES = 256
#: weights of a head from which blocks are faster
WORTH = 2**18


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0
) -> Tensor:
    """F.scaled_dot_product_attention, in blocks where these are faster: [B, H, N, E].

    mask: bool, what may be looked at, or f32 to add to the scores; of a shape that expands to [B, H, N, M].
    """
    queries, keys, values = (cast_as_asked(part) for part in (queries, keys, values))
    if dropout or not in_blocks(queries, keys, values, mask):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
    found: Tensor = BlockAttention.apply(mask, queries, keys, values)
    return found


def packed_attention(packed: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0) -> Tensor:
    """The same for queries, keys and values as one layer gives them, [B, N, 3, H, D], whose gradient is packed too."""
    packed = cast_as_asked(packed)
    if dropout or not in_blocks(*unpacked(packed), mask):
        queries, keys, values = unpacked(packed)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
    found: Tensor = BlockAttention.apply(mask, packed)
    return found


def cast_as_asked(part: Tensor) -> Tensor:
    """In the type that autocast of the CPU wants."""
    wanted = part.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return part.to(torch.get_autocast_dtype("cpu")) if wanted else part


def unpacked(*parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, N, D] of either form."""
    queries, keys, values = parts[0].permute(2, 0, 3, 1, 4) if len(parts) == 1 else parts
    return queries, keys, values


def in_blocks(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> bool:
    """Whether blocks are faster, and know how."""
    if not is_ours(queries) or queries.shape[2] * keys.shape[2] < WORTH:
        return False
    known = queries.dtype in (torch.float32, torch.bfloat16) and queries.dtype == keys.dtype == values.dtype
    return known and queries.shape[:2] == keys.shape[:2] and (mask is None or not mask.requires_grad)


class BlockAttention(torch.autograd.Function):
    """Scores and their softmax are in fp32; with bf16 the other products are in bf16, as in torch's kernel."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(mask, *parts)
        queries, keys, values = unpacked(*parts)
        batch, heads, count, _ = queries.shape
        found = values.new_empty(batch, count, heads, values.shape[3]).transpose(1, 2)  # as the next layer wants it
        with full_precision(queries.device):
            for head in heads_of(queries, keys, values, mask):
                across = head.values.T.contiguous()
                for rows in head.blocks():
                    found[head.place][rows] = product(head.weights(rows).to(across.dtype), across)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask, *parts = ctx.saved_tensors
        found = [torch.empty_like(part) for part in parts]
        with full_precision(grad.device):
            for head in heads_of(*unpacked(*parts), mask):
                for part, whole in zip(head.gradients(grad[head.place].contiguous()), unpacked(*found), strict=True):
                    whole[head.place] = part
        return None, *found


def heads_of(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Iterator[Head]:
    """All heads of all images, one at a time."""
    batch, heads, count, _ = queries.shape
    mask = None if mask is None else mask.expand(batch, heads, count, keys.shape[2])
    for place in product_of(range(batch), range(heads)):
        yield Head(place, queries[place], keys[place], values[place], None if mask is None else mask[place])


class Head:
    """One head of one image: queries f32 [N, D] with the scale in them, keys f32 [M, D], values [M, E]."""

    def __init__(
        self, place: tuple[int, int], queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> None:
        self.place, self.mask, self.scale = place, mask, queries.shape[1] ** -0.5
        self.queries, self.keys = queries.float() * self.scale, keys.float().contiguous()
        self.values = values.contiguous()

    def blocks(self) -> Iterator[slice]:
        """The queries, some at a time."""
        step = QUERIES * torch.get_num_threads()
        for start in range(0, len(self.queries), step):
            yield slice(start, start + step)

    def weights(self, rows: slice) -> Tensor:
        """What some queries give to all keys, f32 [rows, M]: each row adds up to 1, or to 0 if nothing is allowed."""
        scores = product(self.queries[rows], self.keys)
        if self.mask is None:
            return torch.softmax(scores, 1, out=scores)
        if self.mask.dtype == torch.bool:
            scores = scores.masked_fill_(~self.mask[rows], -torch.inf)
        else:
            scores += self.mask[rows]
        return scores.softmax(1).nan_to_num_(0.0)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of queries, keys and values, from grad [N, E]."""
        kind = grad.dtype
        queries, keys = self.queries.to(kind), self.keys.to(kind).T.contiguous()
        for_queries = torch.empty_like(self.queries)
        for_keys, for_values = torch.zeros_like(self.keys), torch.zeros_like(self.values, dtype=torch.float32)
        for rows in self.blocks():
            weights = self.weights(rows).to(kind)
            for_values += crossed(weights, grad[rows])
            change = torch._softmax_backward_data(product(grad[rows], self.values), weights, 1, kind)
            for_keys += crossed(change, queries[rows])
            for_queries[rows] = product(change, keys)
        return for_queries * self.scale, for_keys, for_values


def crossed(wide: Tensor, narrow: Tensor) -> Tensor:
    """wideᵀ [M, N] narrow [N, D] → [M, D]; both libraries want the wide one on another side."""
    return product(narrow.T, wide.T).T if wide.dtype == torch.float32 else product(wide.T, narrow.T)
