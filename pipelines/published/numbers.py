"""What paper and release state for the published configurations, by the name of the recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Numbers as printed; None where nothing was published.

    parameters: millions.   gmacs: 10⁹ operations in the paper's counting, which it calls FLOPs.
    quality: mIoU in %, of a classifier its mAP.   flipped: mIoU in %, mean over six scales and both mirror images.
    ranked: mIoU in % of the independent scheme on a classifier's rankings.
    where: tables and figures of the paper; README = of the release.
    """

    where: str = ""
    parameters: float | None = None
    gmacs: float | None = None
    quality: float | None = None
    flipped: float | None = None
    ranked: float | None = None


README = "README"
NOTHING = Published()
PUBLISHED = {
    "coco_stuff10k/segmenter_vit_b_baseline": Published(README, quality=41.9),
    "coco_stuff10k/segmenter_vit_b_joint": Published("Tables 3 and 6, README", 109.73, 78.71, 44.9, 46.2),
    "coco_stuff10k/segmenter_vit_b_oracle": Published("Figure 3, README", quality=66.8),
    "coco_stuff10k/segmenter_vit_b_independent": Published("Tables 2 and 3", 343.21, 182.8, 44.42),
    "coco_stuff10k/segmenter_vit_b_baseline_80k": Published(README, quality=43.4),
    "coco_stuff10k/segmenter_vit_b_joint_80k": Published(README, quality=45.7, flipped=46.7),
    "coco_stuff10k/segmenter_vit_b_joint_gap": Published("Table 6", 103.24, 76.94, 43.2),
    "coco_stuff10k/segmenter_vit_b_joint_transdec": Published("Table 6", 114.27, None, 44.1),
    "coco_stuff10k/segmenter_vit_b_baseline_oce": Published(README, quality=44.1),
    "coco_stuff10k/segmenter_vit_b_joint_oce": Published(README, quality=46.0),
    "coco_stuff10k/segmenter_vit_l_baseline": Published("Table 7, README", 333.26, 378.57, 45.5, 47.12),
    "coco_stuff10k/segmenter_vit_l_joint": Published("Table 7, README", 346.03, 377.46, 46.7, 47.93),
    "coco_stuff10k/query2label_resnet101": Published("Table 2", quality=55.17, ranked=39.34),
    "coco_stuff10k/query2label_tresnet_l": Published("Table 2", quality=60.10, ranked=42.87),
    "coco_stuff10k/query2label_swin_l": Published("Table 2", quality=64.79, ranked=44.42),
    "ade20k/segmenter_vit_b_baseline": Published(README, quality=48.8),
    "ade20k/segmenter_vit_b_joint": Published(README, quality=49.7, flipped=51.4),
    "ade20k/segmenter_vit_b_oracle": Published("Figure 3, README", quality=63.6),
    "ade20k/segmenter_vit_b_joint_oce": Published(README, quality=50.1),
    "ade20k/segmenter_vit_l_baseline": Published("Table 7, README", 333.23, 377.83, 52.0, 53.63),
    "ade20k/segmenter_vit_l_joint": Published("Table 7, README", 345.99, 377.18, 52.6, 54.47),
    "pascal_context/segmenter_vit_b_baseline": Published(README, quality=53.8),
    "pascal_context/segmenter_vit_b_joint": Published(README, quality=54.7, flipped=55.4),
    "pascal_context/segmenter_vit_b_oracle": Published("Figure 3, README", quality=70.8),
    "ade20k_full/segmenter_vit_b_baseline": Published(README, quality=17.8),
    "ade20k_full/segmenter_vit_b_joint": Published(README, quality=18.8),
    "ade20k_full/segmenter_vit_b_oracle": Published("Figure 3, README", quality=37.0),
    "coco_lvis/segmenter_vit_b_baseline": Published(README, quality=19.4),
    "coco_lvis/segmenter_vit_b_joint": Published("Table 3, README", 111.45, 99.59, 21.3),
    "coco_lvis/segmenter_vit_b_oracle": Published("Figure 3, README", quality=46.8),
    "coco_lvis/segmenter_vit_b_independent": Published("Tables 2 and 3", 347.33, 233.62, 21.19),
    "coco_lvis/segmenter_vit_l_baseline": Published("Table 7", 334.4, 420.2, 23.71),
    "coco_lvis/segmenter_vit_l_joint": Published("Table 7", 348.31, 422.6, 24.60),
    "coco_lvis/query2label_resnet101": Published("Table 2", quality=26.54, ranked=16.30),
    "coco_lvis/query2label_tresnet_l": Published("Table 2", quality=31.01, ranked=19.88),
    "coco_lvis/query2label_swin_l": Published("Table 2", quality=34.93, ranked=21.19),
}
