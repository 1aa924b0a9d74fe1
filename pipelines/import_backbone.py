"""`kappaseg import-weights` for backbones alone: AugReg's arrays, and files of timm's models, as weight files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kappaseg_core.backbones.timm import build, classifiers, to_timm
from kappaseg_core.backbones.weight_files import converted
from kappaseg_core.checkpoint import write_tensors
from kappaseg_core.config import BackboneConfig, override
from kappaseg_core.config import build as configured
from kappaseg_core.errors import UserError
from kappaseg_core.files import no_empty_folders, writing
from kappaseg_core.weights.files import Which, read_arrays, read_weights
from kappaseg_core.weights.layout import State, sizes
from kappaseg_core.weights.renaming import Renamed, fitted, renamed, shape
from kappaseg_core.weights.vit import AUGREG, vit_heads, vit_settings
from pipelines.import_settings import lay
from pipelines.import_weights import refuse_existing

SUFFIX = ".safetensors"
CLASSIFIER = "the classifier of whole images, which a backbone does not use"


def import_augreg(source: Path, destination: Path) -> None:
    """A weight file for `--backbone.weights` from Google's AugReg checkpoint of a plain ViT. Raises UserError."""
    refuse_destination(destination)
    arrays = read_arrays(source)
    found = renamed(arrays, AUGREG)
    try:
        sizes(arrays, "embedding/kernel", 4)
        config = augreg_config(arrays, found)
    except UserError as error:
        raise UserError(f"{source} is no augreg checkpoint of a plain ViT: {error}") from None
    write(found, config, source, destination)


def augreg_config(arrays: State, found: Renamed) -> BackboneConfig:
    """The backbone of such a file, whose attention kernels have an axis of heads. Raises UserError."""
    values: dict[str, Any] = {}
    for name, value in vit_settings(found.tensors).items():
        lay(values, name, value)
    config = configured(BackboneConfig, values["backbone"])
    width, heads, _ = sizes(arrays, "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", 3)
    return config if heads == vit_heads(width) else replace(config, options={**config.options, "num_heads": heads})


def import_timm(
    source: Path, destination: Path, settings: Sequence[tuple[str, str]], which: Which | None = None
) -> None:
    """A checked weight file for `--backbone.weights` from any file that timm's model takes. Raises UserError."""
    refuse_destination(destination)
    config = backbone_named(settings)
    tensors = read_weights(source, which=which).tensors
    model: Any = build(config).model
    named = converted(tensors, to_timm(model, config.name), called=str(source), name=config.name)
    refuse_resized(tensors, named, source)
    heads = tuple(f"{module}." for module in classifiers(model))
    dropped = [name for name in named if name.startswith(heads) and name not in model.state_dict()]
    kept = {name: value for name, value in named.items() if name not in dropped}
    found = Renamed(kept, dict(zip(kept, kept, strict=True)), {CLASSIFIER: dropped} if dropped else {})
    write(found, config, source, destination)


def backbone_named(settings: Sequence[tuple[str, str]]) -> BackboneConfig:
    """The backbone that `--backbone.name` and `--backbone.options…` mean. Raises UserError where none is named."""
    values: dict[str, Any] = {}
    for name, text in settings:
        override(values, name, text)
    if other := values.keys() - {"backbone"}:
        raise UserError(f"--{sorted(other)[0]} is no setting of a backbone; format timm takes --backbone.… alone")
    if "name" not in values.get("backbone", {}):
        raise UserError("format timm needs the model that the file is of; add --backbone.name NAME")
    config = configured(BackboneConfig, values["backbone"], source="command line", path="backbone")
    if config.kind != "timm" or config.weights:
        raise UserError("format timm is for models of timm, with the numbers of SRC; leave out kind and weights")
    return config


def refuse_resized(before: Mapping[str, Tensor], after: Mapping[str, Tensor], source: Path) -> None:
    """Raise UserError where timm would resize a table to the published size: the file is kept as it is."""
    for name, value in after.items():
        old = before.get(name, value)
        if old.ndim == value.ndim and old.shape != value.shape:
            raise UserError(
                f"{name} of {source} is {shape(old)}, the model's {shape(value)}; name the size that the file was made "
                "for, for example --backbone.options.img_size 512"
            )


def write(found: Renamed, config: BackboneConfig, source: Path, destination: Path) -> None:
    """The weight file, and how it is used."""
    tensors = fitted(found, build(config).model.state_dict(), source=str(source))
    with no_empty_folders(destination.parent):
        with writing(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(destination, {name: value.contiguous() for name, value in tensors.items()})
    print(f"{destination}: {len(tensors)} tensors of {config.name}")
    for why, names in found.dropped.items():
        print(f"left out: {', '.join(names)}: {why}")
    options = f", options: {config.options}" if config.options else ""
    print(f'use it with --backbone "{{name: {config.name}, weights: {destination}{options}}}"')


def refuse_destination(destination: Path) -> None:
    if destination.suffix != SUFFIX:
        raise UserError(f"DST = {destination}, wanted a weight file; give a name that ends in {SUFFIX}")
    refuse_existing(destination)
