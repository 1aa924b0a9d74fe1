"""The command line of `kappaseg plan`."""

from __future__ import annotations

import argparse


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The flags of `plan`."""
    parser.add_argument("root", metavar="DATA", nargs="?", help="folder of the data set, or a packed file")
    parser.add_argument("--out", metavar="DIR", help="where the files go (default: plan)")
    parser.add_argument("--check", metavar="FILE", help="estimate an edited file instead, for example plan/stage2.yaml")
    parser.add_argument("--memory", type=float, metavar="GIB", help="to plan for (default: what is free)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--backbone", metavar="NAME", help="model of timm, for all parts (default: that of the recipe)")
    parser.add_argument("--weights", metavar="FILE", help="weight file of the backbone")
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="side of the images trained on, for all parts")
    parser.add_argument("--images", type=int, metavar="N", help="training masks to read, a sample (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier plan in DIR")
    parser.add_argument("--measure", action="store_true", help="take steps for the hours, instead of counting products")
