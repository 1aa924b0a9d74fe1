"""The command line of `kappaseg bench`."""

from __future__ import annotations

import argparse

from pipelines.bench.variants import BACKBONES, WAYS

#: vocabularies: of ADE20K, ADE20K-Full and COCO+LVIS, and larger ones
VOCABULARIES = (150, 847, 1284, 5000, 20_000)


def add_network(parser: argparse.ArgumentParser) -> None:
    """The flags of `bench network`."""
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", help="settings of run-stage2, or a run; default: Segmenter"
    )
    parser.add_argument("--backbone", metavar="NAME", help=f"{', '.join(BACKBONES)}, or timm's name (default: vit-t)")
    parser.add_argument(
        "--classes", type=int, nargs="+", metavar="K",
        help="labels (default: those of CONFIG's data; without one " + ", ".join(map(str, VOCABULARIES)) + ")",
    )  # fmt: skip
    parser.add_argument(
        "--kappa", type=int, metavar="N", help="labels kept (default: CONFIG's, which is 50 without one)"
    )
    parser.add_argument(
        "--size", type=int, metavar="S", help="side of the images (default: CONFIG's augment.crop, 512)"
    )
    parser.add_argument("--batch", type=int, metavar="B", help="images of a step (default: 2 in training, 1 in use)")
    parser.add_argument("--train", action="store_true", help="steps of training alone (default: training and use)")
    parser.add_argument("--infer", action="store_true", help="from images to label maps alone")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="default: fp32")
    parser.add_argument("--variants", nargs="+", choices=tuple(WAYS), metavar="WAY", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of every variant (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--limit", type=float, metavar="GIB", help="memory of all processes together (default: nearly all that is free)"
    )
    parser.add_argument(
        "--floor", action="store_true", help="compare with the machine's matrix rate and bandwidth, too"
    )
    parser.add_argument("--out", default="bench-network", metavar="DIR", help="for figures (default: bench-network)")
