"""Our backbone, host and inference together give what the original Segmenter gave on whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.backbones import build_backbone
from kappaseg_core.config import BackboneConfig
from kappaseg_core.ranking import complete_ranking
from stage2_segmentation.config import InferenceConfig
from stage2_segmentation.hosts.segmenter import Options, Segmenter
from stage2_segmentation.inference import pieces_of_views
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.rank_maps import rank_scores
from tests.parity.conftest import Reference
from tests.parity.weights import load_mask_transformer, part

PATCH = 16


@pytest.fixture
def published(reference: Callable[[str], Reference]) -> Iterator[tuple[Reference, SegmentationModel]]:
    """ViT and mask transformer with the stored weights, evaluation mode, without gradients."""
    stored = reference("segmenter_full")
    sizes, state = stored.sizes, stored.state
    backbone = build_backbone(
        BackboneConfig(
            name="vit_base_patch16_224",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            options={
                "img_size": sizes["img"], "patch_size": PATCH, "embed_dim": sizes["d"], "num_heads": sizes["heads"],
                "depth": len({name.split(".")[2] for name in state if name.startswith("encoder.blocks.")}),
                "mlp_ratio": sizes["d_ff"] / sizes["d"], "position_interpolation": "bilinear",
            },
        )
    )  # fmt: skip
    encoder = {name: value for name, value in part(state, "encoder.").items() if not name.startswith("head.")}
    backbone.load_state_dict({f"network.model.{name}": value for name, value in encoder.items()})
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # the original Segmenter's; timm's vision transformers have 1e-6
    options = Options(width=sizes["d"], heads=sizes["heads"], ffn=sizes["d_ff"])
    host = Segmenter(options, num_classes=sizes["K"], in_channels=sizes["d"], kappa=sizes["K"])
    load_mask_transformer(host, part(state, "decoder."))
    with torch.inference_mode():
        yield stored, SegmentationModel(backbone, host).eval()


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
