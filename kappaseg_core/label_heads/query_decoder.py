"""Queries that ask an image: what heads with a query per label, or per group of labels, have in common.

Legend: B images, C backbone channels, h w cells, T = h·w, k queries, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads.attention import DecoderLayer, EncoderLayer, sine_positions


class QueryDecoder(nn.Module):
    """Projection, encoder and decoder of Query2Label (Liu et al., 2021): post-norm transformer layers.

    attend: for each decoder layer, whether the queries attend to each other.   chunk: queries decoded at a time, None =
    all; while training, the activations of a chunk are recomputed in the backward pass, so that memory grows with
    `chunk` and not with k. A subclass says in `decode` what becomes of a chunk.

    Raises UserError for sizes that do not fit each other.
    """

    def __init__(
        self, in_channels: int, *, width: int, ffn: int, heads: int, encoder_layers: int, attend: Sequence[bool],
        project: bool, dropout: float, chunk: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sizes(in_channels, width, heads, len(attend), project)
        self.independent = not any(attend[1:])
        check_chunk(chunk, self.independent)
        self.chunk = chunk
        self.project = nn.Linear(in_channels, width) if project else nn.Identity()
        self.encoder = nn.ModuleList(EncoderLayer(width, ffn, heads, dropout) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(width, ffn, heads, dropout, self_attention=flag) for flag in attend)
        self.norm = nn.LayerNorm(width)

    def read(self, features: Tensor) -> list[Tensor]:
        """Keys and values of every decoder layer in turn: what queries see of the image, the same for all of them."""
        tokens = self.project(features.flatten(2).mT)
        positions = sine_positions(features.shape[2], features.shape[3], tokens.shape[2], device=tokens.device)
        positions = positions.to(tokens.dtype)
        for layer in self.encoder:
            tokens = layer(tokens, positions)
        layers = cast("list[DecoderLayer]", self.decoder)
        return [part for layer in layers for part in layer.cross_attention.read(tokens + positions, tokens)]

    def in_chunks(self, chunks: Sequence[tuple[Tensor, ...]], memory: list[Tensor]) -> Tensor:
        """`decode` of each chunk, side by side along the axis of the queries."""
        if len(chunks) > 1 and self.training and torch.is_grad_enabled():
            return torch.cat([checkpoint(self.decode, *chunk, *memory, use_reentrant=False) for chunk in chunks], dim=1)
        return torch.cat([self.decode(*chunk, *memory) for chunk in chunks], dim=1)

    def decode(self, queries: Tensor, weight: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        """One chunk of queries and the weights that they are read with → logits [B, k, …]."""
        raise NotImplementedError

    def answers(self, queries: Tensor, memory: Sequence[Tensor]) -> Tensor:
        """Queries [k, D] or [B, k, D] through the decoder → [B, k, D], before the last norm.

        The content starts at zero with a batch axis of one: up to the first cross-attention everything (its query
        projection too) is the same for all images and computed once.
        """
        queries = queries if queries.ndim == 3 else queries[None]
        content = torch.zeros_like(queries)
        for layer, keys, values in zip(self.decoder, memory[::2], memory[1::2], strict=True):
            content = layer(content, queries, keys, values)
        return content


def check_sizes(in_channels: int, width: int, heads: int, decoder_layers: int, project: bool) -> None:
    if not project and in_channels != width:
        raise UserError(f"head width {width} on {in_channels} channels without projection; set width {in_channels}")
    if width % heads or width % 4:
        raise UserError(f"head width {width}, wanted a multiple of 4 and of its {heads} attention heads")
    if decoder_layers < 1:
        raise UserError(f"head with {decoder_layers} decoder layers, wanted at least 1")


def check_chunk(chunk: int | None, independent: bool) -> None:
    if chunk is not None and chunk < 1:
        raise UserError(f"head chunk {chunk}, wanted at least 1 label, or none for all at once")
    if chunk is not None and not independent:
        raise UserError(f"head chunk {chunk} with labels that attend to each other; leave chunk or self-attention away")
