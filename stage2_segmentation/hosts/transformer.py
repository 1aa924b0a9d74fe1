"""The pre-norm transformer block of the mask transformer (parameter names as published)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


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
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, attend: Tensor | None) -> Tensor:
        queries, keys, values = self.split(self.qkv(tokens), 3)
        return self.found(queries, keys, values, None if attend is None else attend[:, None, None, :])

    def across(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Queries from tokens [B, N, D]; keys and values from seen [B, T, D] → [B, N, D]."""
        width = tokens.shape[2]
        weights, biases = self.qkv.weight.split([width, 2 * width]), self.qkv.bias.split([width, 2 * width])
        (queries,) = self.split(F.linear(tokens, weights[0], biases[0]), 1)
        keys, values = self.split(F.linear(seen, weights[1], biases[1]), 2)
        return self.found(queries, keys, values, None)

    def split(self, packed: Tensor, parts: int) -> Tensor:
        """[B, N, parts · D] → [parts, B, heads, N, D / heads]."""
        return packed.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def found(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        out: Tensor = self.drop(self.proj(found.transpose(1, 2).flatten(2)))
        return out


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(tokens)))))
        return out
