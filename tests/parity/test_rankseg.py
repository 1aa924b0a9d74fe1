"""The mask transformer, the RankSeg head and its ground-truth variant give what the published code gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.ranking import IGNORE, Ranking, complete_ranking, oracle_ranking, presence, top_kappa
from stage2_segmentation.losses import segmentation_loss
from stage2_segmentation.model import SegmentationModel
from tests.parity.conftest import Reference
from tests.parity.weights import imported, with_backbone

PUBLISHED_IGNORE = 255
NOT_SELECTED = -100.0  # what the published code fills K channels with

Load = Callable[[str], Reference]


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.fixture
def network(reference: Load, tmp_path: Path) -> Callable[[str], tuple[Reference, SegmentationModel]]:
    """`network("rankseg_gt_oracle")` → what is stored, and the imported network, with any backbone before it."""

    def made(name: str) -> tuple[Reference, SegmentationModel]:
        stored = reference(name)
        sizes = stored.sizes
        vit = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=sizes["img"], embed_dim=sizes["d_enc"], depth=1, num_heads=1
        )
        settings = {"host.options.heads": sizes["heads"]}
        if "ml_fc.W" in stored.state:
            settings |= {"labels.options.heads": sizes["heads"], "labels.options.pooled": sizes["down"]}
        state = with_backbone(stored.state, vit.state_dict())
        found = imported("rankseg", state, tmp_path, sizes["K"], settings)
        assert isinstance(found.network, SegmentationModel)
        return stored, found.network

    return made


def label_map_of(reference: Reference) -> Tensor:
    """The stored truth i64 [B, H, W] with our ignore value."""
    label = reference.arrays["label"][:, 0].long()
    return torch.where(label == PUBLISHED_IGNORE, IGNORE, label)


def scattered(logits: Tensor, ranking: Ranking, num_classes: int) -> Tensor:
    """Ranks [1, κ, h, w] → the published form, [1, K, h, w] with -100 where a label was not selected."""
    full = torch.full((1, num_classes, *logits.shape[2:]), NOT_SELECTED)
    full[0, ranking.labels[0]] = logits[0]
    return full


Network = Callable[[str], tuple[Reference, SegmentationModel]]


@torch.no_grad()
def test_the_mask_transformer_with_all_labels_is_the_published_segmenter(network: Network) -> None:
    stored, model = network("segmenter_mask_transformer")
    x = stored.arrays["x"]
    close(
        model.segment(model.read([x]), complete_ranking(len(x), stored.sizes["K"])).rank_logits, stored.arrays["masks"]
    )


@pytest.fixture
def joint(network: Network) -> tuple[Reference, SegmentationModel]:
    """The released joint head: its first block ranks the labels, the other two are the mask transformer."""
    return network("rankseg_1x_tranenc")


@torch.no_grad()
def run(joint: tuple[Reference, SegmentationModel]) -> tuple[Tensor, Ranking, Tensor]:
    """Label logits, ranking and rank logits of the joint network."""
    stored, model = joint
    seen = model.read([stored.arrays["x"]])
    assert seen.label_logits is not None
    ranking = top_kappa(seen.label_logits.sigmoid(), stored.sizes["topk"])
    return seen.label_logits, ranking, model.segment(seen, ranking).rank_logits


def test_the_joint_head_gives_the_published_label_logits(joint: tuple[Reference, SegmentationModel]) -> None:
    close(run(joint)[0], joint[0].arrays["img_pred"])


def test_the_joint_head_selects_the_published_labels_in_order(joint: tuple[Reference, SegmentationModel]) -> None:
    assert run(joint)[1].labels.tolist() == joint[0].arrays["topk_index"].tolist()


def test_the_joint_head_gives_the_published_masks(joint: tuple[Reference, SegmentationModel]) -> None:
    _, ranking, masks = run(joint)
    close(masks, joint[0].arrays["masks"])
    close(scattered(masks, ranking, joint[0].sizes["K"]), joint[0].arrays["full_masks"])


def test_the_losses_are_the_published_ones(joint: tuple[Reference, SegmentationModel]) -> None:
    stored = joint[0]
    label_logits, ranking, masks = run(joint)
    mask, classes = label_map_of(stored), stored.sizes["K"]
    cell = mask.shape[-1] // stored.arrays["x"].shape[-1]
    segmentation, _ = segmentation_loss(masks, mask, ranking, classes, cell=cell)
    close(segmentation, stored.arrays["loss_seg"])
    close(
        10 * F.binary_cross_entropy_with_logits(label_logits, presence(mask, classes).float()),
        stored.arrays["loss_img"],
    )


@torch.no_grad()
def test_the_oracle_head_is_the_published_one(network: Network) -> None:
    stored, model = network("rankseg_gt_oracle")
    classes = stored.sizes["K"]
    ranking = oracle_ranking(presence(label_map_of(stored), classes))
    ours = model.segment(model.read([stored.arrays["x"]]), ranking).rank_logits
    close(scattered(ours, ranking, classes), stored.arrays["masks"])
