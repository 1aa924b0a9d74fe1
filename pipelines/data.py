"""`kappaseg data`: is a data set sound, and one file made of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kappaseg_core.config import DataConfig
from kappaseg_core.progress import Meter
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.check import DataCheck, SplitCheck, check_scenes, first_few
from kappaseg_core.scenes.flaws import UnknownValues
from kappaseg_core.scenes.packing import pack
from pipelines.tables import show_table

#: Lines shown of mask values outside the vocabulary: one wrong setting makes one per image.
FEW = 5


def check_data(data: DataConfig, splits: Sequence[str] | None) -> int:
    """Read every scene of the splits (None = all), print what is in them and what is wrong.

    Gives the exit status: 2 where something is wrong, else 0. Notes do not count: absent classes, one picture under two
    ids, images that splits other than training and validation share.
    """
    found = check_scenes(data, splits)
    where = f"{data.kind} {data.root}"
    if found.splits:
        columns = ["split", "images", "flawed", "mean labels", "p99 labels", "% ignored", "absent classes"]
        told_apart = any(check.objects is not None for check in found.splits)
        of_objects = ["mean objects", "most objects", "images with a crowd"] if told_apart else []
        rows = [_row(check) + (_object_cells(check) if told_apart else []) for check in found.splits]
        show_table(where, columns + of_objects, rows)
    for check in found.splits:
        absent = [found.class_names[label] for label in np.flatnonzero(check.images_with == 0)]
        if absent:
            print(f"note: {check.split} lacks {len(absent)} of {len(found.class_names)} classes: {first_few(absent)}")
    for note in found.notes:
        print(f"note: {note}")
    return _print_flaws(found, where)


def pack_data(data: DataConfig, splits: Sequence[str], destination: Path) -> int:
    """Pack splits of a folder into one file and print how to use it. Gives the exit status 0; raises UserError."""
    sets = [open_scenes(data, split) for split in splits]
    images = len({image_id for scenes in sets for image_id in scenes.image_ids})
    with Meter("packing", images, unit="image") as meter:
        pack(sets, destination, progress=lambda done, total: meter.advance())
    facts = {scenes.split: f"{len(scenes)} images, fingerprint {scenes.fingerprint()[:12]}" for scenes in sets}
    facts["size"] = f"{destination.stat().st_size / 2**20:.1f} MiB"
    instances = " --data.options.instances true" if getattr(sets[0], "things", None) else ""
    facts["use it with"] = f"--data.kind packed --data.root {destination}{instances}"
    show_table(str(destination), ["", ""], [[name, value] for name, value in facts.items()])
    return 0


def _row(check: SplitCheck) -> list[str]:
    labels = check.labels_per_image
    numbers = (
        [f"{labels.mean():.1f}", f"{np.percentile(labels, 99):.1f}", f"{100 * check.unlabelled / check.pixels:.2f}"]
        if len(labels)
        else ["–"] * 3
    )
    absent = int((check.images_with == 0).sum())
    return [check.split, str(check.images), str(check.flawed), *numbers, str(absent)]


def _object_cells(check: SplitCheck) -> list[str]:
    if check.objects is None:
        return ["–"] * 3
    objects = check.objects.per_image
    return [f"{objects.mean():.1f}", str(objects.max()), str(check.objects.crowds)]


def _print_flaws(found: DataCheck, where: str) -> int:
    for kind, lines in found.flaws.items():
        print(f"\n{kind}: {len(lines)}")
        shown = lines[:FEW] if kind == UnknownValues.kind else lines
        for line in shown:
            print(f"  {line}")
        if len(shown) < len(lines):
            print(f"  … and {len(lines) - len(shown)} more masks")
    if found.unknown_values:
        values = [f"{value} in {masks} mask{'s' * (masks > 1)}" for value, masks in found.unknown_values.items()]
        print(f"  all such values: {first_few(values, 20)}")
    total = sum(map(len, found.flaws.values()))
    print(f"\n{where}: {f'{total} flaws' if total > 1 else '1 flaw' if total else 'nothing wrong'}")
    return 2 if total else 0
