"""A small Query2Label head and features for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.label_heads import Query2Label

B, C, K, D = 2, 6, 5, 8


@pytest.fixture(name="head")
def head_fixture() -> Callable[..., Query2Label]:
    return head


@pytest.fixture(name="features")
def features_fixture() -> Callable[..., Tensor]:
    return features


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
