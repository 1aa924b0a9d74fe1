"""What each host is for, in words, and where its figures are found. No figure stands here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HostWords:
    """kind: host.kind.   study: what its schemes begin with in the study of all hosts.   on: backbones.

    branch: the label branch of its joint scheme (labels.head).   words: what it is for.
    """

    kind: str
    title: str
    study: str
    on: str
    branch: str
    words: str


HOSTS = (
    HostWords(
        "segmenter", "Segmenter", "segmenter", "any backbone, one map", "`encoder`",
        "The paper's main network, and the one to reproduce it with: a mask transformer in which patches and the "
        "tokens of the kept labels look at each other. It takes whatever map a backbone has, frozen ones with stored "
        "features too. Its masks are as coarse as that map.",
    ),
    HostWords(
        "encoder_only", "Encoder-only", "encoder-only",
        "plain ViT (AugReg, DINOv2, DINOv3), or a small one behind a convolutional network (`backbone.kind: hybrid`); "
        "trained",
        "`pooled`",
        "No decoder: the kept labels join the last blocks of a plain ViT, so that one pass ranks and segments. For "
        "strong pretrained ViTs, whose last blocks must be free to learn; a frozen backbone is no ground for it. Its "
        "masks are finer than the patches.",
    ),
    HostWords(
        "deeplabv3", "DeepLabV3", "deeplabv3", "ResNet and others with `output_stride`", "`projected`",
        "For convolutional backbones, and where a deployment knows convolutions alone. Backbone and head do the same "
        "work whatever is kept; only the last layer, its loss and the label map see fewer labels.",
    ),
    HostWords(
        "upernet", "UPerNet", "upernet", "four stages (Swin, ConvNeXt, ResNet), or four blocks of ViT, BEiT",
        "`projected`",
        "For backbones with stages: all of them are fused on the finest grid, so the masks are fine, and the last "
        "layer, its loss and the label map have many cells in which fewer labels are fewer products. The rest of the "
        "head does the same work whatever is kept.",
    ),
    HostWords(
        "maskformer", "MaskFormer", "maskformer", "four stages (Swin, ConvNeXt, ResNet), or four blocks of ViT, BEiT",
        "`projected`",
        "Queries predict a mask and a label each, so it also tells objects apart. Labels stand in a small table of "
        "queries × labels, and there are as many masks as queries whatever is kept: in training a selection has little "
        "to act on; in use it shortens the sum over queries at every pixel.",
    ),
    HostWords(
        "mask2former", "Mask2Former", "mask2former",
        "four stages (Swin, ConvNeXt, ResNet), or four blocks of ViT, BEiT",
        "`projected`",
        "As MaskFormer, with masked attention over several scales; the one to take for panoptic segmentation. A "
        "selection acts on the same sum alone.",
    ),
    HostWords(
        "nearest", "Nearest labels", "nearest", "any backbone, one map", "`pooled`",
        "For comparison: labels are chosen for every pixel instead of every image, as in ESSNet. Training sees the "
        "nearest labels of a pixel alone and needs no ranking; in use every label has a number in every cell.",
    ),
)  # fmt: skip
#: Segmenter once more, on the ViT that encoder-only has in the study, so that the two can be told apart from it
SAME_VIT = ("segmenter-hybrid", "Segmenter, ViT of encoder-only")


def study_rows() -> tuple[tuple[str, str], ...]:
    """(what schemes begin with, title) of every row of the study, in the order in which they are shown."""
    rows = [(host.study, host.title) for host in HOSTS]
    return (*rows[:2], SAME_VIT, *rows[2:])
