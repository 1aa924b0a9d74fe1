"""Published weights, stored or made by tests, through the functions that `kappaseg import-weights` uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kappaseg_core.weights.files import WeightFile
from pipelines.import_weights import Imported, Wishes, network_from
from tests.weights.published import mmcv_vit


def imported(
    kind: str,
    state: Mapping[str, Tensor],
    folder: Path,
    classes: int,
    settings: Mapping[str, Any] | None = None,
    **wishes: Any,
) -> Imported:
    """The network of a state dict, its classes called c0, c1, …   folder: where a file with these names may lie."""
    names = folder / "classes.txt"
    names.write_text("".join(f"c{number}\n" for number in range(classes)))
    given = tuple((name, str(value)) for name, value in (settings or {}).items())
    wanted = Wishes(classes=names, settings=given, **wishes)
    return network_from(kind, Path("FILE"), WeightFile(dict(state)), wanted, out="out")


def with_backbone(decoder: Mapping[str, Tensor], vit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole file of RankSeg from its stored decoder and any ViT of timm."""
    backbone = {f"backbone.{name}": value for name, value in mmcv_vit(dict(vit)).items()}
    return {**backbone, **{f"decode_head.{name}": value for name, value in decoder.items()}}
