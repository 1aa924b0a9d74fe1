from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.errors import UserError
from stage1_multilabel.heads import (
    Attention,
    EncoderLayer,
    FeedForward,
    PooledLinear,
    Query2Label,
    build_head,
    sine_positions,
)

B, C, K, D = 2, 6, 5, 8


def head(**changes: Any) -> Query2Label:
    """A small head with random weights everywhere: biases and norms too, so that nothing can hide behind a zero."""
    settings = {"width": D, "ffn": 12, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}
    settings |= {"project": True, "chunk": None}
    torch.manual_seed(0)
    built = Query2Label(C, K, **(settings | changes))
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


def features(seed: int = 1, images: int = B) -> Tensor:
    return torch.randn(images, C, 3, 4, generator=torch.Generator().manual_seed(seed))


def gradients(built: Query2Label) -> dict[str, Tensor]:
    built.zero_grad()
    built(features()).square().sum().backward()
    return {name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}


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


def test_the_parameters_are_those_of_the_formula() -> None:
    built, d, ffn = head(), D, 12
    attention, norm = 4 * (d * d + d), 2 * d
    layer = attention + (2 * d * ffn + ffn + d) + 2 * norm
    expected = (C * d + d) + 3 * layer + norm + K * (2 * d + 1)
    assert sum(p.numel() for p in built.parameters()) == expected


def test_every_parameter_matters() -> None:
    for kind in ("none", "all"):
        built = head(self_attention=kind)
        assert {name for name, _ in built.named_parameters()} == set(gradients(built))


def test_logits_are_fp32_for_any_grid() -> None:
    for size in ((1, 1), (3, 4), (5, 2)):
        logits = head()(torch.randn(B, C, *size))
        assert logits.shape == (B, K) and logits.dtype == torch.float32


def test_logits_are_fp32_and_close_under_autocast() -> None:
    built = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = built(features())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, built(features()), rtol=0.05, atol=0.1)


def test_a_batch_of_two_equals_two_batches_of_one() -> None:
    for kind in ("none", "all"):
        built = head(self_attention=kind)
        alone = torch.cat([built(image[None]) for image in features()])
        torch.testing.assert_close(built(features()), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3, K, 100])
@pytest.mark.parametrize("kind", ["none", "first"])
def test_chunks_of_labels_give_the_same_logits(chunk: int, kind: str) -> None:
    whole, chunked = head(self_attention=kind), head(self_attention=kind, chunk=chunk)
    torch.testing.assert_close(chunked(features()), whole(features()), rtol=1e-6, atol=1e-6)


def test_chunks_of_labels_give_the_same_gradients_while_training() -> None:
    whole, chunked = gradients(head().train()), gradients(head(chunk=2).train())
    assert whole.keys() == chunked.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_memory_kept_for_the_backward_pass_does_not_grow_with_the_labels_when_chunked() -> None:
    def kept(labels: int, chunk: int | None) -> int:
        built = Query2Label(
            C,
            labels,
            width=D,
            ffn=256,
            heads=2,
            encoder_layers=0,
            decoder_layers=2,
            project=True,
            dropout=0.0,
            chunk=chunk,
        )
        own = {p.untyped_storage().data_ptr() for p in built.parameters()}
        sizes: dict[int, int] = {}

        def note(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            built(features()).sum()
        return sum(sizes.values())

    assert kept(200, None) > 1.8 * kept(100, None)
    assert kept(200, 20) < 0.05 * kept(200, None)


def test_dropout_is_drawn_the_same_when_a_chunk_is_recomputed() -> None:
    built = head(chunk=2, dropout=0.5).train()
    weight = built.decoder[0].ffn.narrow.weight
    torch.manual_seed(3)
    loss = built(features()).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        weight += step
    torch.manual_seed(3)
    rise = built(features()).square().sum() - loss
    assert float(rise) == pytest.approx(float((gradient * step).sum()), rel=0.05)


def test_some_labels_score_as_they_do_among_all() -> None:
    labels = torch.tensor([4, 0, 3])
    for chunk in (None, 2):
        built = head(chunk=chunk)
        torch.testing.assert_close(
            built.logits_for(features(), labels), built(features())[:, labels], rtol=1e-6, atol=1e-6
        )


def test_every_image_can_have_its_own_list_of_labels() -> None:
    labels = torch.tensor([[4, 0, 3], [1, 1, 2]])
    for chunk in (None, 2):
        built = head(chunk=chunk)
        expected = built(features()).gather(1, labels)
        torch.testing.assert_close(built.logits_for(features(), labels), expected, rtol=1e-6, atol=1e-6)


def test_labels_that_attend_to_each_other_cannot_be_scored_apart() -> None:
    for kind in ("not_first", "all"):
        with pytest.raises(ValueError, match="depend on all others"):
            head(self_attention=kind).logits_for(features(), torch.tensor([0]))
        with pytest.raises(UserError, match="chunk 2"):
            head(self_attention=kind, chunk=2)


def test_only_the_first_layers_self_attention_leaves_labels_alone() -> None:
    for kind, moves in (("none", False), ("first", False), ("not_first", True), ("all", True)):
        built = head(self_attention=kind)
        before = built(features())
        with torch.no_grad():
            built.queries[0] += 1.0
        change = (built(features()) - before).abs().amax(0)
        assert change[0] > 1e-3
        assert bool((change[1:] > 1e-5).all()) is moves


def test_labels_and_their_weights_move_together() -> None:
    built, order = head(), torch.tensor([3, 1, 4, 0, 2])
    before = built(features())
    with torch.no_grad():
        for parameter in (built.queries, built.weight, built.bias):
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(built(features()), before[:, order], rtol=1e-6, atol=1e-6)


def test_the_place_of_a_feature_matters() -> None:
    built = head()
    assert not torch.allclose(built(features()), built(features().flip(3)), atol=1e-3)


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


def test_dropout_acts_only_while_training() -> None:
    built = head(dropout=0.5)
    assert torch.equal(built(features()), built(features()))
    built.train()
    assert not torch.equal(built(features()), built(features()))
    ffn = FeedForward(D, 12, 0.5)
    assert not torch.equal(ffn(torch.ones(1, 1, D)), ffn(torch.ones(1, 1, D)))


@pytest.mark.parametrize("name", ["rankseg", "gap"])
def test_the_prior_becomes_the_score_of_a_head_that_knows_nothing(name: str) -> None:
    sizes = {} if name == "gap" else {"ffn": 12, "heads": 2}
    built = build_head(name, D, K, **sizes).eval()
    weight = built.linear.weight if isinstance(built, PooledLinear) else built.weight
    nn.init.zeros_(weight)
    frequency = torch.tensor([0.5, 0.01, 0.2, 0.0, 1.0])
    built.set_prior(frequency)
    scores = built(torch.randn(B, D, 3, 2)).sigmoid()
    torch.testing.assert_close(scores[:, :3], frequency[:3].expand(B, -1))
    assert scores[0, 3].item() == pytest.approx(1e-4, rel=1e-3)
    assert scores[0, 4].item() == pytest.approx(1 - 1e-4, rel=1e-3)


def test_the_pooled_head_is_a_linear_layer_on_the_mean() -> None:
    built = build_head("gap", C, K).eval()
    assert isinstance(built, PooledLinear)
    maps = features()
    expected = maps.mean((2, 3)) @ built.linear.weight.T + built.linear.bias
    torch.testing.assert_close(built(maps), expected)


def test_presets_take_the_width_of_the_backbone_and_project_only_to_another() -> None:
    small = {"ffn": 12, "heads": 2}
    same, other = build_head("rankseg", 16, K, **small), build_head("rankseg", 16, K, width=8, **small)
    assert isinstance(same, Query2Label) and isinstance(same.project, nn.Identity)
    assert isinstance(other, Query2Label) and isinstance(other.project, nn.Linear)
    assert other.queries.shape == (K, 8)
    fast = build_head("fast", 8, K, width=8, heads=2, ffn=12)
    assert isinstance(fast, Query2Label) and isinstance(fast.project, nn.Linear)


def test_sizes_that_do_not_fit_are_one_clear_error() -> None:
    for changes, message in (
        ({"project": False}, "width 8 on 6 channels without projection"),
        ({"heads": 3}, "multiple of 4 and of its 3 attention heads"),
        ({"width": 6, "heads": 2}, "head width 6"),
        ({"decoder_layers": 0}, "0 decoder layers"),
        ({"chunk": 0}, "chunk 0"),
    ):
        with pytest.raises(UserError, match=message):
            head(**changes)
    with pytest.raises(UserError, match="'mlp' is unknown; wanted one of rankseg, official, fast, gap"):
        build_head("mlp", C, K)
    with pytest.raises(UserError, match="'gap' has no ffn, width"):
        build_head("gap", C, K, width=8, ffn=12)


def test_a_head_learns_which_image_holds_which_label() -> None:
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
