"""The command line of `kappaseg import-weights`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kappaseg_core.errors import UserError
from pipelines.arguments import split_settings

NETWORKS, BACKBONES = ("segmenter", "rankseg", "query2label", "hf"), ("augreg", "timm")
DESCRIPTION = """A published checkpoint as a run directory that evaluate, predict, rank and serve take (segmenter,
rankseg, query2label, and hf: a folder of transformers), or as a weight file for --backbone.weights (augreg, timm).
Every tensor of the file is used, or left out for a stated reason; a file with missing, unknown or misshapen tensors is
refused. Settings are those of run-stage2, for query2label those of run-stage1, over those of --config. See
docs/weights.md."""


def add_import(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument("format", metavar="FORMAT", choices=NETWORKS + BACKBONES, help=", ".join(NETWORKS + BACKBONES))
    parser.add_argument(
        "source", metavar="SRC", type=Path,
        help="the file: .safetensors, what torch.save wrote, .npz; for hf the folder with config.json",
    )  # fmt: skip
    parser.add_argument(
        "destination", metavar="DST", type=Path,
        help="run directory (OUT/stage1, OUT/stage2-NAME), or FILE.safetensors for augreg and timm",
    )  # fmt: skip
    parser.add_argument(
        "--classes", metavar="FILE", type=Path,
        help="its class names, one a line in order of ids (hf: where config.json has none)",
    )  # fmt: skip
    parser.add_argument("--config", metavar="RECIPE", type=Path, help="settings that the file does not tell, as YAML")
    parser.add_argument("--heads", metavar="N", help="attention heads of Query2Label, which no shape tells")
    parser.add_argument("--weights", choices=("raw", "ema"), help="which, where a file has both (ema = averaged)")
    parser.add_argument(
        "--transfer-to", metavar="FILE", type=Path, help="other class names: rows go by name, the rest starts anew"
    )


def run_import(arguments: argparse.Namespace, rest: list[str]) -> None:
    settings = split_settings(rest)
    if arguments.format in BACKBONES:
        import_backbone(arguments, settings)
    else:
        import_whole(arguments, settings)


def import_backbone(arguments: argparse.Namespace, settings: list[tuple[str, str]]) -> None:
    given = [name for name in ("classes", "config", "heads", "transfer_to") if getattr(arguments, name) is not None]
    if arguments.format == "augreg":
        given += ["weights"] if arguments.weights else [name for name, _ in settings]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} has no meaning for format {arguments.format}; leave it out")
    from pipelines.import_backbone import import_augreg, import_timm

    with listed():
        if arguments.format == "augreg":
            import_augreg(arguments.source, arguments.destination)
        else:
            import_timm(arguments.source, arguments.destination, settings, arguments.weights)


def import_whole(arguments: argparse.Namespace, settings: list[tuple[str, str]]) -> None:
    if arguments.heads is not None and arguments.format != "query2label":
        raise UserError(
            "--heads is for query2label; the others have heads of 64 channels, or as many as --host.options.heads and "
            "--backbone.options.num_heads say"
        )
    if arguments.heads is not None:
        settings = [*settings, ("head.heads", arguments.heads)]
    from pipelines.import_weights import Wishes, import_network

    wishes = Wishes(arguments.classes, arguments.config, arguments.weights, arguments.transfer_to, tuple(settings))
    with listed():
        import_network(arguments.format, arguments.source, arguments.destination, wishes)


@contextmanager
def listed() -> Iterator[None]:
    """Print every tensor that does not fit before the one line of the error."""
    from kappaseg_core.weights.renaming import Misfit

    try:
        yield
    except Misfit as misfit:
        print("\n".join(misfit.listing))
        raise
