"""Run directories: everything that one training run leaves behind, and enough to rebuild its network.

    run.yaml            resolved configuration, class names, the module that builds the network; where it learns objects
                        the names of those that have them, `things`
    state.safetensors   step, weights, averaged weights, optimiser: what an interrupted run continues from
    metrics.jsonl       one line per logged step and evaluation; holds nothing that differs between two equal runs
    log.txt             the same for people, with times
    weights.safetensors the finished network (averaged weights where the run keeps them)
    summary.json        last; its presence means that the run is complete

Every file but the two logs appears by rename, so a kill at any moment leaves the last whole one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kappaseg_core.config import to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.files import file_sha256, folders_to_make, remove_empty, write_atomic, write_text, writing
from kappaseg_core.placement import Placement
from kappaseg_core.structures import SceneSet

#: settings that do not change what a run computes on one device: a run may be continued with other values. Paths are
#: among them because what they lead to is compared by fingerprint (`inputs`).
FREE_SETTINGS = {
    "loop.loader_workers", "loop.loader_start", "loop.loader_prefetch", "loop.save_every", "out", "name", "data.root",
    "backbone.weights", "backbone.checkpointing", "source.cache", "source.url", "init",
}  # fmt: skip
FREE_KEYS = {f"config.{name}" for name in FREE_SETTINGS}
#: what `inputs` of a run has that was not trained here: the format of the file that it is from
IMPORTED = "imported"


@dataclass(frozen=True)
class Summary:
    """What a finished run has to say for itself."""

    run: str
    steps: int
    seconds: float
    """training time over all starts of the run, feature caching included"""
    peak_memory_mib: int
    metrics: dict[str, Any]
    best_step: int
    parameters: int
    trained_parameters: int


@dataclass(frozen=True)
class State:
    """A moment of a run: what `fit` needs to go on as if nothing had happened."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)


class RunDirectory:
    """One run's files. `open_run` makes or finds it.

    made: the folders that this start of the program made for it, innermost first.
    """

    def __init__(self, path: Path, made: tuple[Path, ...] = ()) -> None:
        self.path, self.made = path, made

    @property
    def is_complete(self) -> bool:
        return (self.path / "summary.json").exists()

    @property
    def has_progress(self) -> bool:
        """Whether there is anything that another configuration could spoil."""
        return self.is_complete or (self.path / "state.safetensors").exists()

    def summary(self) -> Summary:
        return Summary(**json.loads((self.path / "summary.json").read_text("utf-8")))

    def save_state(self, state: State) -> None:
        meta = {"step": str(state.step), "numbers": json.dumps(state.numbers)}
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
        write_tensors(self.path / "state.safetensors", tensors, meta)

    def load_state(self) -> State | None:
        """The last saved moment; None for a run that has not saved one."""
        path = self.path / "state.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata()
            return State(int(meta["step"]), load_file(path), json.loads(meta["numbers"]))
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); delete {self.path} and start the run again") from None

    def keep_metrics_until(self, step: int) -> None:
        """Forget what was logged after the saved moment; those steps are about to be done again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        whole = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line; must not hold times or anything else that two equal runs would differ in."""
        self.append("metrics.jsonl", json.dumps(values))

    def metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def log(self, line: str) -> None:
        self.append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")

    def append(self, name: str, line: str) -> None:
        with writing(self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def clean(self) -> None:
        """Remove what only an interrupted run needs, and what kills while writing have left."""
        for name in ("state.safetensors", "best.safetensors"):
            (self.path / name).unlink(missing_ok=True)
        for path in self.path.glob(".tmp??????"):  # safetensors writes under such a name
            path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the files of a run that has learnt nothing, and the folders made for it that are empty then."""
        if self.path.is_dir():
            self.clean()
            for name in ("run.yaml", "metrics.jsonl", "log.txt"):
                (self.path / name).unlink(missing_ok=True)
        remove_empty(self.made)

    def finish(self, model: nn.Module, summary: Summary) -> None:
        save_weights(model, self.path / "weights.safetensors")
        write_text(self.path / "summary.json", json.dumps(asdict(summary), indent=1) + "\n")


def open_run(
    path: Path, *, model: str, config: Any, class_names: tuple[str, ...], inputs: Mapping[str, str],
    things: Sequence[bool] | None = None,
) -> RunDirectory:  # fmt: skip
    """The run directory at `path`: new, or one of the same configuration that was interrupted or is complete.

    model: module whose `build_model(config, class_names)` rebuilds the network.   inputs: fingerprints of what the run
    reads (data set, cache), checked like the configuration.   things: which classes have objects that it learns to tell
    apart; None = it learns none. Raises UserError where `path` holds another run or things
    that are not ours.
    """
    record = {"model": model, "config": to_plain(config), "inputs": dict(inputs), "class_names": list(class_names)}
    if things is not None:
        record["things"] = [name for name, thing in zip(class_names, things, strict=True) if thing]
    file = path / "run.yaml"
    if os.path.exists(file):  # which, unlike Path.exists, leaves a forbidden folder to the attempt to write below
        run = RunDirectory(path)
        if run.has_progress:
            refuse_other(path, read_record(path), record)
        else:  # stopped before anything was learnt, perhaps by the mistake that these other settings correct
            write_text(file, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
        return run
    if path.is_dir() and any(not p.name.startswith(".") for p in path.iterdir()):
        raise UserError(f"{path} holds files but no run.yaml, so it is not a run directory; choose another --out")
    run = RunDirectory(path, made=folders_to_make(path))
    with nothing_left_of_a_mistake(run):
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        write_text(file, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
    return run


def start_run(
    folder: Path, *, model: str, config: Any, scenes: Sequence[SceneSet], here: Placement,
    things: Sequence[bool] | None = None, **inputs: str,
) -> RunDirectory:  # fmt: skip
    """`open_run` for a training run: made by the first worker, tied to its images and the weight file."""
    prints = {scene_set.split: scene_set.fingerprint() for scene_set in scenes}
    if config.backbone.weights:
        prints["weights"] = file_sha256(Path(config.backbone.weights))
    if config.init:
        prints["init"] = run_fingerprint(config.init)
    run = RunDirectory(folder)
    if here.is_first:
        names = scenes[0].class_names
        run = open_run(
            folder, model=model, config=config, class_names=names, inputs={**prints, **inputs}, things=things
        )
        if run.is_complete:
            run.clean()  # perhaps killed between its last two files
    here.wait()
    return run


@contextmanager
def nothing_left_of_a_mistake(run: RunDirectory) -> Iterator[None]:
    """Remove a run that a UserError ends before anything was learnt, with the folders that were made for it."""
    try:
        yield
    except UserError:
        if run.made and not run.has_progress:
            run.discard()
        raise


def refuse_other(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise UserError naming the first settings that differ."""
    old, new = flatten(there), flatten(here)
    differing = [key for key in {**old, **new} if key not in FREE_KEYS and not same_setting(key, old, new)]
    if not differing:
        return
    shown = "; ".join(
        f"{key.removeprefix('config.')} is {short(old.get(key))} there, {short(new.get(key))} here"
        for key in differing[:3]
    )
    more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
    raise UserError(
        f"{path} holds a run of another configuration: {shown}{more}; choose another --out or delete that directory"
    )


def same_setting(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two records agree. One that lacks a setting is from before there was one: as if null, false or 0.

    Options stand in a record as they were given, so one that is not there has its default, which may be another.
    """
    if (key in old and key in new) or ".options." in key:
        return bool(old.get(key) == new.get(key))
    return old.get(key, new.get(key)) in (None, 0)


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists are leaves."""
    if not isinstance(values, Mapping) or not values:
        return {path: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{path}.{key}" if path else str(key)))
    return flat


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def read_record(path: Path) -> dict[str, Any]:
    """What run.yaml says. Raises UserError where there is no run."""
    file = path / "run.yaml"
    if not file.exists():
        raise UserError(
            f"{path} is not a run directory (it has no run.yaml); give the folder that a training run wrote"
        )
    try:
        record = dict(yaml.safe_load(file.read_text("utf-8")))
        if missing := {"model", "config", "inputs", "class_names"} - record.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({' '.join(str(error).split())}); run the training again") from None
    return record


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """A finished run's network, in evaluation mode, and its record (config, class_names, inputs).

    Raises UserError where the run is unfinished, or its weights do not fit its configuration.
    """
    path = Path(path)
    record = read_record(path)
    if not RunDirectory(path).is_complete:
        raise UserError(f"run {path} is not complete; start the same training command again to finish it")
    builder = importlib.import_module(record["model"])
    model: nn.Module = builder.build_model(record["config"], tuple(record["class_names"]))
    load_weights(model, path / "weights.safetensors")
    return model.to(device).eval(), record


def run_fingerprint(path: str | Path) -> str:
    """sha256 (hex) of a finished run's weights and record, wherever it lies: what its products are checked against."""
    record = {key: value for key, value in flatten(read_record(Path(path))).items() if key not in FREE_KEYS}
    text = json.dumps(record, sort_keys=True) + file_sha256(Path(path) / "weights.safetensors")
    return hashlib.sha256(text.encode()).hexdigest()


def save_weights(model: nn.Module, path: Path) -> None:
    """A network's parameters and buffers as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(path, tensors)


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, str] | None = None) -> None:
    """A safetensors file, there whole or not at all. Raises UserError where it cannot be written."""

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, meta)
        except SafetensorError as error:  # it tells a full disk in words only
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None

    write_atomic(path, write)


def start_from(model: nn.Module, config: Any, class_names: Sequence[str]) -> None:
    """Fill a new network from the finished run `config.init`, where one is named.

    Raises UserError where the run is not complete, has other classes, or a network of other sizes.
    """
    if config.init is None:
        return
    run = Path(config.init)
    if config.backbone.weights is not None:
        raise UserError(f"init {run} brings the weights of the backbone too; leave out --backbone.weights")
    there = read_record(run)["class_names"]
    if not RunDirectory(run).is_complete:
        raise UserError(f"init {run} is not complete; start its training command again to finish it")
    if list(there) != list(class_names):
        raise UserError(
            f"init {run} has other classes ({len(there)} there, {len(class_names)} here); a checkpoint is given others "
            "by kappaseg import-weights --transfer-to"
        )
    load_weights(model, run / "weights.safetensors", advice="give training the settings of that run")


def load_weights(model: nn.Module, path: Path, *, advice: str = "run the training again") -> None:
    """Fill a network from a safetensors file made by `save_weights`. Raises UserError where they do not fit."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the training again") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); run the training again") from None
    own = model.state_dict()
    wrong = [n for n in own if n not in tensors or tensors[n].shape != own[n].shape] + [
        n for n in tensors if n not in own
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit this network: {len(wrong)} of {len(own)} tensors differ, first {wrong[0]}; {advice}"
        )
    model.load_state_dict(tensors)
