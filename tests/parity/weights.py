"""Stored weights of the published programs, through the functions that `kappaseg import-weights` uses."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from kappaseg_core.weights.files import WeightFile
from pipelines.import_weights import Imported, Wishes, network_from
from tests.weights.published import mmcv_vit


def imported(kind: str, state: dict[str, Tensor], folder: Path, classes: int, **settings: object) -> Imported:
    """The network of a published state dict. settings: dots of their names are written as `__`."""
    names = folder / "classes.txt"
    names.write_text("".join(f"class {number}\n" for number in range(classes)))
    given = tuple((name.replace("__", "."), str(value)) for name, value in settings.items())
    return network_from(kind, folder / "FILE", WeightFile(state), Wishes(classes=names, settings=given), out="")


def with_backbone(decoder: dict[str, Tensor], vit: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole file of RankSeg from its stored decoder and any ViT of timm."""
    backbone = {f"backbone.{name}": value for name, value in mmcv_vit(vit).items()}
    return {**backbone, **{f"decode_head.{name}": value for name, value in decoder.items()}}
