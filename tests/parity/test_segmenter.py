"""Our backbone, host and inference together give what the original Segmenter gave on whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kappaseg_core.ranking import complete_ranking
from stage2_segmentation.config import InferenceConfig
from stage2_segmentation.inference import pieces_of_views
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.rank_maps import rank_scores
from tests.parity.conftest import Reference
from tests.parity.weights import imported


@pytest.fixture
def published(reference: Callable[[str], Reference], tmp_path: Path) -> Iterator[tuple[Reference, SegmentationModel]]:
    """ViT and mask transformer with the stored weights, evaluation mode, without gradients."""
    stored = reference("segmenter_full")
    heads = stored.sizes["heads"]
    made = imported(
        "segmenter", stored.state, tmp_path, stored.sizes["K"],
        {"host.options.heads": heads, "backbone.options.num_heads": heads, "backbone.mean": [0] * 3,
         "backbone.std": [1] * 3},
    )  # fmt: skip
    assert isinstance(made.network, SegmentationModel)
    with torch.inference_mode():
        yield stored, made.network


def scores(model: SegmentationModel, image: Tensor, plan: InferenceConfig) -> Tensor:
    """Image [1, 3, H, W] → [K, H, W] among all labels."""
    ranking = complete_ranking(1, len(model.host.cls_emb))
    size = (image.shape[2], image.shape[3])
    pieces = pieces_of_views(model, image[0], ranking, plan, size=size)
    return torch.cat(list(rank_scores(pieces, size))).permute(2, 0, 1)


@pytest.mark.parametrize(("image", "logits"), [("image", "logits"), ("big", "big_logits")])
def test_the_whole_network_is_the_published_one(
    published: tuple[Reference, SegmentationModel], image: str, logits: str
) -> None:
    stored, model = published
    theirs = stored.arrays[logits][0]
    ours = scores(model, stored.arrays[image], InferenceConfig())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_sliding_windows_are_averaged_as_published(published: tuple[Reference, SegmentationModel]) -> None:
    stored, model = published
    window = stored.sizes["img"]
    plan = InferenceConfig(mode="slide", window=window, stride=2 * window // 3)
    ours = scores(model, stored.arrays["big"], plan).softmax(0)
    theirs = stored.arrays["sliding"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.max()))
