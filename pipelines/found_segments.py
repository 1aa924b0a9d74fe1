"""What `kappaseg evaluate` does beside for networks that learn objects: quality of segments, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kappaseg_core.checkpoint import read_record
from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement
from kappaseg_core.scenes import things_of
from kappaseg_core.structures import SceneSet
from pipelines.panoptic import QUALITY_COLUMNS, categories_of, quality_rows
from pipelines.segment_files import SegmentFiles, refuse_segments_there
from pipelines.tables import show_table
from stage2_segmentation.evaluate import Evaluation
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.panoptic import SegmentRule


def show_segments(runs: Sequence[Path], results: Sequence[Evaluation]) -> None:
    """Print the quality of segments, of the runs that learn objects, and what to try where one found none."""
    rows = [
        [run.name, *row]
        for run, result in zip(runs, results, strict=True)
        if result.panoptic is not None
        for row in quality_rows(result.panoptic)
    ]
    if rows:
        show_table("segments, in %", ["run", "", *QUALITY_COLUMNS], rows)
    for run, result in zip(runs, results, strict=True):
        if result.panoptic is not None and not result.panoptic["found"]:
            print(
                f"{run.name}: no segment was found; a query becomes one where its label has the probability "
                f"inference.segments.score ({SegmentRule.score} as published), seldom reached in short runs; lower it"
            )


def files_for_segments(
    folder: Path, run: Path, model: SegmentationModel, scenes: SceneSet, here: Placement
) -> SegmentFiles:
    """Where the segments that a run finds are written. Raises UserError where it finds none, or some are there."""
    if not model.learns_objects:
        raise UserError(
            f"--segments {folder}: {run} was trained on labels and finds no objects; leave it out, or give a run with "
            "host.options.target objects"
        )
    if here.world > 1:
        raise UserError(f"--segments {folder}: one process writes all segments, found {here.world}; evaluate with one")
    refuse_segments_there(folder)
    return SegmentFiles(folder, categories_of(scenes))


def refuse_other_things(run: Path, scenes: SceneSet) -> None:
    """Raise UserError where other classes have objects than those whose objects the network was trained on."""
    trained_on, here = read_record(run).get("things"), things_of(scenes)
    if trained_on is None:  # weights that were imported
        return
    for name, thing in zip(scenes.class_names, here, strict=True):
        if thing != (name in trained_on):
            there, now = ("stuff", "a thing") if thing else ("a thing", "stuff")
            raise UserError(
                f"in {run} {name} is {there}, in split {scenes.split!r} it is {now}; "
                "evaluate on the data set of the run"
            )
