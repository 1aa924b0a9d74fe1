"""DeepLabV3 and UPerNet: their parts by hand, their label branch, and that they learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape
from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig, OptimConfig
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import complete_ranking, top_kappa
from stage2_segmentation.branches import build_branch
from stage2_segmentation.config import (
    AugmentConfig,
    HostConfig,
    InferenceConfig,
    LabelsConfig,
    SourceConfig,
    Stage2Config,
)
from stage2_segmentation.hosts import build_host
from stage2_segmentation.hosts.convolutions import BatchNorm
from stage2_segmentation.hosts.feature_pyramid import FeaturePyramid
from stage2_segmentation.hosts.pixel_classifier import PixelClassifier
from stage2_segmentation.hosts.upernet import Fusion
from stage2_segmentation.structures import Seen
from stage2_segmentation.train import train_segmentation
from tests.contracts.test_backbones import SWIN, VIT

K = 6
NARROW = {"width": 16, "auxiliary_width": 8}
RESNET = BackboneConfig(name="resnet10t")
PATCHES = replace(VIT, options={**VIT.options, "depth": 4})
NETWORKS = {
    "deeplabv3": (RESNET, HostConfig("deeplabv3", {**NARROW, "dilations": [1, 2, 3]})),
    "upernet on stages": (SWIN, HostConfig("upernet", NARROW)),
    "upernet on blocks": (PATCHES, HostConfig("upernet", NARROW)),
}  # fmt: skip


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_batch_norm_is_torchs_but_takes_one_value() -> None:
    own, torchs = BatchNorm(3), nn.BatchNorm2d(3)
    for cells in (noise(2, 3, 1, 1), noise(1, 3, 2, 5)):
        assert torch.equal(own(cells), torchs(cells))
    one = noise(1, 3, 1, 1)
    expected = (one[0, :, 0, 0] - own.running_mean) / (own.running_var + own.eps).sqrt()  # type: ignore[operator]
    torch.testing.assert_close(own(one)[0, :, 0, 0], expected)
    assert torch.equal(own.running_mean, torchs.running_mean)  # type: ignore[arg-type]


def test_without_a_scale_and_a_ranking_the_last_layer_is_a_convolution() -> None:
    classify, cells = PixelClassifier(K, 4, kappa=K).eval(), noise(2, 4, 3, 5)
    expected = F.conv2d(cells, classify.cls_emb[:, :, None, None], classify.cls_bias)
    torch.testing.assert_close(classify(cells, complete_ranking(2, K)), expected)


def test_ranks_are_channels_of_that_convolution_normalised_over_the_ranks() -> None:
    """As released: layer normalisation over κ, with a weight and a bias per rank."""
    classify, cells = PixelClassifier(K, 4, kappa=3, scale="layer_norm").eval(), noise(2, 4, 3, 5)
    assert classify.rank_scale is not None
    with torch.no_grad():
        classify.rank_scale.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        classify.rank_scale.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))  # type: ignore[union-attr]
    ranking = top_kappa(noise(2, K).sigmoid(), 3)
    every = F.conv2d(cells, classify.cls_emb[:, :, None, None], classify.cls_bias)
    kept = every.gather(1, ranking.labels[..., None, None].expand(-1, -1, 3, 5))
    scale = classify.rank_scale
    expected = F.layer_norm(kept.movedim(1, 3), (3,), scale.weight, scale.bias).movedim(3, 1)
    torch.testing.assert_close(classify(cells, ranking), expected)


def test_a_coarse_map_stays_where_it_is_in_the_image() -> None:
    """The columns of a map of stride 32 count cells; at stride 8 an image of 45 pixels has 6 of 8."""
    fusion = Fusion([MapShape(4, 8), MapShape(4, 32)], 8, (1,))
    coarse = torch.arange(2.0).expand(1, 1, 2, 2)
    found = fusion.refined(coarse, 1, 0, torch.zeros(1, 1, 8, 6))
    assert found.shape == (1, 1, 8, 6)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875]))


def test_four_blocks_of_one_stride_become_a_pyramid() -> None:
    pyramid = FeaturePyramid([MapShape(4, 16)] * 4)
    assert [shape.stride for shape in pyramid.shapes] == [4, 8, 16, 32]
    maps = [noise(1, 4, 3, 5, seed=seed) for seed in range(4)]
    found = pyramid(maps)
    assert [tuple(features.shape[2:]) for features in found] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    assert found[2] is maps[2]
    assert found[3][0, 0, 1, 2] == maps[3][0, 0, 2, 4]  # alone in the last corner
    with pytest.raises(UserError, match="patches of 14 pixels cannot be quartered; use a backbone with patches of 16"):
        FeaturePyramid([MapShape(4, 14)] * 4)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("upernet", {"blocks": [1, 2]}, r"blocks = \[1, 2\], wanted 4 of them"),
        ("upernet", {"pools": [0]}, r"pools = \[0\], wanted 1 or more"),
        ("deeplabv3", {"dilations": []}, r"dilations = \[\], wanted at least one"),
        ("deeplabv3", {"rank_scale": "ranks"}, "wanted one of"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_host(kind, num_classes=K, maps=[MapShape(4, 16)] * 4, kappa=3, options=options)


def test_the_label_branch_shares_the_classifiers_rows_and_leaves_them_as_they_are() -> None:
    """As released: what it makes of them ranks labels, and the host goes on with the rows."""
    maps = [MapShape(8, 16)] * 2
    host = build_host("deeplabv3", num_classes=K, maps=maps, kappa=3, options=NARROW).eval()
    branch = build_branch("projected", host, num_classes=K, in_channels=8, options={"heads": 2, "pooled": 2})
    assert branch is not None
    features = noise(2, 8, 3, 5)
    seen = branch.eval()(host, features, None)
    assert seen.classes is None and seen.patches is None
    with torch.no_grad():
        host.cls_emb[4] *= -2  # type: ignore[operator, index]
    changed = branch(host, features, None)
    assert not torch.allclose(changed.label_logits[:, 4], seen.label_logits[:, 4], atol=1e-3)
    ranking = top_kappa(changed.label_logits.sigmoid(), 3)
    maps_seen = (noise(2, 8, 3, 5, seed=1), features)
    joint = host(replace(changed, maps=maps_seen), ranking).rank_logits
    assert torch.equal(joint, host(Seen(features, maps=maps_seen), ranking).rank_logits)


def test_the_encoder_branch_names_the_one_that_fits_these_hosts() -> None:
    host = build_host("deeplabv3", num_classes=K, maps=[MapShape(8, 16)] * 2, kappa=3, options=NARROW)
    with pytest.raises(UserError, match=r"this host has none; use projected"):
        build_branch("encoder", host, num_classes=K, in_channels=8, options={})
    with pytest.raises(UserError, match=r"width = 8, but shared class tokens have the host's; leave it out"):
        build_branch("projected", host, num_classes=K, in_channels=8, options={"width": 8})


def config_for(out: Path, network: str, **changes: Any) -> Stage2Config:
    backbone, host = NETWORKS[network]
    return Stage2Config(**{
        "data": DataConfig(kind="synthetic", options={"classes": K, "train": 8, "val": 4, "size": 48}),
        "backbone": replace(backbone, frozen=False),
        "host": host,
        "source": SourceConfig("oracle"),
        "augment": AugmentConfig(short_side=48, crop=48, scale=(1.0, 1.0), photometric=False),
        "inference": InferenceConfig(short_side=None),
        "optim": OptimConfig(lr=3e-3, schedule="poly"),
        "loop": LoopConfig(steps=2, batch_size=2, device="cpu"),
        "out": str(out),
        **changes,
    })  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("labels", [LabelsConfig("projected"), LabelsConfig("pooled"), LabelsConfig("decoder")])
def test_a_label_loss_without_selection_is_a_label_branch_on_the_complete_ranking(
    network: str, labels: LabelsConfig, tmp_path: Path
) -> None:
    """In the manner of EncNet: the image's labels are learnt, and all K are classified among. One image a step."""
    loop = LoopConfig(steps=1, batch_size=1, device="cpu", log_every=1)
    summary = train_segmentation(
        config_for(tmp_path, network, labels=labels, source=SourceConfig("complete"), loop=loop)
    )  # fmt: skip
    assert 0 < summary.metrics["mIoU"] < 1
    assert "label_loss" in (Path(summary.run) / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["oracle", "complete"])
@pytest.mark.parametrize("network", NETWORKS)
def test_training_raises_the_miou(network: str, source: str, tmp_path: Path) -> None:
    before, after = (
        train_segmentation(
            config_for(
                tmp_path / str(steps), network, source=SourceConfig(source),
                loop=LoopConfig(steps=steps, batch_size=4, device="cpu"),
            )
        ).metrics["mIoU"]
        for steps in (1, 40)
    )  # fmt: skip
    assert after > before + 0.1
