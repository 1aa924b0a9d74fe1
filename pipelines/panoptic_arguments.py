"""The words of `kappaseg panoptic`: what each action takes, before anything heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kappaseg_core.errors import UserError
from pipelines.arguments import data_at, split_settings

#: action → how it is written, and the flags that it takes
ACTIONS = {
    "write": ("kappaseg panoptic write DATA FOLDER --split SPLIT", {"split"}),
    "quality": ("kappaseg panoptic quality TRUTH PREDICTION", {"classes", "to"}),
    "draw": ("kappaseg panoptic draw SEGMENTS --images DIR --to DIR", {"images", "to", "only"}),
}


def add_panoptic(parser: argparse.ArgumentParser) -> None:
    """Its words, but for the settings of the data set."""
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument("what", metavar="DATA", help="write: a data set; else a panoptic JSON file, or its folder")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="write: new folder; quality: predicted segments")
    parser.add_argument("--split", help="write: which split (default: data.val)")
    parser.add_argument("--classes", action="store_true", help="quality: a line for every class")
    parser.add_argument("--images", metavar="DIR", help="draw: folder of the photographs")
    parser.add_argument("--to", metavar="PATH", help="quality: JSON file of all numbers; draw: folder of the pictures")
    parser.add_argument("--only", nargs="+", metavar="ID", default=[], help="draw: these images (default: all)")


def run_panoptic(arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Do one of the actions. Raises UserError for words that it does not take, or lacks."""
    settings = split_settings(list(rest))
    usage, own = ACTIONS[arguments.action]
    for flag in ("split", "classes", "images", "to", "only"):
        if getattr(arguments, flag) and flag not in own:
            raise UserError(f"--{flag} is not for {arguments.action}; write {usage}")
    if settings and arguments.action != "write":
        raise UserError(f"--{settings[0][0]} is not for {arguments.action}, which reads no data set; write {usage}")
    what, other, to = arguments.what, arguments.other, arguments.to
    complete = to and arguments.images and not other if arguments.action == "draw" else other
    if not complete:
        raise UserError(f"panoptic {arguments.action}: write {usage}")
    from pipelines.panoptic import draw_segments, show_quality, write_truth

    if arguments.action == "write":
        data = data_at(what, settings)
        write_truth(data, arguments.split or data.val, Path(other))
    elif arguments.action == "quality":
        show_quality(Path(what), Path(other), to=Path(to) if to else None, classes=arguments.classes)
    else:
        draw_segments(Path(what), Path(arguments.images), Path(to), arguments.only)
