"""The encoder-only host against Segmenter and against EoMT of the transformers library, on one and the same ViT.

    OMP_NUM_THREADS=2 python benchmarks/encoder_only.py

DINOv2's ViT-S and ViT-B with registers and patches of 16 pixels, random weights, images of 512 × 512, fp32, one image a
step; K = 171 and 1,284 labels, κ = 100. Ours are the whole networks of the joint scheme, with the label branches that
rank; EoMT with 100 and 200 queries needs no ranking. Inference goes from pixels to the label map at full resolution, by
EoMT's own rule there. A step of training is each network's published loss and SGD. Variants run in processes of their
own, in turns. As the library leaves products and attention to torch, EoMT is also measured with those of this project
("computed as ours"). pipelines/bench/eomt.py says how it is built. Measures what
benchmarks/results/encoder_only.json does not have yet; --again measures anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.bench.program import measure_missing
from pipelines.bench.variants import Variant, plain_config
from stage2_segmentation.config import HostConfig, LabelsConfig, Stage2Config

RESULTS = Path(__file__).parent / "results" / "encoder_only.json"
KAPPA, SIZE, PATCH = 100, 512, 16
CLASSES = (171, 1284)
BACKBONES = {"ViT-S/16": "vit_small_patch14_reg4_dinov2", "ViT-B/16": "vit_base_patch14_reg4_dinov2"}
ENCODER = LabelsConfig("encoder")
POOLED = LabelsConfig("pooled", {"pooling": "log_sum_exp"})
ONLY = "encoder-only"


def config(backbone: str, kind: str, options: dict[str, Any], labels: LabelsConfig) -> Stage2Config:
    base = plain_config(backbone, kind="sgd", lr=1e-3, weight_decay=0.0, clip=None)
    vit = replace(base.backbone, options={"patch_size": PATCH, "img_size": SIZE})
    return replace(base, backbone=vit, host=HostConfig(kind, options), labels=labels)


def variants(backbone: str, classes: int, *, train: bool) -> Iterator[Variant]:
    """The backbone, our two hosts, and EoMT."""

    def ours(name: str, kind: str, options: dict[str, Any], labels: LabelsConfig) -> Variant:
        return Variant(name, config(backbone, kind, options, labels), classes, KAPPA, train, size=SIZE)

    segmenter = ours("Segmenter", "segmenter", {"attention_dropout": 0.0}, ENCODER)
    plain = replace(segmenter.config, labels=LabelsConfig())
    yield replace(segmenter, name="backbone alone", way="backbone", config=plain)
    yield segmenter
    yield ours(ONLY, "encoder_only", {}, POOLED)
    yield ours(f"{ONLY}, masks as wide as the backbone", "encoder_only", {"width": None}, POOLED)
    if train:
        yield ours(f"{ONLY}, mask attention annealed", "encoder_only", {"mask_attention": "annealed"}, POOLED)
    for queries, products in ((100, "torch"), (200, "torch"), (100, "ours"), (200, "ours")):
        built = config(backbone, "eomt", {"queries": queries, "products": products}, LabelsConfig())
        name = f"EoMT, {queries} queries" + (", computed as ours" if products == "ours" else "")
        yield Variant(name, built, classes, None, train, "eomt", size=SIZE)


def comparisons() -> dict[str, tuple[Variant, ...]]:
    return {
        f"{mode}, {title}, K = {classes:,}": tuple(variants(backbone, classes, train=mode == "training"))
        for mode, counts in (("inference", CLASSES), ("training", CLASSES[:1]))
        for title, backbone in BACKBONES.items()
        for classes in counts
    }


def main(arguments: Sequence[str] | None = None) -> None:
    measure_missing(__doc__, comparisons(), RESULTS, arguments, rounds=3, counted=True)


if __name__ == "__main__":
    main()
