from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads import PooledLinear, Query2Label, build_head
from kappaseg_core.label_heads.attention import FeedForward

B, C, K, D = 2, 6, 5, 8
Heads = Callable[..., Query2Label]
Features = Callable[..., Tensor]


def parameters_in_millions(name: str, in_channels: int, num_classes: int, **overrides: Any) -> float:
    with torch.device("meta"):
        built = build_head(name, in_channels, num_classes, **overrides)
    return round(sum(p.numel() for p in built.parameters()) / 1e6, 1)


# Sizes: the count of a head on Swin-L (1,536 channels) at K = 171, 1,284 and 10,000.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("rankseg", (44.6, 48.0, 74.8)), ("official", (104.4, 107.8, 134.6)), ("fast", (12.5, 14.2, 27.6))],
)
def test_presets_have_the_published_sizes(name: str, millions: tuple[float, ...]) -> None:
    assert tuple(parameters_in_millions(name, 1536, classes) for classes in (171, 1284, 10_000)) == millions


def test_the_official_head_has_its_size_on_other_backbones() -> None:
    assert parameters_in_millions("official", 2048, 80) == 151.4  # ResNet-101
    assert parameters_in_millions("official", 2432, 80, width=2048) == 156.4  # TResNet-L, projected
    assert parameters_in_millions("official", 2432, 80) == 191.0  # TResNet-L, not projected


def test_the_parameters_are_those_of_the_formula(head: Heads) -> None:
    built, d, ffn = head(), D, 12
    attention, norm = 4 * (d * d + d), 2 * d
    layer = attention + (2 * d * ffn + ffn + d) + 2 * norm
    expected = (C * d + d) + 3 * layer + norm + K * (2 * d + 1)
    assert sum(p.numel() for p in built.parameters()) == expected


@pytest.mark.parametrize("kind", ["none", "first", "not_first", "all"])
def test_every_parameter_matters_that_can(head: Heads, features: Features, kind: str) -> None:
    built = head(self_attention=kind)
    built(features()).square().sum().backward()
    idle = {name for name, p in built.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-5}
    expected = {name for name, _ in built.named_parameters() if name.endswith("key.bias")}  # softmax(x + c) is the same
    if kind in ("first", "all"):  # the content is still zero there: all labels look alike
        first = "decoder.0.self_attention.attention"
        expected |= {f"{first}.{name}" for name in ("query.weight", "query.bias", "key.weight", "value.weight")}
    assert idle == expected


def test_logits_are_fp32_for_any_grid(head: Heads) -> None:
    for size in ((1, 1), (3, 4), (5, 2)):
        logits = head()(torch.randn(B, C, *size))
        assert logits.shape == (B, K) and logits.dtype == torch.float32


def test_logits_are_fp32_and_close_under_autocast(head: Heads, features: Features) -> None:
    built = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = built(features())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, built(features()), rtol=0.05, atol=0.1)


def test_a_batch_of_two_equals_two_batches_of_one(head: Heads, features: Features) -> None:
    for kind in ("none", "all"):
        built = head(self_attention=kind)
        alone = torch.cat([built(image[None]) for image in features()])
        torch.testing.assert_close(built(features()), alone, rtol=1e-5, atol=1e-6)


def test_labels_and_their_weights_move_together(head: Heads, features: Features) -> None:
    built, order = head(), torch.tensor([3, 1, 4, 0, 2])
    before = built(features())
    with torch.no_grad():
        for parameter in (built.queries, built.weight, built.bias):
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(built(features()), before[:, order], rtol=1e-6, atol=1e-6)


def test_the_place_of_a_feature_matters(head: Heads, features: Features) -> None:
    built = head()
    assert not torch.allclose(built(features()), built(features().flip(3)), atol=1e-3)


def test_dropout_acts_only_while_training(head: Heads, features: Features) -> None:
    built = head(dropout=0.5)
    assert torch.equal(built(features()), built(features()))
    built.train()
    assert not torch.equal(built(features()), built(features()))
    ffn = FeedForward(D, 12, 0.5)
    assert not torch.equal(ffn(torch.ones(1, 1, D)), ffn(torch.ones(1, 1, D)))


@pytest.mark.parametrize("name", ["rankseg", "gap", "lse"])
def test_the_prior_becomes_the_score_of_a_head_that_knows_nothing(name: str) -> None:
    sizes = {} if name in ("gap", "lse") else {"ffn": 12, "heads": 2}
    built = build_head(name, D, K, **sizes).eval()
    weight = built.linear.weight if isinstance(built, PooledLinear) else built.weight
    nn.init.zeros_(weight)
    frequency = torch.tensor([0.5, 0.01, 0.2, 0.0, 1.0])
    built.set_prior(frequency)
    scores = built(torch.randn(B, D, 3, 2)).sigmoid()
    torch.testing.assert_close(scores[:, :3], frequency[:3].expand(B, -1))
    assert scores[0, 3].item() == pytest.approx(1e-4, rel=1e-3)
    assert scores[0, 4].item() == pytest.approx(1 - 1e-4, rel=1e-3)


def test_the_pooled_head_is_a_linear_layer_on_the_mean(features: Features) -> None:
    built = build_head("gap", C, K).eval()
    assert isinstance(built, PooledLinear)
    maps = features()
    expected = maps.mean((2, 3)) @ built.linear.weight.T + built.linear.bias
    torch.testing.assert_close(built(maps), expected)


def test_the_soft_maximum_lies_between_the_mean_and_the_largest_cell(features: Features) -> None:
    built = build_head("lse", C, K).eval()
    assert isinstance(built, PooledLinear)
    maps = features()
    cells = torch.einsum("bchw,kc->bkhw", maps, built.linear.weight).flatten(2) + built.linear.bias[:, None]
    found = built(maps)
    torch.testing.assert_close(found, cells.exp().mean(2).log())
    assert (found > cells.mean(2)).all() and (found < cells.amax(2)).all()


def test_the_soft_maximum_finds_a_label_that_fills_one_cell() -> None:
    """Mean pooling dilutes the one cell by all others; both heads have the same weights."""
    maps = torch.full((1, 1, 4, 4), -4.0)
    maps[..., 0, 0] = 8.0
    mean, soft = build_head("gap", 1, 1), build_head("lse", 1, 1)
    for built in (mean, soft):
        assert isinstance(built, PooledLinear)
        nn.init.ones_(built.linear.weight)
        nn.init.zeros_(built.linear.bias)
    assert mean(maps).item() == pytest.approx((8 - 15 * 4) / 16)
    assert soft(maps).item() > 5.0


def test_presets_take_the_width_of_the_backbone_and_project_only_to_another() -> None:
    small = {"ffn": 12, "heads": 2}
    same, other = build_head("rankseg", 16, K, **small), build_head("rankseg", 16, K, width=8, **small)
    assert isinstance(same, Query2Label) and isinstance(same.project, nn.Identity)
    assert isinstance(other, Query2Label) and isinstance(other.project, nn.Linear)
    assert other.queries.shape == (K, 8)
    fast = build_head("fast", 8, K, width=8, heads=2, ffn=12)
    assert isinstance(fast, Query2Label) and isinstance(fast.project, nn.Linear)


def test_sizes_that_do_not_fit_are_one_clear_error(head: Heads) -> None:
    for changes, message in (
        ({"project": False}, "width 8 on 6 channels without projection"),
        ({"heads": 3}, "multiple of 4 and of its 3 attention heads"),
        ({"width": 6, "heads": 2}, "head width 6"),
        ({"decoder_layers": 0}, "0 decoder layers"),
        ({"decoder_layers": -1}, "decoder layers, wanted at least 1"),
        ({"chunk": 0}, "chunk 0"),
    ):
        with pytest.raises(UserError, match=message):
            head(**changes)
    with pytest.raises(UserError, match="'mlp' is unknown; wanted one of rankseg, official, fast, gap, lse, group"):
        build_head("mlp", C, K)
    with pytest.raises(UserError, match="'gap' has no ffn, width"):
        build_head("gap", C, K, width=8, ffn=12)


def test_a_head_learns_which_image_holds_which_label(head: Heads, features: Features) -> None:
    torch.manual_seed(0)
    built = head().train()
    maps, targets = features(images=4), torch.eye(4, K)
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(built(maps), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05
    assert sum(later < earlier for earlier, later in pairwise(losses)) > 40
