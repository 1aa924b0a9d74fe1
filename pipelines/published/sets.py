"""The data sets of the published configurations, and what the published recipes set for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: mean and deviation, RGB in [0, 1]
COLOURS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class DataSet:
    """A data set and its settings in the released recipes of the Segmenter; of the panoptic sets, which these do not
    have, our choice.

    name: folder below configs/ and NAME of `kappaseg data prepare`.   classes: K.   train, val: images.
    kappa: κ.   steps: iterations of batch 8.   colours: mean and deviation that images are normalised with.
    label_weight: of the label loss, a mean over labels, beside 1 for the segmentation loss.
    label_decay: whether the label branch decays by 1e-4 and the rest by 1e-6; otherwise nothing decays.
    pooled: cells a side that the label branch looks at; 0 = all.
    crop, short_side: pixels, for ViT-B and for ViT-L.   objects: whether objects of things are told apart.
    """

    name: str
    title: str
    classes: int
    train: int
    val: int
    kappa: int
    steps: int
    colours: Literal["imagenet", "half"]
    label_weight: float
    label_decay: bool
    pooled: int = 8
    crop: tuple[int, int] = (512, 640)
    short_side: tuple[int, int] = (512, 640)
    objects: bool = False

    @property
    def ignore(self) -> int:
        """Mask value of unlabelled pixels: the largest of 8 bits where these hold all labels, else of 16."""
        return 255 if self.classes <= 254 else 65535


COCO_STUFF10K = DataSet(
    "coco_stuff10k", "COCO-Stuff10k", 171, 9_000, 1_000, kappa=50, steps=40_000, colours="imagenet",
    label_weight=10.0, label_decay=False,
)  # fmt: skip
ADE20K = DataSet(
    "ade20k", "ADE20K", 150, 20_210, 2_000, kappa=50, steps=160_000, colours="half", label_weight=10.0,
    label_decay=True,
)  # fmt: skip
PASCAL_CONTEXT = DataSet(
    "pascal_context", "PASCAL-Context", 60, 4_998, 5_105, kappa=25, steps=80_000, colours="half", label_weight=5.0,
    label_decay=True, crop=(480, 480), short_side=(520, 520),
)  # fmt: skip
ADE20K_FULL = DataSet(
    "ade20k_full", "ADE20K-Full", 847, 25_574, 2_000, kappa=100, steps=160_000, colours="imagenet",
    label_weight=100.0, label_decay=False, pooled=0,
)  # fmt: skip
COCO_LVIS = DataSet(
    "coco_lvis", "COCO+LVIS", 1_284, 100_170, 19_809, kappa=100, steps=320_000, colours="imagenet",
    label_weight=300.0, label_decay=True, pooled=0,
)  # fmt: skip
ADE20K_PANOPTIC = DataSet(
    "ade20k_panoptic", "ADE20K panoptic", 150, 20_210, 2_000, kappa=50, steps=160_000, colours="imagenet",
    label_weight=10.0, label_decay=False, objects=True,
)  # fmt: skip
COCO_PANOPTIC = DataSet(
    "coco_panoptic", "COCO panoptic", 133, 118_287, 5_000, kappa=50, steps=368_750, colours="imagenet",
    label_weight=100.0, label_decay=False, objects=True,
)  # fmt: skip
SETS = (COCO_STUFF10K, ADE20K, PASCAL_CONTEXT, ADE20K_FULL, COCO_LVIS)
PANOPTIC_SETS = (ADE20K_PANOPTIC, COCO_PANOPTIC)
