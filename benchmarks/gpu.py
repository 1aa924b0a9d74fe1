"""Images per second of ViT-B and ViT-L on a GPU, in training and in use, against what the GPU can do at most.

    python benchmarks/gpu.py

Measured as by `kappaseg bench network --device cuda`: times between events of the GPU's stream, memory of torch's
allocator, processes in turns. The floor is the operations of the network at the rate of a large matrix product, or the
bytes that have to move at the rate of a large copy, whichever takes longer; both rates are measured in the same run.
"Ours" is measured with its kernel (stage2_segmentation/fused_kernel.py) and without it. The result is
benchmarks/results/gpu.json, which names the machine; a call measures what it does not have yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from kappaseg_core.errors import UserError
from pipelines.bench.comparisons import compare, known_in
from pipelines.bench.machine import check_device, free_gib
from pipelines.bench.variants import BACKBONES, Variant, known_ways, plain_config, variants

RESULTS = Path(__file__).parent / "results" / "gpu.json"
NETWORKS = (("ViT-B", 512), ("ViT-B", 640), ("ViT-L", 512), ("ViT-L", 640))
VOCABULARIES, KAPPA = (150, 1284, 20_000), 50
#: images of a step
TRAINING, USE = 8, 16


def comparison(backbone: str, size: int, device: str, *, train: bool) -> Iterator[Variant]:
    config = plain_config(BACKBONES[backbone.lower()], kind="sgd", lr=1e-3, weight_decay=0.0, clip=None)
    for precision in ("bf16", "fp32"):
        yield from variants(
            config, known_ways(None, device), VOCABULARIES, KAPPA, train=train, precision=precision,
            images=TRAINING if train else USE, size=size, device=device,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="comparisons with this in their name")
    parser.add_argument("--to", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        check_device(given.device)
    except UserError as error:
        parser.error(str(error))
    comparisons = {
        f"{'training' if train else 'inference'}, {backbone}, {size} × {size}": tuple(
            comparison(backbone, size, given.device, train=train)
        )
        for backbone, size in NETWORKS
        for train in (True, False)
    }
    known = known_in(given.to)
    wanted = [name for name in comparisons if given.only in name and name not in known]
    limit = 0.9 * free_gib(given.device)
    compare(comparisons, wanted, given.to, known, rounds=given.rounds, limit_gib=limit, floor=True)


if __name__ == "__main__":
    main()
