"""The network as a whole: what a ranking means to one that was trained on all labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kappaseg_core.compiling import compile_parts
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


@pytest.mark.parametrize("host", ["segmenter", "upernet"])
def test_the_backbone_is_compiled_with_the_host_whether_it_gives_one_map_or_several(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def compile(self: nn.Module) -> None:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(type(self).__name__)
            return self._call_impl(*args, **kwargs)

        self._compiled_call_impl = counted

    monkeypatch.setattr(nn.Module, "compile", compile)
    backbone = BackboneConfig(name="resnet10t", frozen=False)
    model = build_segmentation(Stage2Config(backbone=backbone, host=HostConfig(host, {"width": 64})), K)
    compile_parts(model)
    model(torch.randn(2, 3, 32, 32), complete_ranking(2, K).top(3))
    assert calls == ["Backbone", type(model.host).__name__]
