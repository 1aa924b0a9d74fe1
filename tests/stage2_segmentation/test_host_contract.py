"""Networks whose host asks more of its backbone than one map: several maps, and the last blocks of a plain ViT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape, Wants, build_backbone
from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig, OptimConfig
from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import complete_ranking
from kappaseg_core.structures import Batch
from stage2_segmentation import hosts
from stage2_segmentation.config import (
    AugmentConfig,
    HostConfig,
    InferenceConfig,
    LabelsConfig,
    SourceConfig,
    Stage2Config,
)
from stage2_segmentation.evaluate import evaluate_model, load_segmentation, open_test_scenes
from stage2_segmentation.losses import prediction_loss, segmentation_loss
from stage2_segmentation.model import SegmentationModel, build_segmentation
from stage2_segmentation.sources.joint import Joint
from stage2_segmentation.structures import Auxiliary, Prediction
from stage2_segmentation.task import SegmentTask
from stage2_segmentation.train import source_for, train_segmentation
from tests.contracts.test_backbones import CONVNEXT, SWIN, VIT

K = 6
RESNET = BackboneConfig(name="resnet10t")
DINOV3 = BackboneConfig(name="vit_small_patch16_dinov3", options={"depth": 4, "embed_dim": 16, "num_heads": 2})


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host `two_maps` of the tests is there."""
    folder = Path(__file__).parents[1] / "contracts" / "hosts"
    monkeypatch.setattr(hosts, "__path__", [*hosts.__path__, str(folder)])
    yield


def config_for(out: Path, backbone: BackboneConfig = RESNET, **changes: Any) -> Stage2Config:
    return Stage2Config(**{
        "data": DataConfig(kind="synthetic", options={"classes": K, "train": 4, "val": 2, "size": 40}),
        "backbone": backbone,
        "host": HostConfig("two_maps"),
        "source": SourceConfig("complete"),
        "augment": AugmentConfig(short_side=40, crop=40),
        "inference": InferenceConfig(short_side=None),
        "optim": OptimConfig(kind="sgd", lr=0.05, schedule="poly"),
        "loop": LoopConfig(steps=3, batch_size=2, device="cpu", seed=1),
        "out": str(out),
        **changes,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("config", "wants", "strides"),
    [
        (RESNET, Wants(maps=4), [4, 8, 16, 32]),
        (BackboneConfig(name="resnet26", options={"output_stride": 8}), Wants(maps=2), [8, 8]),
        (SWIN, Wants(maps=4), [4, 8, 16, 32]),
        (CONVNEXT, Wants(maps=3), [8, 16, 32]),
        (replace(VIT, options={**VIT.options, "depth": 8}), Wants(maps=4), [16, 16, 16, 16]),
        (DINOV3, Wants(stages=(0, 3)), [16, 16]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_several_maps_are_the_networks_own_at_any_image_size(
    config: BackboneConfig, wants: Wants, strides: list[int]
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(config, wants=wants).eval()
    images = torch.randn(2, 3, 61, 97)
    maps = backbone.maps(images)
    assert [shape.stride for shape in backbone.shapes] == strides
    for one, shape in zip(maps, backbone.shapes, strict=True):
        assert one.shape == (2, shape.channels, -(-61 // shape.stride), -(-97 // shape.stride))
    assert torch.equal(backbone(images), maps[-1])
    sum(one.sum() for one in maps).backward()  # type: ignore[union-attr]
    assert [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_blocks_of_a_plain_vit_are_taken_at_equal_distances() -> None:
    torch.manual_seed(0)
    config = replace(VIT, options={**VIT.options, "depth": 8})
    backbone = build_backbone(config, wants=Wants(maps=4)).eval()
    chosen = build_backbone(config, wants=Wants(stages=(1, 3, 5, 7))).eval()
    chosen.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 32, 48)
    for one, other in zip(backbone.maps(images), chosen.maps(images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("config", "wants", "message"),
    [
        (BackboneConfig(kind="small_cnn", name="8"), Wants(maps=2), "has one map, and this host needs several"),
        (replace(RESNET, level=8), Wants(maps=2), "level = 8, but this host takes several maps; set level 0"),
        (VIT, Wants(maps=4), "takes 4 maps, but vit_tiny_patch16_224 has 2"),
        (VIT, Wants(stages=(0, 2)), r"the maps \[0, 2\] of vit_tiny_patch16_224, wanted ascending ones of 0 to 1"),
        (VIT, Wants(stages=(1, 0)), r"\[1, 0\] .* wanted ascending ones"),
        (RESNET, Wants(last_blocks=1), "last blocks of a plain ViT; backbone.name = resnet10t at level 0 is none"),
        (replace(VIT, level=16), Wants(last_blocks=1), "vit_tiny_patch16_224 at level 16 is none"),
        (VIT, Wants(last_blocks=2), r"last 2 blocks, but the backbone \(timm, vit_tiny_patch16_224\) has 2"),
        (replace(VIT, frozen=True), Wants(last_blocks=1), "set backbone.frozen false"),
    ],
)  # fmt: skip
def test_a_backbone_that_has_not_what_is_wanted_is_refused(config: BackboneConfig, wants: Wants, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(config, wants=wants)


@pytest.mark.parametrize("config", [VIT, DINOV3, replace(VIT, options={**VIT.options, "reg_tokens": 2})])
@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_a_plain_vit_in_two_parts_is_the_whole(config: BackboneConfig, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    whole = build_backbone(config).eval()
    parts = build_backbone(config, wants=Wants(last_blocks=1)).eval()
    parts.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, *size)
    begun = parts.begin(images)
    torch.testing.assert_close(begun.map(begun.norm(begun.through(0, begun.tokens))), whole(images))


@pytest.mark.parametrize("config", [VIT, DINOV3], ids=["absolute", "rotary"])
def test_further_tokens_have_no_place_and_may_be_hidden(config: BackboneConfig) -> None:
    """In another order they give the same in that order; where nobody looks at them, the image is as without them."""
    torch.manual_seed(0)
    backbone = build_backbone(config, wants=Wants(last_blocks=1)).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():  # so large that everything matters, LayerScale too
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    begun = backbone.begin(torch.randn(1, 3, 32, 48))
    further, own = torch.randn(1, 3, begun.tokens.shape[2]), begun.tokens.shape[1]
    found, turned = (begun.through(0, begun.joined(tokens)) for tokens in (further, further.flip(1)))
    torch.testing.assert_close(turned[:, own:].flip(1), found[:, own:], rtol=1e-4, atol=1e-5)
    attend = torch.arange(own + 3) < own
    hidden = begun.through(0, begun.joined(further), attend[None, None, None])
    alone = begun.through(0, begun.tokens)
    torch.testing.assert_close(hidden[:, :own], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[:, :own], alone, atol=1e-3)


def test_auxiliary_losses_are_added_with_their_weights() -> None:
    torch.manual_seed(0)
    ranking, mask = complete_ranking(2, K), torch.randint(K, (2, 16, 24))
    main, extra = torch.randn(2, K, 4, 6), torch.randn(2, K, 2, 3)
    prediction = Prediction(main, (Auxiliary(extra, 8, 0.4), Auxiliary(main, 4, 2.0)))
    both, figures = prediction_loss(prediction, mask, ranking, K, cell=4)
    fine, known = segmentation_loss(main, mask, ranking, K, cell=4)
    coarse = F.cross_entropy(F.interpolate(extra, (16, 24), mode="bilinear"), mask)
    torch.testing.assert_close(both, 3 * fine + 0.4 * coarse)
    assert figures == known


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_on_several_maps_trains_and_measures_as_it_ended(tmp_path: Path, frozen: bool) -> None:
    """With a label branch on the last map; a frozen backbone's maps are computed once."""
    loop = LoopConfig(steps=3, batch_size=2, device="cpu", seed=1, cached_views=2 if frozen else 0)
    config = config_for(
        tmp_path, replace(RESNET, frozen=frozen), loop=loop, source=SourceConfig("joint", kappa=3),
        labels=LabelsConfig("pooled"),
    )  # fmt: skip
    summary = train_segmentation(config)
    model, loaded, names = load_segmentation(Path(summary.run))
    assert (model.cell, model.backbone.shapes) == (16, (MapShape(256, 16), MapShape(512, 32)))
    scenes = open_test_scenes(loaded, names)
    again = evaluate_model(model, scenes, source_for(loaded, scenes, at_test=True), loaded.inference, Placement())
    assert again.numbers() == summary.metrics
    stored = sorted(file.name for file in tmp_path.glob("features/*/features*.npy"))
    assert stored == (["features-1.npy", "features.npy"] if frozen else [])


def test_stored_maps_train_as_those_that_are_computed(tmp_path: Path) -> None:
    """The same steps with and without, up to the half precision of what is stored."""
    augment = AugmentConfig(short_side=40, crop=40, scale=(1.0, 1.0), flip=0, photometric=False, max_share=1.0)
    losses = []
    for views in (0, 1):
        loop = LoopConfig(steps=2, batch_size=4, device="cpu", cached_views=views)
        config = config_for(tmp_path / str(views), replace(RESNET, frozen=True), loop=loop, augment=augment)
        run = Path(train_segmentation(config).run)
        losses.append(load_segmentation(run)[0].host.state_dict())
    for one, other in zip(losses[0].values(), losses[1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


class WithOwnLayer(nn.Module):
    """A network with a layer that its first map alone depends on."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.own = network, nn.Conv2d(channels, channels, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        first, *others = self.network(images)
        return [self.own(first), *others]


def test_every_map_has_a_gradient_while_the_label_loss_is_alone(tmp_path: Path) -> None:
    """Distributed training waits for all gradients, and the label branch looks at the last map."""
    labels, source = LabelsConfig("pooled", warm_up=0.5), SourceConfig("joint", kappa=3)
    model = build_segmentation(config_for(tmp_path, replace(RESNET, frozen=False), labels=labels, source=source), K)
    model.backbone.network = WithOwnLayer(model.backbone.network, model.backbone.shapes[0].channels)
    task = SegmentTask(model, Joint(3), K, missed=source, labels=labels, loss_stride=1)
    batch = Batch(("a", "b"), image=torch.randn(2, 3, 40, 40), mask=torch.randint(K, (2, 40, 40)), progress=0.1)
    task(batch)[0].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_class_tokens_in_the_backbone_go_with_one_map_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two_maps takes several maps of the backbone; use class_tokens host"):
        build_segmentation(config_for(tmp_path, VIT, class_tokens="backbone"), K)


def _model(tmp_path: Path) -> SegmentationModel:
    return build_segmentation(config_for(tmp_path), K).eval()


def test_a_network_trained_on_all_labels_picks_among_its_logits(tmp_path: Path) -> None:
    model, images = _model(tmp_path), torch.randn(2, 3, 40, 33)
    everything = model(images, complete_ranking(2, K)).rank_logits
    assert torch.equal(model(images, complete_ranking(2, K).top(2)).rank_logits, everything[:, :2])
