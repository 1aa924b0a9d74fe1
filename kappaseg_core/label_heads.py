"""Label heads: the final map of a backbone → one logit per label.

Legend: B images, C backbone channels, h w cells, T = h·w, K all labels, k the labels scored now, D width.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kappaseg_core.errors import UserError
from kappaseg_core.precision import full_precision

#: Which decoder layers let labels attend to each other. In the first one all labels still hold the same (zero) content,
#: so its result is one constant for all of them, and with "none" and "first" every label is scored by itself.
LabelsAttend = Literal["none", "first", "not_first", "all"]

LAYERS = {
    # Our reading of the paper's parameter count and FLOPs (Table 3, He et al. 2022), which does not state the sizes.
    "rankseg": {"ffn": 4096, "heads": 4, "encoder_layers": 0, "decoder_layers": 2},
    "official": {"ffn": 8192, "heads": 4, "encoder_layers": 1, "decoder_layers": 2},
    # The label branch of the released joint head ("2x TransDec", Table 6), on any backbone.
    "fast": {"width": 768, "project": True, "ffn": 2048, "heads": 8, "encoder_layers": 0, "decoder_layers": 2},
}
PRESETS: dict[str, dict[str, Any]] = {name: {**sizes, "dropout": 0.1} for name, sizes in LAYERS.items()}
PRESETS["gap"] = {"dropout": 0.0, "pooling": "mean"}
PRESETS["lse"] = {"dropout": 0.0, "pooling": "log_sum_exp"}


def build_head(name: str, in_channels: int, num_classes: int, **overrides: Any) -> Query2Label | PooledLinear:
    """The head of a preset, with some of its settings replaced.

    The width is the backbone's unless preset or override says otherwise; features are projected where the two differ,
    and always in `fast`. Raises UserError for an unknown preset or a setting that the preset does not have.
    """
    if name not in PRESETS:
        raise UserError(f"head preset {name!r} is unknown; wanted one of {', '.join(PRESETS)}")
    settings = PRESETS[name] | overrides
    if "pooling" in settings:
        if unknown := settings.keys() - PRESETS[name].keys():
            raise UserError(f"head preset {name!r} has no {', '.join(sorted(unknown))}; it takes dropout alone")
        return PooledLinear(in_channels, num_classes, **settings)
    settings = {"width": in_channels, "chunk": None} | settings
    settings = {"project": settings["width"] != in_channels} | settings
    return Query2Label(in_channels, num_classes, **settings)


class Query2Label(nn.Module):
    """Labels ask the image for themselves (Liu et al., "Query2Label", 2021): post-norm transformer, group-wise linear.

    One query per label attends to the cells of the backbone's map; logit_k = ⟨W_k, h_k⟩ + b_k.
    forward: features [B, C, h, w], any h and w → logits f32 [B, K].

    Where labels do not attend to each other (`self_attention` "none", the published default, or "first"), a label's
    logit is the same whichever others are scored with it. So `chunk` labels can be scored at a time, with the same
    result; while training, the activations of a chunk are then recomputed in the backward pass, so that memory grows
    with `chunk` and not with K.

    Raises UserError for sizes that do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int,
        ffn: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        self_attention: LabelsAttend = "none",
        project: bool,
        dropout: float,
        chunk: int | None,
    ) -> None:
        super().__init__()
        check_sizes(in_channels, width, heads, decoder_layers, project)
        attend = layers_that_attend(self_attention, decoder_layers)
        self.independent = not any(attend[1:])
        check_chunk(chunk, self.independent)
        self.chunk = chunk
        self.project = nn.Linear(in_channels, width) if project else nn.Identity()
        self.encoder = nn.ModuleList(EncoderLayer(width, ffn, heads, dropout) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(width, ffn, heads, dropout, self_attention=flag) for flag in attend)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(num_classes, width))
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(num_classes).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, features: Tensor) -> Tensor:
        return self.score(features, self.queries, self.weight, self.bias)

    def logits_for(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits f32 [B, n] of some labels only: labels i64 [n], or [B, n] for a list of its own per image.

        Equal to those columns of forward. Raises ValueError where labels attend to each other: they would differ.
        """
        if not self.independent:
            raise ValueError("logits of some labels depend on all others here; build with self_attention='none'")
        return self.score(features, self.queries[labels], self.weight[labels], self.bias[labels])

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.bias.copy_(log_odds(frequency))

    def score(self, features: Tensor, queries: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Logits f32 [B, k] of the labels whose queries, weights ([k, D] or [B, k, D]) and biases are given."""
        memory = self.read(features)
        size = self.chunk or queries.shape[-2]
        chunks = list(zip(queries.split(size, -2), weight.split(size, -2), bias.split(size, -1), strict=True))
        if len(chunks) > 1 and self.training and torch.is_grad_enabled():
            return torch.cat([checkpoint(self.decode, *chunk, *memory, use_reentrant=False) for chunk in chunks], dim=1)
        return torch.cat([self.decode(*chunk, *memory) for chunk in chunks], dim=1)

    def read(self, features: Tensor) -> list[Tensor]:
        """Keys and values of every decoder layer in turn: what labels see of the image, the same for all of them."""
        tokens = self.project(features.flatten(2).mT)
        positions = sine_positions(features.shape[2], features.shape[3], tokens.shape[2], device=tokens.device)
        positions = positions.to(tokens.dtype)
        for layer in self.encoder:
            tokens = layer(tokens, positions)
        layers = cast("list[DecoderLayer]", self.decoder)
        return [part for layer in layers for part in layer.cross_attention.read(tokens + positions, tokens)]

    def decode(self, queries: Tensor, weight: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        """One chunk of labels through the decoder.

        The content starts at zero with a batch axis of one: up to the first cross-attention everything (its query
        projection too) is the same for all images and computed once.
        """
        queries = queries if queries.ndim == 3 else queries[None]
        content = torch.zeros_like(queries)
        for layer, keys, values in zip(self.decoder, memory[::2], memory[1::2], strict=True):
            content = layer(content, queries, keys, values)
        with full_precision(content.device):  # half-precision logits would make ties in a ranking
            hidden = self.norm(content.to(weight.dtype))
            return torch.einsum("...kd,...kd->...k", hidden.float(), weight.float()) + bias.float()


class PooledLinear(nn.Module):
    """The plain multi-label classifiers: one linear layer, pooled over the cells. [B, C, h, w] → logits f32 [B, K].

    pooling: "mean" = global average pooling, then the linear layer. "log_sum_exp" = the layer at every cell, then
    log (1/T Σ_t exp z_tk), a soft maximum (Pinheiro and Collobert, CVPR 2015): a label that fills a few cells need not
    outweigh all others. It holds T logits per label.
    """

    def __init__(
        self, in_channels: int, num_classes: int, dropout: float, pooling: Literal["mean", "log_sum_exp"] = "mean"
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, num_classes)
        self.pooling = pooling

    def forward(self, features: Tensor) -> Tensor:
        with full_precision(features.device):
            cells = self.drop(features.float().flatten(2).mT)
            if self.pooling == "mean":
                logits: Tensor = self.linear(cells.mean(1))
                return logits
            return torch.logsumexp(self.linear(cells), dim=1) - math.log(cells.shape[1])

    @torch.no_grad()
    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        self.linear.bias.copy_(log_odds(frequency))


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
        asked = self.split(self.query(queries)).expand(len(keys), -1, -1, -1)
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


def log_odds(frequency: Tensor) -> Tensor:
    """log(π / (1 - π)), within ±9.2 (one image in ten thousand) so that a label never seen can still be learnt."""
    return torch.logit(frequency.float(), eps=1e-4)


def layers_that_attend(kind: LabelsAttend, layers: int) -> list[bool]:
    """For each decoder layer: do labels attend to each other there?"""
    choices = {"none": (False, False), "first": (True, False), "not_first": (False, True), "all": (True, True)}
    first, others = choices[kind]
    return [first] + [others] * (layers - 1)


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
