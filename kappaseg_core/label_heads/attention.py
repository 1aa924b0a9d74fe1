"""Layers of transformers in which labels ask an image. Legend: B images, T cells, k labels or groups, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EncoderLayer(nn.Module):
    """The cells attend to each other. tokens [B, T, D], positions [T, D] → [B, T, D]."""

    def __init__(self, width: int, ffn: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, heads, dropout)
        self.ffn = FeedForward(width, ffn, dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = self.ffn(self.self_attention(tokens, positions))
        return out


class DecoderLayer(nn.Module):
    """Labels attend to each other (where told to), then to the image: LayerNorm(c + Attention(c + queries, image)).

    content, queries [1 or B, k, D]; keys, values of the image [B, heads, T, D/heads] → content [B, k, D].
    """

    def __init__(self, width: int, ffn: int, heads: int, dropout: float, *, self_attention: bool) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width, heads, dropout) if self_attention else None
        self.cross_attention = Attention(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, ffn, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, content: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if self.self_attention is not None:
            content = self.self_attention(content, queries)
        content = self.norm(content + self.drop(self.cross_attention(content + queries, keys, values)))
        out: Tensor = self.ffn(content)
        return out


class SelfAttention(nn.Module):
    """LayerNorm(x + Attention(x + p, x + p, x)): positions p enter queries and keys, never values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        placed = tokens + positions
        out: Tensor = self.norm(tokens + self.drop(self.attention(placed, *self.attention.read(placed, tokens))))
        return out


class Attention(nn.Module):
    """Multi-head attention, softmax(q kᵀ / √(D/heads)) v, with the keys and values prepared beforehand by `read`.

    Initialised as nn.MultiheadAttention: Xavier over the packed query-key-value matrix, zero biases.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight, gain=1.0 if layer is self.out else math.sqrt(0.5))
            nn.init.zeros_(layer.bias)

    def read(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] each → projected and split, [B, heads, T, D/heads] each."""
        return self.split(self.key(keys)), self.split(self.value(values))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [1 or B, k, D] → [B, k, D]."""
        asked = self.split(self.query(queries)).expand(keys.shape[0], -1, -1, -1)
        found = F.scaled_dot_product_attention(asked, keys, values, dropout_p=self.dropout if self.training else 0.0)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out

    def split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """LayerNorm(x + W2 relu(W1 x + b1) + b2)."""

    def __init__(self, width: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.widen.weight)
        nn.init.xavier_uniform_(self.narrow.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.norm(tokens + self.drop(self.narrow(self.drop(F.relu(self.widen(tokens))))))
        return out


def sine_positions(height: int, width: int, channels: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Sine position encoding f32 [T, D] (Carion et al., "DETR", 2020), row by row: D/2 channels for y, D/2 for x.

    Places 1..n are scaled to 2π n'/(n + 1e-6); frequencies 10000^(-2i/(D/2)); sine and cosine alternate.
    """
    half = channels // 2
    slowness = 10_000 ** (2 * (torch.arange(half // 2, device=device)) / half)
    axes = []
    for cells in (height, width):
        angle = (torch.arange(1, cells + 1, device=device) * (2 * math.pi / (cells + 1e-6)))[:, None] / slowness
        axes.append(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))
    y, x = axes[0][:, None].expand(-1, width, -1), axes[1][None].expand(height, -1, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1)
