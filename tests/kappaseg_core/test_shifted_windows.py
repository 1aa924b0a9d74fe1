"""Swin's shifted windows on maps of no whole number of windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig

SMALL = {"embed_dim": 4, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "always_partition": True}


def blocks(**more: Any) -> Any:
    """The two blocks of a first stage: the second has windows of 4 cells, shifted by 2."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="swin_tiny_patch4_window7_224", options={**SMALL, **more})).eval()
    network: Any = backbone.network
    return network.model.layers[0].blocks


def seen_by_the_first_cell(block: Any, side: int) -> Tensor:
    """Which cells [side, side] of a map the first one looks at."""
    cells = torch.randn(1, side, side, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    block(cells)[0, 0, 0].square().sum().backward()
    assert cells.grad is not None
    return cells.grad[0].abs().sum(2) > 0


@pytest.mark.parametrize("side", [5, 6, 7])
def test_cells_at_opposite_edges_do_not_look_at_each_other(side: int) -> None:
    """The shifted windows are of rows 0 to 1, 2 to 5 and 6 to 7: the first cell sees two rows and two columns."""
    seen = seen_by_the_first_cell(blocks(pad_before_shift=True)[1], side)
    assert seen[:2, :2].all() and seen.sum() == 4


def test_timm_by_itself_lets_them_where_the_map_is_padded() -> None:
    assert seen_by_the_first_cell(blocks()[1], 5).sum() > 4


@torch.no_grad()
def test_where_windows_fit_nothing_changes() -> None:
    cells = torch.randn(2, 8, 12, 4)
    for ours, theirs in zip(blocks(pad_before_shift=True), blocks(), strict=True):
        assert torch.equal(ours(cells), theirs(cells))
