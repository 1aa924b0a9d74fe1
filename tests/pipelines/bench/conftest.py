"""A small network to measure."""

from __future__ import annotations

import pytest

from kappaseg_core.config import BackboneConfig
from pipelines.bench.variants import Variant
from stage2_segmentation.config import HostConfig, Stage2Config

TINY = Stage2Config(
    backbone=BackboneConfig(kind="small_cnn", name="8"),
    host=HostConfig(options={"width": 8, "heads": 2, "depth": 1, "attention_dropout": 0.0}),
)


@pytest.fixture
def tiny() -> Variant:
    """Training with 3 of 7 labels on two images of 32 pixels a side."""
    return Variant("kept labels, ours", TINY, 7, 3, train=True, images=2, size=32)
