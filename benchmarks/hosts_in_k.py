"""Time and memory of every host with all K labels, and with the κ = 100 kept ones, in training and in use.

    OMP_NUM_THREADS=2 python benchmarks/hosts_in_k.py

Each host stands on a backbone that two cores can train, with the widths of its published head, and is measured as by
`kappaseg bench network`: random weights, images of 512 × 512, fp32, one image a step, variants in processes of their
own that are asked in turns. With all labels it is the host's plain form (without a rank scale, where it can do
without). With kept labels nothing but tables has K rows, so the smallest and the largest K are enough; the backbone
alone is measured once. A call measures what benchmarks/results/hosts_in_k.json does not have yet, so that a stopped one
goes on with the next comparison; --again measures anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.bench.program import measure_missing
from pipelines.bench.variants import Variant, plain_config, variant
from stage2_segmentation.config import HostConfig, Stage2Config

RESULTS = Path(__file__).parent / "results" / "hosts_in_k.json"
KAPPA = 100
ALL, ENDS = (171, 847, 1284, 5000), (171, 5000)


@dataclass(frozen=True)
class Measured:
    """A host on its backbone. plain: options that make it the network with all labels."""

    title: str
    kind: str
    backbone: str
    options: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    backbone_options: dict[str, Any] = field(default_factory=dict)

    def config(self, more: dict[str, Any]) -> Stage2Config:
        base = plain_config(self.backbone, kind="sgd", lr=1e-3, weight_decay=0.0, clip=None)
        return replace(
            base,
            backbone=replace(base.backbone, options=self.backbone_options),
            host=HostConfig(self.kind, {**self.options, **more}),
        )

    def variants(self, *, train: bool) -> Iterator[Variant]:
        """All labels for every K, kept ones for two, the backbone for one."""
        plain, kept = self.config(self.plain), self.config({})
        for way, config, counts in (("all", plain, ALL), ("ours", kept, ENDS), ("backbone", kept, ENDS[-1:])):
            for classes in counts:
                yield variant(way, config, classes, KAPPA, train=train)


VIT, SWIN = "vit_small_patch16_384", "swin_tiny_patch4_window7_224"
PLAIN = {"rank_scale": "none"}
HOSTS = (
    Measured("Segmenter, ViT-S/16", "segmenter", VIT, {"attention_dropout": 0.0}),
    Measured("encoder-only, ViT-S/16", "encoder_only", VIT),
    Measured(
        "DeepLabV3, ResNet-50 at stride 8", "deeplabv3", "resnet50c", plain=PLAIN, backbone_options={"output_stride": 8}
    ),
    Measured("UPerNet, Swin-T", "upernet", SWIN, plain=PLAIN),
    Measured("MaskFormer, Swin-T", "maskformer", SWIN, plain=PLAIN),
    Measured("Mask2Former, Swin-T", "mask2former", SWIN, plain=PLAIN),
)


def comparisons() -> dict[str, tuple[Variant, ...]]:
    """Those in use first, which take a quarter of the time."""
    return {
        f"{mode}, {host.title}": tuple(host.variants(train=mode == "training"))
        for mode in ("inference", "training")
        for host in HOSTS
    }


def main(arguments: Sequence[str] | None = None) -> None:
    measure_missing(__doc__, comparisons(), RESULTS, arguments, rounds=3, counted=True)


if __name__ == "__main__":
    main()
