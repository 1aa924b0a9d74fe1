from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kappaseg_core.label_heads.attention import Attention, EncoderLayer, sine_positions

B, D = 2, 8


def test_positions_follow_the_formula() -> None:
    height, width, channels = 3, 5, 8
    table = sine_positions(height, width, channels).view(height, width, channels)
    for row in range(height):
        for column in range(width):
            y, x = 2 * math.pi * (row + 1) / (height + 1e-6), 2 * math.pi * (column + 1) / (width + 1e-6)
            slow = 10_000 ** (2 / 4)
            expected = [f(place / s) for place in (y, x) for s in (1, slow) for f in (math.sin, math.cos)]
            assert table[row, column].tolist() == pytest.approx(expected, abs=1e-6)


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
        for layer, weight, bias in zip(
            (ours.query, ours.key, ours.value),
            theirs.in_proj_weight.chunk(3),
            theirs.in_proj_bias.chunk(3),
            strict=True,
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        ours.out.load_state_dict(theirs.out_proj.state_dict())


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(D, 2, 0.0), nn.MultiheadAttention(D, 2, batch_first=True)
    copy_attention(ours, theirs)
    queries, keys, values = torch.randn(B, 5, D), torch.randn(B, 7, D), torch.randn(B, 7, D)
    expected = theirs(queries, keys, values, need_weights=False)[0]
    torch.testing.assert_close(ours(queries, *ours.read(keys, values)), expected)


def test_an_encoder_layer_without_positions_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = EncoderLayer(D, 12, 2, 0.0), nn.TransformerEncoderLayer(D, 2, 12, 0.0, batch_first=True)
    copy_attention(ours.self_attention.attention, theirs.self_attn)
    for layer, other in (
        (ours.self_attention.norm, theirs.norm1),
        (ours.ffn.widen, theirs.linear1),
        (ours.ffn.narrow, theirs.linear2),
        (ours.ffn.norm, theirs.norm2),
    ):
        nn.init.normal_(other.weight)
        nn.init.normal_(other.bias)
        layer.load_state_dict(other.state_dict())
    tokens = torch.randn(B, 7, D)
    torch.testing.assert_close(ours(tokens, torch.zeros(7, D)), theirs(tokens), rtol=1e-4, atol=1e-5)


def test_attention_starts_as_wide_as_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(64, 4, 0.0), nn.MultiheadAttention(64, 4)
    packed = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
    assert packed.std().item() == pytest.approx(theirs.in_proj_weight.std().item(), rel=0.05)
    assert packed.abs().max().item() == pytest.approx(math.sqrt(6 / (4 * 64)), rel=0.01)
