"""The mask transformer, the RankSeg head and its ground-truth variant give what the published code gave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kappaseg_core.ranking import IGNORE, Ranking, complete_ranking, oracle_ranking, presence, top_kappa
from stage2_segmentation.branches import encoder
from stage2_segmentation.branches.encoder import EncoderBranch
from stage2_segmentation.hosts.segmenter import Options, Segmenter
from stage2_segmentation.losses import segmentation_loss
from tests.parity.conftest import Reference
from tests.parity.weights import load_mask_transformer

PUBLISHED_IGNORE = 255
NOT_SELECTED = -100.0  # what the published code fills K channels with

Load = Callable[[str], Reference]


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def host_of(reference: Reference, *, depth: int, kappa: int, unbiased: bool = False) -> Segmenter:
    sizes = reference.sizes
    options = Options(
        width=sizes["d"], heads=sizes["heads"], ffn=sizes["d_ff"], depth=depth, dropout=0.0, unbiased=unbiased
    )
    return Segmenter(options, num_classes=sizes["K"], in_channels=sizes["d_enc"], kappa=kappa).eval()


def label_map_of(reference: Reference) -> Tensor:
    """The stored truth i64 [B, H, W] with our ignore value."""
    label = reference.arrays["label"][:, 0].long()
    return torch.where(label == PUBLISHED_IGNORE, IGNORE, label)


def scattered(logits: Tensor, ranking: Ranking, num_classes: int) -> Tensor:
    """Ranks [1, κ, h, w] → the published form, [1, K, h, w] with -100 where a label was not selected."""
    full = torch.full((1, num_classes, *logits.shape[2:]), NOT_SELECTED)
    full[0, ranking.labels[0]] = logits[0]
    return full


def test_the_mask_transformer_with_all_labels_is_the_published_segmenter(reference: Load) -> None:
    stored = reference("segmenter_mask_transformer")
    host = host_of(stored, depth=2, kappa=stored.sizes["K"])
    load_mask_transformer(host, stored.state)
    with torch.no_grad():
        ours = host(stored.arrays["x"], complete_ranking(len(stored.arrays["x"]), stored.sizes["K"]))
    close(ours, stored.arrays["masks"])


@pytest.fixture
def joint(reference: Load) -> tuple[Reference, Segmenter, EncoderBranch]:
    """The released joint head: its first block ranks the labels, the other two are the mask transformer."""
    stored = reference("rankseg_1x_tranenc")
    sizes = stored.sizes
    host = host_of(stored, depth=2, kappa=sizes["topk"])
    shape = (sizes["K"], sizes["d"])
    branch = EncoderBranch(
        encoder.Options(sizes["down"], heads=sizes["heads"], ffn=sizes["d_ff"], dropout=0.0), *shape
    ).eval()
    load_mask_transformer(host, stored.state, first_block=1)
    state = stored.state
    branch.block.load_state_dict({k.removeprefix("blocks.0."): v for k, v in state.items() if "blocks.0." in k})
    branch.norm.load_state_dict({"weight": state["decoder_norm2.weight"], "bias": state["decoder_norm2.bias"]})
    branch.load_state_dict({"weight": state["ml_fc.W"][0], "bias": state["ml_fc.b"][0]}, strict=False)
    return stored, host, branch


@torch.no_grad()
def run(joint: tuple[Reference, Segmenter, EncoderBranch]) -> tuple[Tensor, Ranking, Tensor]:
    """Label logits, ranking and rank logits of the joint network."""
    stored, host, branch = joint
    x = stored.arrays["x"]
    seen = branch(host, x)
    ranking = top_kappa(seen.label_logits.sigmoid(), stored.sizes["topk"])
    return seen.label_logits, ranking, host(x, ranking, **seen.tokens())


def test_the_joint_head_gives_the_published_label_logits(
    joint: tuple[Reference, Segmenter, EncoderBranch],
) -> None:
    close(run(joint)[0], joint[0].arrays["img_pred"])


def test_the_joint_head_selects_the_published_labels_in_order(
    joint: tuple[Reference, Segmenter, EncoderBranch],
) -> None:
    assert run(joint)[1].labels.tolist() == joint[0].arrays["topk_index"].tolist()


def test_the_joint_head_gives_the_published_masks(joint: tuple[Reference, Segmenter, EncoderBranch]) -> None:
    _, ranking, masks = run(joint)
    close(masks, joint[0].arrays["masks"])
    close(scattered(masks, ranking, joint[0].sizes["K"]), joint[0].arrays["full_masks"])


def test_the_losses_are_the_published_ones(joint: tuple[Reference, Segmenter, EncoderBranch]) -> None:
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


def test_the_oracle_head_is_the_published_one(reference: Load) -> None:
    stored = reference("rankseg_gt_oracle")
    classes = stored.sizes["K"]
    host = host_of(stored, depth=2, kappa=classes, unbiased=True)
    load_mask_transformer(host, stored.state)
    ranking = oracle_ranking(presence(label_map_of(stored), classes))
    with torch.no_grad():
        ours = host(stored.arrays["x"], ranking)
    close(scattered(ours, ranking, classes), stored.arrays["masks"])
