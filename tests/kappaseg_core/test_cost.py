from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.config import BackboneConfig
from kappaseg_core.cost import Cost, count
from kappaseg_core.label_heads import Query2Label
from kappaseg_core.ranking import Ranking
from stage2_segmentation.config import LabelsConfig, SourceConfig, Stage2Config
from stage2_segmentation.hosts.transformer import Block
from stage2_segmentation.model import SegmentationModel, build_segmentation

N, D, F = 7, 8, 12


def test_linear_layers_and_convolutions_by_hand() -> None:
    linear, grouped = nn.Linear(D, F), nn.Conv2d(4, 6, 3, padding=1, groups=2)
    assert count(linear, lambda: linear(torch.zeros(2, N, D))) == Cost(D * F + F, 2 * N * D * F, 2 * N * D * F)
    products = 5 * 4 * 6 * (4 // 2) * 9
    assert count(grouped, lambda: grouped(torch.zeros(1, 4, 5, 4))) == Cost(6 * 2 * 9 + 6, products, products)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_block_of_the_mask_transformer_by_hand(device: str) -> None:
    """Fused attention must not hide; the paper's counting sees one of its two products, and the norms."""
    block = Block(D, 2, F, 0.0).to(device).eval()
    layers, product = N * D * 3 * D + N * D * D + 2 * N * D * F, N * N * D
    found = count(block, lambda: block(torch.zeros(1, N, D, device=device)))
    assert found.macs == layers + 2 * product
    assert found.macs_paper == layers + product + 2 * (2 * N * D)


def test_labels_that_look_at_patches_alone_by_hand() -> None:
    block, patches = Block(D, 2, F, 0.0).eval(), 5
    found = count(block, lambda: block.refine(torch.zeros(1, N, D), torch.zeros(1, patches, D)))
    layers = N * D * D + patches * D * 2 * D + N * D * D + 2 * N * D * F
    assert found.macs == layers + 2 * N * patches * D


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_attention_of_torch_counts_in_evaluation_mode_too(device: str, mode: Callable[[], Any]) -> None:
    attention = nn.MultiheadAttention(D, 2, batch_first=True, device=device).eval()
    tokens = torch.zeros(2, N, D, device=device)
    with mode():
        found = count(attention, lambda: attention(tokens, tokens, tokens, need_weights=False))
    assert found.macs == 2 * (N * D * 3 * D + 2 * N * N * D + N * D * D)
    assert found.macs_paper == 0


def test_the_papers_counting_sees_nothing_of_the_attention_of_query2label() -> None:
    """Its keys and values are made outside the attention's own forward, and are hidden all the same."""
    cells, labels = 6, 5
    head = Query2Label(
        D, labels, width=D, ffn=F, heads=2, encoder_layers=1, decoder_layers=1, project=True, dropout=0.0, chunk=2
    ).eval()
    found = count(head, lambda: head(torch.zeros(1, D, 2, 3)))
    seen = cells * D * D + 2 * cells * D * F + 2 * labels * D * F + labels * D
    encoder = 4 * cells * D * D + 2 * cells * cells * D
    decoder = 2 * labels * D * D + 2 * cells * D * D + 2 * labels * cells * D
    assert found.macs == seen + encoder + decoder
    assert found.macs_paper == seen + 2 * D * (2 * cells + 3 * labels)  # norms: two per layer, one at the end


def test_two_images_take_twice_the_products_of_one() -> None:
    block = Block(D, 2, F, 0.0).eval()
    one, two = (count(block, partial(block, torch.zeros(images, N, D))) for images in (1, 2))
    assert (two.macs, two.macs_paper) == (2 * one.macs, 2 * one.macs_paper)
    assert two.parameters == one.parameters


def test_a_shared_layer_has_its_parameters_once_and_its_products_each_time() -> None:
    layer = nn.Linear(D, D)
    twice = nn.Sequential(layer, layer)
    assert count(twice, lambda: twice(torch.zeros(N, D))) == Cost(D * D + D, 2 * N * D * D, 2 * N * D * D)


def test_networks_deployed_together_add_up() -> None:
    assert Cost(1, 20, 300) + Cost(4, 50, 600) == Cost(5, 70, 900)


def test_counting_leaves_the_module_as_it_was_even_where_the_run_fails() -> None:
    head = nn.Sequential(nn.Linear(D, D), nn.Linear(D, 1))
    head[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match="shapes"):
        count(head, lambda: head(torch.zeros(1, D + 1)))
    assert [p.requires_grad for p in head.parameters()] == [False, False, True, True]
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in head.modules())


@pytest.mark.parametrize(
    ("classes", "kappa", "source", "head", "options", "parameters", "here", "paper"),
    [
        (171, 171, "complete", "none", {}, 102_513_750, 79.24, None),
        (171, 50, "joint", "pooled", {}, 103_235_599, 76.94, 76.94),
        (171, 50, "joint", "encoder", {}, 109_734_415, 78.69, 78.71),
        (1284, 1284, "complete", "none", {}, 103_370_760, 102.53, None),
        (1284, 100, "joint", "encoder", {"pooled": 0}, 111_445_196, 98.32, 99.59),
    ],
)
def test_published_parameters_and_the_papers_counting_are_met(
    classes: int, kappa: int, source: str, head: str, options: dict[str, Any], parameters: int,
    here: float, paper: float | None,
) -> None:  # fmt: skip
    """Segmenter ViT-B/16 at 512 pixels, Tables 3 and 6 of He et al. 2022: parameters and giga-MACs.

    here: the same count by a closed formula that was fitted to all the published rows.
    """
    network = build_on_meta(classes, kappa, source, head, options)
    found = count(network, lambda: network.segment(network.look(images()), ranks(kappa)))
    assert found.parameters == parameters
    assert found.macs_paper / 1e9 == pytest.approx(here, rel=1e-3)
    assert paper is None or found.macs_paper / 1e9 == pytest.approx(paper, rel=0.013)


def test_the_true_count_of_stage_two_is_far_above_the_papers() -> None:
    """127.05 giga-MACs with 50 of 171 labels: 254.1 GFLOP by the closed formula of the architecture."""
    network = build_on_meta(171, 50, "cache", "none", {})
    found = count(network, lambda: network.segment(network.look(images()), ranks(50)))
    assert found.macs / 1e9 == pytest.approx(127.05, rel=1e-3)
    assert found.macs_paper / 1e9 == pytest.approx(76.94, rel=1e-3)


def build_on_meta(classes: int, kappa: int, source: str, head: str, options: dict[str, Any]) -> SegmentationModel:
    config = Stage2Config(
        backbone=BackboneConfig(name="vit_base_patch16_384", options={"img_size": 512}, frozen=False),
        source=SourceConfig(train=source, kappa=kappa), labels=LabelsConfig(head=head, options=options),
    )  # fmt: skip
    with torch.device("meta"):
        return build_segmentation(config, classes).eval()


def images() -> Tensor:
    return torch.zeros(1, 3, 512, 512, device="meta")


def ranks(kappa: int) -> Ranking:
    labels = torch.zeros(1, kappa, dtype=torch.int64, device="meta")
    return Ranking(labels, labels.float(), labels.bool())
