"""The network as a whole: what a ranking means to one that was trained on all labels."""

from __future__ import annotations

import pytest
import torch

from kappaseg_core.config import BackboneConfig
from kappaseg_core.ranking import PADDING_LOGIT, Ranking, complete_ranking
from stage2_segmentation.config import HostConfig, SourceConfig, Stage2Config
from stage2_segmentation.model import SegmentationModel, build_segmentation

K = 7


@pytest.fixture
def plain() -> SegmentationModel:
    """Trained on all labels, with a scale of its own for every label."""
    torch.manual_seed(0)
    backbone = BackboneConfig(kind="small_cnn", name="8", level=4)
    host = HostConfig(options={"width": 16, "heads": 2})
    model = build_segmentation(Stage2Config(backbone=backbone, host=host, source=SourceConfig("complete")), K)
    torch.nn.init.normal_(model.host.rank_scale.bias)
    return model.eval()


def test_a_network_trained_on_all_labels_gives_the_same_logits_among_a_few(plain: SegmentationModel) -> None:
    images = torch.randn(2, 3, 16, 20)
    labels = torch.tensor([[4, 1, 6], [0, 2, 0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    everything = plain(images, complete_ranking(2, K)).rank_logits
    picked = plain(images, Ranking(labels, torch.rand(2, 3), valid)).rank_logits
    for image, rank in valid.nonzero().tolist():
        assert torch.equal(picked[image, rank], everything[image, labels[image, rank]])
    assert (picked[1, 2] == PADDING_LOGIT).all()
