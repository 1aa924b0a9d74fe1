"""A run directory → a folder with the exported network, its card and its class names."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kappaseg_core.checkpoint import load_model, read_record, run_fingerprint
from kappaseg_core.errors import UserError
from kappaseg_core.files import new_folder, no_empty_folders, write_text
from kappaseg_core.progress import say
from pipelines.export.card import card_of
from pipelines.export.check import Agreement, agreement
from pipelines.export.formats import FORMATS, TRACED, traced
from pipelines.export.networks import CompleteMapNetwork, Exported, JointNetwork, MapNetwork, RankingNetwork
from pipelines.tables import show_table
from stage1_multilabel.rank import Ranker
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import load_segmentation
from stage2_segmentation.model import SegmentationModel


def export_run(run: Path, to: Path, *, form: str, kappa: int | None = None, size: str | None = None) -> None:
    """Write TO/KIND.pt2 or TO/KIND.onnx, TO/export.json and TO/classes.txt; all of them or none.

    form: of FORMATS.   kappa: labels that are kept; None = as the run is tested, and all that a classifier ranks.
    size: of the images, "SIDE" or "HxW" in pixels; None = as the run is tested.
    The file is loaded again and compared with the network. Raises UserError where that differs, and where the run, κ,
    the size or the folder do not do.
    """
    FORMATS[form].refuse_missing()
    refuse_taken(to)
    pixels = None if size is None else sides(size)
    made = from_run(run, kappa)
    made = made if pixels is None else replace(made, size=pixels)
    with no_empty_folders(to.parent), new_folder(to) as folder:
        found = fill(folder, made, run, form)
        files = [[path.name, f"{path.stat().st_size / 2**20:,.1f}"] for path in sorted(folder.iterdir())]
    show_table(f"written to {to}", ["file", "MiB"], files)
    rows = [[name, f"{value:.1e}", f"{found.equal[name]:.6g}" if name in found.equal else ""]
            for name, value in found.differences.items()]  # fmt: skip
    show_table("compared with the network", ["output", "largest difference", "share that is equal"], rows)


def fill(folder: Path, made: FromRun, run: Path, form: str) -> Agreement:
    """Write the three files, the network first, and compare it."""
    network, start = made.network, time.perf_counter()
    say(f"exporting {run}: {network.kind}, κ = {network.kappa}, {made.size[0]}x{made.size[1]} pixels")
    inputs = network.examples(TRACED, made.size, torch.Generator().manual_seed(0))
    file = folder / f"{network.kind}{FORMATS[form].suffix}"
    with refusal_in_one_line(run, form):
        with torch.no_grad():
            outputs = network(**inputs)
        FORMATS[form].write(traced(network, inputs), file, list(outputs))
        say(f"written in {time.perf_counter() - start:.0f} s; comparing it with the network")
        found = agreement(network, FORMATS[form].load(file), made.size)
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in made.class_names))
    origin = {"run": run.resolve().name, "fingerprint": run_fingerprint(run), "classes": len(made.class_names)}
    write_text(folder / "export.json", card_of(network, inputs, outputs, file=file, form=form, found=found, run=origin))
    return found


def refuse_taken(to: Path) -> None:
    """Raise UserError where `to` is no place for a new folder."""
    if to.suffix in {form.suffix for form in FORMATS.values()}:
        raise UserError(f"--to {to} names a file, but a folder is written (network, card, class names); name a folder")
    if to.is_dir() and not any(to.iterdir()):
        return
    if to.exists():
        raise UserError(f"--to {to} is there already; choose another folder or delete it")


def sides(text: str) -> tuple[int, int]:
    """Height and width from "512" or "384x512". Raises UserError."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if found is None:
        raise UserError(f"--size {text}, wanted SIDE or HEIGHTxWIDTH in pixels, for example 512 or 384x512")
    return int(found[1]), int(found[2] or found[1])


@dataclass(frozen=True)
class FromRun:
    """What a run directory is exported as. size: (H, W) of the images that its network is tested on."""

    network: Exported
    class_names: tuple[str, ...]
    size: tuple[int, int]


def from_run(run: Path, kappa: int | None) -> FromRun:
    """The network of a finished run. Raises UserError."""
    made = from_classifier(run, kappa) if read_record(run)["model"].startswith("stage1") else from_segmenter(run, kappa)
    made.network.eval()
    return made


def from_classifier(run: Path, kappa: int | None) -> FromRun:
    ranker = Ranker.of(run)
    labels, side = len(ranker.class_names), ranker.config.augment.image_size
    kept = within(labels if kappa is None else kappa, labels)
    return FromRun(RankingNetwork(load_model(run)[0], kept), ranker.class_names, (side, side))


def from_segmenter(run: Path, kappa: int | None) -> FromRun:
    """With the rankings that its settings name for evaluation: given from outside, complete, or the network's own."""
    model, config, class_names = load_segmentation(run)
    return FromRun(map_network(model, config, len(class_names), kappa), class_names, window(config))


def map_network(model: SegmentationModel, config: Stage2Config, labels: int, kappa: int | None) -> Exported:
    if config.source.at_test == "complete":
        if kappa is not None:
            raise UserError(f"--kappa {kappa}: this run is tested on all its {labels} labels; leave --kappa out")
        return CompleteMapNetwork(model, labels)
    kept = within(config.source.kept(labels, at_test=True) if kappa is None else kappa, labels)
    return JointNetwork(model, kept) if config.source.at_test == "joint" else MapNetwork(model, kept, labels)


def window(config: Stage2Config) -> tuple[int, int]:
    """The images that a network is run on: a window, or the square of the shorter side that images are resized to."""
    plan = config.inference
    side = plan.window if plan.mode == "slide" else plan.short_side or config.augment.crop
    return side, side


def within(kappa: int, labels: int) -> int:
    if not 1 <= kappa <= labels:
        raise UserError(f"κ = {kappa}, wanted 1 to {labels}, the number of classes; set --kappa")
    return kappa


@contextmanager
def refusal_in_one_line(run: Path, form: str) -> Iterator[None]:
    """Turn what PyTorch or onnxruntime cannot do with a network into a UserError, by the innermost cause's first line.

    Any exception, as those of onnxruntime have no class in common. A full disk goes on as it is.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(f"{run} cannot be exported as {form}: {first[:300]}; try another --format or --size") from error
