"""The two stages against the plain network where the vocabulary is large: the project's claim, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from kappaseg_core.config import load_config
from stage1_multilabel.config import RankConfig, Stage1Config
from stage1_multilabel.rank import rank_images
from stage1_multilabel.train import train_classifier
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.train import train_segmentation

CONFIGS = Path(__file__).parents[1] / "configs" / "synthetic512"
SMALLER = [("data.options.train", "1500"), ("data.options.val", "60"), ("data.options.size", "48")]


@pytest.mark.slow
def test_ranking_first_beats_the_plain_network_among_512_labels(tmp_path: Path) -> None:
    """Equal steps of stage two, the experiment's own settings on fewer and smaller scenes (docs/results.md)."""
    shared = [*SMALLER, ("out", str(tmp_path))]
    stage1 = [*shared, ("augment.image_size", "48"), ("loop.steps", "800")]
    train_classifier(load_config(Stage1Config, CONFIGS / "stage1.yaml", stage1))
    rank_images(load_config(RankConfig, CONFIGS / "rank.yaml", shared))
    stage2 = [*shared, ("augment.short_side", "48"), ("augment.crop", "48"), ("inference.short_side", "48"),
              ("host.options.width", "64"), ("host.options.depth", "1"), ("host.options.heads", "2"),
              ("source.kappa", "25"), ("loop.steps", "600")]  # fmt: skip
    found = {
        source: train_segmentation(
            load_config(Stage2Config, CONFIGS / "stage2.yaml", [*stage2, ("source.train", source)])
        ).metrics
        for source in ("complete", "cache")
    }
    assert found["cache"]["mIoU"] > 1.15 * found["complete"]["mIoU"]
    assert found["cache"]["pixel_accuracy"] > 1.05 * found["complete"]["pixel_accuracy"]
    assert found["cache"]["mIoU"] <= found["cache"]["class_coverage"]
