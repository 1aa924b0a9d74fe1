"""`kappaseg import-weights` for whole networks: published checkpoints as run directories."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kappaseg_core.checkpoint import IMPORTED
from kappaseg_core.config import to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.files import file_sha256
from kappaseg_core.scenes.folder import read_class_names
from kappaseg_core.seeding import seed_of
from kappaseg_core.weights.files import WeightFile, Which, read_weights
from kappaseg_core.weights.imported import write_run
from kappaseg_core.weights.layout import Layout, State
from kappaseg_core.weights.renaming import Renamed, begun, fitted, renamed, spared
from kappaseg_core.weights.snapshot import CONFIG, Snapshot, read_snapshot
from kappaseg_core.weights.transfer import Transfer, moved, transfer
from label_cache import class_difference
from pipelines.import_settings import looked_up, settings_for
from pipelines.tables import show_table
from stage1_multilabel.config import Stage1Config
from stage1_multilabel.weights import query2label
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.weights import hf, rankseg, segmenter

SHOWN = 20  # names of new classes that are printed; import.json has all of them


@dataclass(frozen=True)
class Format:
    """layout: what was read says.   config: the settings of its run.   model: the module that builds it.

    read: the tensors at a path.
    """

    layout: Callable[[Any], Layout]
    config: type[Any]
    model: str
    read: Callable[..., WeightFile] = read_weights


def of_tensors(layout: Callable[[State], Layout]) -> Callable[[WeightFile], Layout]:
    """The layout of a file of which nothing but its tensors is known."""
    return lambda file: layout(file.tensors)


NETWORKS = {
    "segmenter": Format(of_tensors(segmenter.layout), Stage2Config, "stage2_segmentation.model"),
    "rankseg": Format(of_tensors(rankseg.layout), Stage2Config, "stage2_segmentation.model"),
    "query2label": Format(of_tensors(query2label.layout), Stage1Config, "stage1_multilabel.classifier"),
    "hf": Format(hf.layout, Stage2Config, "stage2_segmentation.model", read_snapshot),
}


@dataclass(frozen=True)
class Wishes:
    """What the command line says, beside format and files.

    classes: file with the class names of the checkpoint.   recipe: settings file.   which: raw or averaged weights.
    transfer_to: file with other class names.   settings: `--dotted.name value`.
    """

    classes: Path | None = None
    recipe: Path | None = None
    which: Which | None = None
    transfer_to: Path | None = None
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Imported:
    """A network with the numbers of a file, and where everything in it is from.

    names: of the file's classes, as given.   class_names: of the network's, which are others after a transfer.
    new: why → our names of tensors that no file has.
    """

    network: nn.Module
    config: Any
    names: tuple[str, ...]
    class_names: tuple[str, ...]
    layout: Layout
    found: Renamed
    new: dict[str, list[str]] = field(default_factory=dict)
    transfer: Transfer | None = None


def import_network(kind: str, source: Path, destination: Path, wishes: Wishes) -> Imported:
    """The run directory `destination` from a checkpoint of that format.

    Raises UserError where the file is of another format, does not fit (Misfit), or holds more than tensors; nothing is
    written then.
    """
    refuse_existing(destination)
    file = NETWORKS[kind].read(source, which=wishes.which)
    made = network_from(kind, source, file, wishes, out=str(destination.parent))
    inputs = {IMPORTED: kind, "file": fingerprint(source, file), "copy": file.which}
    if isinstance(made.config, Stage2Config):
        inputs["rankings"] = made.config.source.train  # the fingerprint of a source that reads no cache is its name
    write_run(
        destination, made.network, model=NETWORKS[kind].model, config=made.config, class_names=made.class_names,
        inputs=inputs, origin={"name": source.name, **inputs, "parallel": file.parallel, **origin_of(made)},
    )  # fmt: skip
    show(made, file, destination)
    return made


def network_from(kind: str, source: Path, file: WeightFile, wishes: Wishes, *, out: str) -> Imported:
    """The network in the tensors of a checkpoint. Raises UserError."""
    chosen = NETWORKS[kind]
    try:
        layout = chosen.layout(file)
    except UserError as error:
        raise UserError(f"{source} is no {kind} checkpoint: {error}") from None
    names = class_names_for(layout, source, wishes.classes, file)
    config = settings_for(chosen.config, layout, wishes.settings, recipe=wishes.recipe, source=source)
    config = with_kappa(replace(config, out=out), len(names))
    network = built(chosen.model, config, names)
    own = network.state_dict()
    found = spared(renamed(file.tensors, layout.rules), own, layout.spare)
    new = begun(found, own, layout.new)
    tensors = fitted(found, own, source=str(source), new=[name for names in new.values() for name in names])
    network.load_state_dict(tensors)
    made = Imported(network.eval(), config, names, names, layout, found, new)
    return made if wishes.transfer_to is None else transferred(made, chosen.model, read_class_names(wishes.transfer_to))


def transferred(made: Imported, model: str, class_names: tuple[str, ...]) -> Imported:
    """The same network for other classes: rows by name, initial values for the new ones. Raises UserError."""
    found = transfer(made.names, class_names)
    config = with_kappa(made.config, len(class_names))
    network = built(model, config, class_names)
    rows = made.layout.class_rows
    network.load_state_dict(moved(made.network.state_dict(), network.state_dict(), found, rows))
    return replace(made, network=network.eval(), config=config, class_names=class_names, transfer=found)


def built(model: str, config: Any, class_names: tuple[str, ...]) -> nn.Module:
    """A network of that configuration with the initial values that training would start from."""
    torch.manual_seed(seed_of(config.loop.seed, "init"))
    network: nn.Module = importlib.import_module(model).build_model(to_plain(config), class_names)
    return network


def with_kappa(config: Any, num_classes: int) -> Any:
    """The same configuration with no more ranks than there are classes."""
    if not isinstance(config, Stage2Config) or (config.source.kappa or 0) <= num_classes:
        return config
    return replace(config, source=replace(config.source, kappa=num_classes))


def class_names_for(layout: Layout, source: Path, classes: Path | None, file: WeightFile) -> tuple[str, ...]:
    """The names of a checkpoint's classes: those given, else those of a folder's config.json.

    Raises UserError where there are none, or more or fewer than in the file.
    """
    if classes is None and isinstance(file, Snapshot) and file.class_names is not None:
        if len(file.class_names) != layout.num_classes:
            raise UserError(
                f"{source / CONFIG} names {len(file.class_names)} classes (id2label), and the head beside it is for "
                f"{layout.num_classes}; the folder holds parts of two networks, fetch it again"
            )
        return file.class_names
    if classes is None:
        raise UserError(
            f"{source} is for {layout.num_classes} classes, whose names have to be given: add --classes FILE, one name "
            "per line in order of ids"
        )
    names = read_class_names(classes)
    if len(names) != layout.num_classes:
        raise UserError(
            f"--classes {classes} has {len(names)} names, {source} is for {layout.num_classes} classes; give the list "
            "that it was trained with (--transfer-to is for another one)"
        )
    return names


def fingerprint(source: Path, file: WeightFile) -> str:
    """sha256 (hex) of all that was read."""
    return file.fingerprint if isinstance(file, Snapshot) else file_sha256(source)


def refuse_existing(destination: Path) -> None:
    if os.path.lexists(destination):
        raise UserError(f"{destination} exists; choose another DST or delete it")


def origin_of(made: Imported) -> dict[str, Any]:
    """What import.json says."""
    origin: dict[str, Any] = {
        "what": made.layout.what, "from_shapes": made.layout.told, "published_values": made.layout.assumed,
        "left_out": made.found.dropped,
    }  # fmt: skip
    return (
        origin
        | ({"new": made.new} if made.new else {})
        | ({"transfer": asdict(made.transfer)} if made.transfer else {})
    )


def show(made: Imported, file: WeightFile, destination: Path) -> None:
    """Print what was made, and on what grounds."""
    values = to_plain(made.config)
    layout = made.layout
    grounds = [(name, value, layout.grounds[0]) for name, value in layout.told.items()]
    grounds += [(name, value, layout.grounds[1]) for name, value in layout.assumed.items()]
    rows = []
    for name, value, ground in grounds:
        taken = looked_up(values, name)
        rows.append([name, str(taken), ground if taken == value else "settings"])
    copy = "averaged weights" if file.which == "ema" else "weights"
    show_table(f"{destination}: {layout.what}, {copy}", ["setting", "value", "known from"], rows)
    for why, names in made.found.dropped.items():
        print(f"left out: {names[0]}{' …' if len(names) > 1 else ''} ({len(names)} in all): {why}")
    if file.class_names and (difference := class_difference(file.class_names, made.names)):
        print(f"the file names its classes otherwise than --classes: {difference}")
    for why, names in made.new.items():
        print(f"new: {names[0]}{' …' if len(names) > 1 else ''} ({len(names)} in all): {why}")
    if made.transfer:
        show_transfer(made.transfer)
    if made.new:
        print(f"next: kappaseg run-stage2 {destination} --init {destination} --data.root DATA --out NEW, to train it")
        return
    verb = "evaluate" if isinstance(made.config, Stage2Config) else "rank CONFIG --classifier"
    print(f"next: kappaseg {verb} {destination} --data.root DATA")


def show_transfer(found: Transfer) -> None:
    """Print which classes were found by name."""
    print(f"classes: {len(found.taken)} rows by name, {len(found.left)} of the file not used, {len(found.new)} new")
    if found.new:
        more = " … (all of them in import.json)" if len(found.new) > SHOWN else ""
        print(f"new, with initial values: {', '.join(found.new[:SHOWN])}{more}; train them with --init")
