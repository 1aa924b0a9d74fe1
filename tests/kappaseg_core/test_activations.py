from __future__ import annotations

import torch
from torch import nn

from kappaseg_core.activations import bytes_kept
from kappaseg_core.precision import full_precision
from stage2_segmentation.hosts.transformer import Block

N, D, F = 7, 8, 12


def test_a_linear_layer_keeps_what_it_was_given() -> None:
    layer = nn.Linear(D, F)
    given = torch.zeros(2, N, D)
    assert bytes_kept(layer, lambda: layer(given)) == 4 * 2 * N * D


def test_what_two_operations_keep_counts_once_and_a_batch_of_two_twice() -> None:
    branches = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D)])

    def kept(images: int) -> int:
        given = torch.zeros(images, N, D)
        return bytes_kept(branches, lambda: [branch(given) for branch in branches])

    assert kept(1) == 4 * N * D and kept(2) == 2 * kept(1)


def test_a_block_keeps_no_product_of_all_tokens_with_all_tokens() -> None:
    """Norms keep input, mean and deviation, layers behind them what they give; attention its queries, keys and
    values, the layer behind it its result."""
    found = {}
    for device in ("cpu", "meta"):
        block, tokens = Block(D, 2, F, 0.0).to(device), torch.zeros(1, N, D, device=device, requires_grad=True)
        found[device] = bytes_kept(block, lambda block=block, tokens=tokens: block(tokens))
    norms, attention, feed_forward = 2 * (2 * N * D + 2 * N), 4 * N * D, 2 * N * F
    assert found["cpu"] == found["meta"] == 4 * (norms + attention + feed_forward)


def test_what_has_no_gradient_keeps_nothing() -> None:
    layer = nn.Linear(D, D).requires_grad_(False)
    assert bytes_kept(layer, lambda: layer(torch.zeros(N, D))) == 0


def test_full_precision_turns_autocast_off_where_there_is_one() -> None:
    with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with full_precision(torch.device("meta")):
        assert (torch.ones(2, 2, device="meta") @ torch.ones(2, 2, device="meta")).dtype == torch.float32
