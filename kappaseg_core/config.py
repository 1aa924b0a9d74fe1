"""YAML and command-line values → frozen dataclasses, with one error that names the dotted path.

Nothing here imports torch: a mistyped key is reported before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from kappaseg_core.errors import UserError

T = TypeVar("T")


def refuse_below(least: float, config: object, *names: str) -> None:
    """Raise ValueError for the first of these settings that is less; None is no number and passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} = {value}, wanted at least {least:g}")


def refuse_no_share(config: object, *names: str) -> None:
    """Raise ValueError for the first of these settings that is no share of a whole; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} = {value}, wanted a share from 0 to 1")


@dataclass(frozen=True)
class DataConfig:
    """Where the scenes come from."""

    kind: str = "folder"
    """module of kappaseg_core.scenes that reads them: folder, packed, synthetic, …"""
    root: str = ""
    """folder of the data set, or the packed file"""
    train: str = "train"
    """name of the training split; train@not0of5 = all of it but the first fifth (drawn by image id)"""
    val: str = "val"
    """name of the validation split; train@0of5 = the first fifth of the training split"""
    options: dict[str, Any] = field(default_factory=dict)
    """settings of this kind of scene set (its Options dataclass), for example ignore and id_map of `folder`"""


@dataclass(frozen=True)
class BackboneConfig:
    """The network that turns an image into a feature map."""

    kind: str = "timm"
    """module of kappaseg_core.backbones that builds it"""
    name: str = "vit_base_patch16_384"
    """model name in that module's zoo"""
    weights: str | None = None
    """weight file (safetensors or state dict); null = random numbers"""
    frozen: bool | None = None
    """keep the weights as they are; null = frozen exactly when a weight file is given"""
    level: int = 0
    """stride of the feature map to use (8, 16, 32); 0 = the network's final map"""
    mean: tuple[float, float, float] | None = None
    """RGB mean in [0, 1] of the input normalisation; null = that of the model's published weights"""
    std: tuple[float, float, float] | None = None
    """RGB standard deviation in [0, 1]; null = as above"""
    checkpointing: bool = False
    """keep only what each block of the network begins with, and compute the rest again in the backward pass: the same
    loss and gradients for less memory and about a third more time. Not for networks with batch normalisation"""
    options: dict[str, Any] = field(default_factory=dict)
    """further keyword arguments of the model's constructor, for example pad_type or img_size"""

    def __post_init__(self) -> None:
        if self.checkpointing and self.is_frozen:
            raise ValueError("checkpointing = true, but a frozen backbone keeps nothing to save on; leave it out")

    @property
    def is_frozen(self) -> bool:
        return self.weights is not None if self.frozen is None else self.frozen


@dataclass(frozen=True)
class LabelLossConfig:
    """Asymmetric loss; gamma_neg = gamma_pos = clip = 0 is binary cross-entropy."""

    gamma_neg: float = 2.0
    gamma_pos: float = 0.0
    clip: float = 0.0
    focus_gradient: bool = False
    """let the gradient flow through the focusing weight (as in RankSeg's release; Query2Label stops it)"""
    reduction: Literal["batch_mean", "mean"] = "batch_mean"
    """batch_mean: sum over labels, mean over images (the rate does not depend on K); mean: over both"""
    negatives: int | None = None
    """train on the labels that the batch holds and so many of the others, drawn anew at each step and weighted so that
    the expected loss is that over all labels; null = on all labels (as published)"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "negatives")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule; `steps` is the clock of everything."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-4
    """peak learning rate of the head (and of the backbone times backbone_lr)"""
    backbone_lr: float = 1.0
    """factor on the learning rate of backbone parameters"""
    weight_decay: float = 1e-2
    decay_norms: bool = True
    """also decay norms, biases and 1-D parameters (as Query2Label does)"""
    momentum: float = 0.9
    """SGD only"""
    schedule: Literal["one_cycle", "poly", "cosine", "constant"] = "one_cycle"
    warmup: float = 0.2
    """share of the steps that the rise to lr takes (one_cycle, cosine)"""
    poly_power: float = 0.9
    min_lr: float = 0.0
    """floor of poly and cosine"""
    clip: float | None = 1.0
    """largest gradient norm; null = no clipping"""
    selected_rows: bool = False
    """of tables with a row per label, change the rows alone that a step gives a gradient, and leave weights and state
    of the others (ours): time and memory where K is large. In one process; not where all labels are selected or read"""


@dataclass(frozen=True)
class LoopConfig:
    """How long, how large, how often."""

    steps: int = 1000
    batch_size: int = 16
    """images per step over all workers and accumulated micro-batches"""
    accumulate: int = 1
    """micro-batches per step"""
    eval_every: int = 0
    """steps between evaluations; 0 = at the end only"""
    save_every: int = 200
    """steps between checkpoints"""
    log_every: int = 10
    ema: float | None = None
    """decay of the averaged weights, warmed up; null = no averaging"""
    patience: int | None = None
    """stop once more than this many evaluations in a row brought no better value, and keep the best; null = never"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    """train with torch.compile (the same up to rounding; the first step takes minutes). A part that the compiler fails
    on, or all where there is no compiler, is computed without it, and a line says so. A backbone whose last blocks
    others run (host encoder_only, class_tokens backbone) is compiled block by block. Never compiled is stage one's head
    where it learns from some labels alone or has a shortlist"""
    device: str = "auto"
    """auto = the GPU where there is one, else the CPU"""
    loader_workers: int = 0
    """processes that read and augment; 0 = the training process does. `kappaseg bench data` says how many it takes"""
    loader_start: Literal["fork", "forkserver", "spawn"] | None = None
    """how these are started; null = the platform's way. Forked ones start at once; the others share nothing with a
    process that has threads or a GPU"""
    loader_prefetch: int = 2
    """batches that each of them has ready"""
    seed: int = 0
    cached_views: int = 0
    """with a frozen backbone: compute its features for this many augmented views of each image once and train on them;
    0 = augment and compute anew at every step (as a backbone that is trained always does)"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "steps", "batch_size", "accumulate", "save_every", "log_every", "loader_prefetch")
        refuse_below(0, self, "loader_workers")
        if self.cached_views < 0:
            raise ValueError(f"cached_views = {self.cached_views}, wanted 0 (no cache) or more")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size = {self.batch_size} is no multiple of accumulate = {self.accumulate}")


def load_config(kind: type[T], path: str | Path, overrides: Sequence[tuple[str, str]] = (), **defaults: Any) -> T:
    """The configuration in a YAML file, or that of a run directory, with `--dotted.key value` overrides laid on top.

    Raises UserError with the dotted path of the first unknown key, wrong type or bad value.
    """
    values = {**defaults, **read_settings(Path(path))}
    for dotted, text in overrides:
        override(values, dotted, text)
    return build(kind, values, source=str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """The nested values in a YAML file, or under `config` in a run directory's run.yaml. Raises UserError."""
    of_run = (path / "run.yaml").exists()
    path = path / "run.yaml" if of_run else path
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"configuration {path} does not exist; see the files under configs/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"configuration {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"configuration {path}: wanted `key: value` lines, found {type(values).__name__}")
    return dict(values["config"]) if of_run and isinstance(values.get("config"), dict) else values


def override(values: dict[str, Any], dotted: str, text: str) -> None:
    """Lay one command-line value (parsed as YAML) into nested dictionaries, in place."""
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        values = inner
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    values[last] = text if type(value) is int and str(value) != text else value  # 007 is a name, not a number


def build(kind: type[T], values: Any, *, source: str = "configuration", path: str = "") -> T:
    """A dataclass from nested plain values, checked strictly. Raises UserError with the dotted path."""
    where = f"{source}: {path}" if path else source
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: wanted a group of settings, found {values!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(fields) or 'none'}"
            raise UserError(f"{source}: unknown setting {inner}; {hint}")
        arguments[key] = convert(hints[key], value, source=source, path=inner)
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError as error:
        raise UserError(f"{source}: {path + '.' if path else ''}{error}") from None


def convert(hint: Any, value: Any, *, source: str, path: str) -> Any:
    """`value` as the type `hint`; ints count as floats and as text, lists become tuples. Raises UserError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, source=source, path=path)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        others = [i for i in inner if i is not type(None)]
        for option in others:
            try:
                return convert(option, value, source=source, path=path)
            except UserError:
                if len(others) == 1:
                    raise
    elif origin is Literal:
        if value in inner:
            return value
        raise UserError(f"{source}: {path} = {value!r}, wanted one of {', '.join(map(repr, inner))}")
    elif origin is tuple and isinstance(value, list | tuple):
        items = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(items) == len(value):
            return tuple(
                convert(item, v, source=source, path=f"{path}[{i}]")
                for i, (item, v) in enumerate(zip(items, value, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        return {
            convert(inner[0], k, source=source, path=path): convert(inner[1], v, source=source, path=f"{path}.{k}")
            for k, v in value.items()
        }
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            pass
    elif hint is str and type(value) is int:  # a split called 2017, a network called 96
        return str(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise UserError(f"{source}: {path} = {value!r}, wanted {readable(hint)}")


def readable(hint: Any) -> str:
    """A type as a user would say it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if i is type(None) else readable(i) for i in inner)
    if origin is tuple:
        return "a list of " + (
            readable(inner[0]) + "s" if inner[-1] is Ellipsis else f"{len(inner)} {readable(inner[0])}s"
        )
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a group of settings"}
    return names.get(origin or hint, str(hint))


def to_plain(config: Any) -> Any:
    """Dataclasses as nested dictionaries and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {k: to_plain(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(v) for v in config]
    return config


def fingerprint(value: Any) -> str:
    """sha256 (hex) of a configuration or any nested plain values, independent of key order."""
    text = json.dumps(to_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
