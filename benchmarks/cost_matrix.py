"""Time and memory against K for several backbones, in training and in use, in fp32 and bf16.

    OMP_NUM_THREADS=2 python benchmarks/cost_matrix.py

About 25 minutes of two cores with nothing else on them, and 20 GiB. Measured as by `kappaseg bench network`; what does
not fit into the memory is estimated. A call measures what benchmarks/results/cost_matrix.json does not have yet, so
that a stopped one goes on with the next comparison; --again measures anew. Larger networks are measured in fewer ways
and for fewer K, ViT-L and Swin-L in use alone: a step of training ViT-L at 640 pixels takes minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.bench.program import measure_missing
from pipelines.bench.variants import BACKBONES, Precision, Variant, plain_config, variants

RESULTS = Path(__file__).parent / "results" / "cost_matrix.json"
KAPPA = 100
ALL, SMALL, FEW, ENDS = (150, 847, 1284, 5000, 20_000), (150, 847, 1284), (150, 1284, 20_000), (150, 20_000)

#: way → the K that it is measured for
Ways = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Comparison:
    """One network in training or in use. images: of a step."""

    backbone: str
    train: bool
    fp32: Ways
    bf16: Ways = field(default_factory=dict)
    size: int = 512
    images: int = 1

    @property
    def name(self) -> str:
        return f"{'training' if self.train else 'inference'}, {self.backbone}, {self.size} × {self.size}"

    def variants(self) -> Iterator[Variant]:
        config = plain_config(BACKBONES[self.backbone.lower()], kind="sgd", lr=1e-3, weight_decay=0.0, clip=None)
        for precision, ways in self.ways():
            for way, classes in ways.items():
                yield from variants(
                    config, [way], classes, KAPPA, train=self.train, precision=precision, images=self.images,
                    size=self.size,
                )  # fmt: skip

    def ways(self) -> tuple[tuple[Precision, Ways], ...]:
        return (("fp32", self.fp32), ("bf16", self.bf16))


MATRIX = (
    Comparison(
        "ViT-T", True, {"published": ALL, "all": ALL[:4], "plain": ALL, "ours": ALL, "backbone": ENDS},
        {"all": SMALL, "ours": ALL, "backbone": ENDS}, images=2,
    ),
    Comparison(
        "ViT-T", False,
        {"published": ALL, "scatter": ALL, "all": ALL, "plain": ALL, "ours": ALL, "backbone": ENDS},
        {"all": ALL, "ours": ALL, "backbone": ENDS},
    ),
    Comparison("ViT-S", True, {"published": ALL, "all": SMALL, "ours": ALL, "backbone": ENDS}, {"ours": ENDS}),
    Comparison("ViT-S", False, {"published": ALL, "all": ALL[:4], "ours": ALL, "backbone": ENDS}, {"ours": ENDS}),
    Comparison("ViT-B", True, {"published": FEW, "ours": FEW, "backbone": ENDS}, {"ours": ENDS}),
    Comparison("ViT-B", False, {"published": ALL, "ours": FEW, "backbone": ENDS}, {"ours": FEW}),
    Comparison("Swin-T", True, {"published": FEW, "ours": FEW, "backbone": ENDS}, {"ours": ENDS}),
    Comparison("Swin-T", False, {"published": FEW, "ours": FEW, "backbone": ENDS}, {"ours": ENDS}),
    Comparison("Swin-L", False, {"published": FEW, "ours": ENDS, "backbone": ENDS}, {"ours": ENDS}, size=640),
    Comparison("ViT-L", False, {"published": FEW, "ours": ENDS, "backbone": ENDS}, {"ours": ENDS}, size=640),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    measure_missing(__doc__, {one.name: tuple(one.variants()) for one in MATRIX}, RESULTS, arguments, rounds=2)


if __name__ == "__main__":
    main()
