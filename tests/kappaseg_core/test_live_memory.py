"""Memory that is followed, not computed."""

from __future__ import annotations

import torch
from torch import nn

from kappaseg_core.live_memory import LiveMemory, imagined
from stage2_segmentation.hosts.transformer import Block

N = 100


def test_what_is_let_go_of_no_longer_counts_and_the_fullest_moment_is_remembered() -> None:
    with LiveMemory() as live:
        first = torch.zeros(N)
        second = first + 1
        del first
        third = second * 2
    assert live.bytes == 4 * 2 * N and live.peak == 4 * 2 * N
    del second, third
    assert live.bytes == 0 and live.peak == 4 * 2 * N


def test_a_view_takes_no_room() -> None:
    with LiveMemory() as live:
        whole = torch.zeros(2, N)
        parts = [whole[0], whole.T, whole.view(-1)]
    assert live.bytes == 4 * 2 * N and len(parts) == 3


def test_a_linear_layer_takes_by_hand_what_its_step_takes() -> None:
    """Input, result and its sum; in the backward pass the gradients of the sum, spread (a view), and of the weight."""
    layer = nn.Linear(N, N, bias=False)
    with LiveMemory() as live:
        live.add(layer.parameters())
        layer(torch.zeros(1, N)).sum().backward()
    assert live.bytes == 4 * 2 * N * N
    assert 4 * (2 * N * N + N) <= live.peak <= 4 * (2 * N * N + 3 * N + 4)


def peak(*, fake: bool, tokens: int = 64, dropout: float = 0.0, fused: bool = False) -> int:
    def step() -> int:
        block = Block(32, 2, 64, dropout)
        with LiveMemory() as live:
            live.add(block.parameters())
            block(torch.zeros(2, tokens, 32)).sum().backward()
        return live.peak

    if not fake:
        return step()
    with imagined(fused=fused):
        return step()


def test_tensors_without_numbers_take_what_real_ones_take() -> None:
    for dropout in (0.0, 0.1):
        assert peak(fake=True, dropout=dropout) == peak(fake=False, dropout=dropout)


def test_attention_whose_weights_are_dropped_keeps_them_on_a_cpu_and_not_on_a_gpu() -> None:
    def slope(*, fused: bool) -> float:
        """Of the memory that twice as many tokens take, over what they take if it grows with their number."""
        small, large = (peak(fake=True, tokens=tokens, dropout=0.1, fused=fused) for tokens in (512, 1024))
        return large / (2 * small)

    assert slope(fused=False) > 1.5 > 1.0 >= slope(fused=True)


def test_a_part_that_is_computed_again_is_fused_the_second_time_too() -> None:
    from torch.utils.checkpoint import checkpoint

    with imagined(fused=True):
        block = Block(32, 2, 64, 0.1)
        tokens = torch.zeros(1, 64, 32, requires_grad=True)
        checkpoint(block, tokens, use_reentrant=False).sum().backward()
    assert tokens.grad is not None
