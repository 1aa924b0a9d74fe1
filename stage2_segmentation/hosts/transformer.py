"""The pre-norm transformer block of the mask transformer (parameter names as published)."""

from __future__ import annotations

from torch import Tensor, nn

from kappaseg_core.attention import attention, packed_attention
from kappaseg_core.products import Linear, gelu_linear, linear


class Block(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)). tokens [B, N, D] → [B, N, D].

    attend: bool [B, N], the tokens that may be looked at; None = all of them.
    attention_dropout: of the attention weights; None = dropout, as everywhere else in the block.
    """

    def __init__(
        self, width: int, heads: int, ffn: int, dropout: float, attention_dropout: float | None = None
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, dropout, attention_dropout)
        self.mlp = FeedForward(width, ffn, dropout)

    def forward(self, tokens: Tensor, attend: Tensor | None = None) -> Tensor:
        return self.completed(tokens + self.attn(self.norm1(tokens), attend))

    def refine(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens [B, N, D] that attend to the tokens seen [B, T, D] alone, by the same weights: linear in N."""
        return self.completed(tokens + self.attn.across(self.norm1(tokens), self.norm1(seen)))

    def completed(self, tokens: Tensor) -> Tensor:
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float | None) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout if attention_dropout is None else attention_dropout
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, attend: Tensor | None) -> Tensor:
        packed = self.qkv(tokens).unflatten(2, (3, self.heads, -1))
        mask = None if attend is None else attend[:, None, None, :]
        return self.found(packed_attention(packed, mask, dropout=self.dropped))

    def across(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Queries from tokens [B, N, D]; keys and values from seen [B, T, D] → [B, N, D]."""
        width = tokens.shape[2]
        weights, biases = self.qkv.weight.split([width, 2 * width]), self.qkv.bias.split([width, 2 * width])
        (queries,) = self.split(linear(tokens, weights[0], biases[0]), 1)
        keys, values = self.split(linear(seen, weights[1], biases[1]), 2)
        return self.found(attention(queries, keys, values, dropout=self.dropped))

    def split(self, packed: Tensor, parts: int) -> Tensor:
        """[B, N, parts · D] → [parts, B, heads, N, D / heads]."""
        return packed.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    @property
    def dropped(self) -> float:
        """Share of the attention weights."""
        return self.dropout if self.training else 0.0

    def found(self, found: Tensor) -> Tensor:
        """What each head found, [B, heads, N, D / heads] → [B, N, D]."""
        out: Tensor = self.drop(self.proj(found.transpose(1, 2).flatten(2)))
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        dropout = self.drop.p if self.training else 0.0
        out: Tensor = self.drop(gelu_linear(self.fc1(tokens), self.fc2.weight, self.fc2.bias, dropout=dropout))
        return out
