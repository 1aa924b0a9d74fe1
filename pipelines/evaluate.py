"""`kappaseg evaluate`: finished stage-two runs on the validation split."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kappaseg_core.checkpoint import RunDirectory, read_record, short
from kappaseg_core.config import build, load_config, override, to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.files import no_empty_folders, write_text
from kappaseg_core.placement import Placement, place
from kappaseg_core.progress import memory_mib
from kappaseg_core.structures import SceneSet
from pipelines.calibrate import calibrated_source, describe
from pipelines.found_segments import files_for_segments, refuse_other_things, show_segments
from pipelines.tables import show_table
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import (
    Evaluation,
    evaluate_model,
    evaluation_name,
    load_segmentation,
    open_test_scenes,
)
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.objects import refuse_several_views
from stage2_segmentation.sources import Source, source_module
from stage2_segmentation.train import source_for

#: settings that an evaluation may change; the others are part of the trained network
EVALUATION_SETTINGS = (
    "data", "source.test", "source.test_kappa", "source.cache", "source.url", "source.service_cache", "inference",
    "loop",
)  # fmt: skip


def runs_and_settings(
    what: str | None, settings: Sequence[tuple[str, str]]
) -> tuple[list[Path], list[tuple[str, str]]]:
    """The stage-two runs meant, and what is left to change in evaluating them.

    what: a run directory, an output folder (all its complete runs), or the CONFIG of a run, which is then found with
    the settings that run-stage2 was given.
    """
    out = dict(settings).get("out")
    rest = [(name, value) for name, value in settings if name != "out"]
    if what is not None and what.endswith((".yaml", ".yml")):
        config = load_config(Stage2Config, what, settings)
        return [Path(config.out) / config.run_name], [pair for pair in rest if may_change(pair[0])]
    return find_runs(what, out), rest


def find_runs(what: str | None, out: str | None) -> list[Path]:
    """A run directory, or all complete stage-two runs of an output folder."""
    if what is None and out is None:
        raise UserError("evaluate needs a run directory, an output folder, or --out; for example kappaseg evaluate OUT")
    folder = Path(what if what is not None else str(out))
    if (folder / "run.yaml").exists():
        return [folder]
    runs = [path.parent for path in sorted(folder.glob("stage2-*/run.yaml")) if RunDirectory(path.parent).is_complete]
    if not runs:
        raise UserError(f"{folder} holds no finished stage-two run; run kappaseg run-stage2 with --out {folder} first")
    return runs


def evaluate_runs(
    runs: Sequence[Path],
    settings: Sequence[tuple[str, str]],
    *,
    alpha: float | None = None,
    calibration: str | None = None,
    segments: Path | None = None,
) -> list[Evaluation]:
    """Evaluate each run with its own settings, or with some of them changed, and print one table.

    alpha: κ per image such that at most this share of the pixels is lost.   calibration: the split to calibrate on.
    segments: new folder for the segments that a run finds, as COCO's panoptic files.
    """
    if segments is not None and len(runs) > 1:
        raise UserError(f"--segments {segments} is for one run, found {len(runs)}; name the run directory")
    if calibration is not None and alpha is None:
        raise UserError(f"--calibration {calibration} is for --alpha, which is not given; add it or leave both out")
    if alpha is not None and "source.test_kappa" in dict(settings):
        raise UserError("--alpha chooses κ for each image, --source.test_kappa one for all; give one of them")
    results = [evaluate_run(run, settings, alpha=alpha, calibration=calibration, segments=segments) for run in runs]
    rows = [
        [run.name, *(f"{100 * value:.2f}" for value in (
            r.mIoU, r.class_coverage, r.pixel_accuracy, r.pixel_coverage, r.zero_iou_share
        )), f"{r.mean_kappa:.1f}"]
        for run, r in zip(runs, results, strict=True)
    ]  # fmt: skip
    columns = ["run", "mIoU", "≤ class coverage", "pixel accuracy", "≤ pixel coverage", "zero-IoU classes", "mean κ"]
    show_table(f"{results[0].images} images, in %", columns, rows)
    show_segments(runs, results)
    absent = results[0].absent
    if absent:
        print(f"{len(absent)} classes have no pixel in the truth and count only where predicted: {', '.join(absent)}")
    return results


@dataclass(frozen=True)
class Opened:
    """A finished run, ready to be measured on its validation split. training: its settings; config: as evaluated."""

    model: SegmentationModel
    training: Stage2Config
    config: Stage2Config
    class_names: tuple[str, ...]
    here: Placement
    scenes: SceneSet
    source: Source

    @property
    def kappa(self) -> int:
        """Labels kept per image, for a source that cuts its ranking."""
        return self.config.source.kept(len(self.class_names), at_test=True)

    @property
    def all_ranks(self) -> bool:
        """Whether the source gives all labels that it knows of, whatever κ is."""
        return bool(source_module(self.config.source.at_test).ALL_RANKS)


def opened(run: Path, settings: Sequence[tuple[str, str]] = ()) -> Opened:
    """A run with some evaluation settings changed, on its device. Raises UserError where it cannot be measured so."""
    model, training, class_names = load_segmentation(run)
    config = changed(training, settings)
    here = place(config.loop)
    scenes = open_test_scenes(config, class_names)
    if model.learns_objects:
        refuse_several_views(config.inference)
        refuse_other_things(run, scenes)
    source = source_for(config, scenes, at_test=True)
    if "source.cache" not in dict(settings):
        refuse_other_rankings(run, training, config, source)
    return Opened(model.to(here.device), training, config, class_names, here, scenes, source)


def evaluate_run(
    run: Path, settings: Sequence[tuple[str, str]] = (), *, alpha: float | None = None, calibration: str | None = None,
    segments: Path | None = None,
) -> Evaluation:  # fmt: skip
    """One evaluation, written beside the run as JSON with its settings and cost."""
    started = time.perf_counter()
    found = opened(run, settings)
    training, config, scenes, source = found.training, found.config, found.scenes, found.source
    files = None if segments is None else files_for_segments(segments, run, found.model, scenes, found.here)
    chosen: dict[str, Any] = {}
    if alpha is not None:
        cut, scenes = calibrated_source(found.model, config, scenes, alpha=alpha, split=calibration, here=found.here)
        source, chosen = cut, {"calibration": asdict(cut.calibration)}
    with no_empty_folders(segments) if segments else nullcontext():
        result = evaluate_model(
            found.model, scenes, source, config.inference, found.here, keep=None if files is None else files.add
        )
        if files is not None:
            print(files.finish())
    if alpha is not None:
        print(f"{run.name}: {describe(cut.calibration, result.image_coverage)}")
    record = {
        "run": run.name,
        "source": {"train": training.source.train, "test": config.source.at_test},
        "kappa": None if alpha is not None or found.all_ranks else found.kappa,
        "inference": to_plain(config.inference),
        "split": config.data.val,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory_mib": memory_mib(),
        **chosen,
        **asdict(result),
    }
    name = evaluation_name(config, training, choice(found, alpha, calibration))
    write_text(run / name, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return result


def choice(found: Opened, alpha: float | None, calibration: str | None) -> str:
    """How many labels an image keeps, in a word for a file name; empty where its source gives all that it knows of."""
    if alpha is not None:
        return f"alpha{alpha:g}" + (f"-on-{calibration}" if calibration else "")
    return "" if found.all_ranks else f"kappa{found.kappa}"


def refuse_other_rankings(run: Path, training: Stage2Config, config: Stage2Config, source: Source) -> None:
    """Raise UserError where the cache at its usual place is not the one that the network was trained on."""
    trained_on = read_record(run)["inputs"].get("rankings")
    if training.source.train == config.source.at_test and source.fingerprint != trained_on:
        raise UserError(
            f"{run} was trained on rankings {short(trained_on)}, the cache there now is {short(source.fingerprint)}; "
            "train again or name this one with --source.cache"
        )


def may_change(name: str) -> bool:
    """Whether an evaluation may differ from its run in this setting."""
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in EVALUATION_SETTINGS)


def changed(config: Stage2Config, settings: Sequence[tuple[str, str]]) -> Stage2Config:
    """A run's configuration with evaluation settings laid on top."""
    values = to_plain(config)
    for name, text in settings:
        override(values, name, text)
    asked = build(Stage2Config, values, source="command line")  # a mistyped name is told apart from a forbidden one
    for name, _ in settings:
        if not may_change(name):
            allowed = ", ".join(EVALUATION_SETTINGS)
            raise UserError(f"--{name} is part of the trained network; evaluation can change settings of {allowed}")
    return asked
