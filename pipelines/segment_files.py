"""Segments as COCO's panoptic files (kappaseg_core/scenes/panoptic_files.py describes them), image after image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.panoptic_files import Categories
from kappaseg_core.scenes.panoptic_writing import FILE, coco_id, make_folders, write_annotations, write_segments
from kappaseg_core.segments import Segments


class SegmentFiles:
    """FOLDER/panoptic/ID.png for each image that is added, and at the end FOLDER/panoptic.json. Raises UserError."""

    def __init__(self, folder: Path, categories: Categories) -> None:
        self.folder, self.categories = folder, categories
        self.annotations: list[dict[str, Any]] = []
        self.names: dict[int | str, str] = {}

    def add(self, image_id: str, segments: Segments) -> None:
        number = coco_id(image_id)
        if (before := self.names.setdefault(number, image_id)) != image_id:
            raise UserError(
                f"images {before} and {image_id} are both {number} in panoptic.json, where images have numbers; "
                "rename one of them"
            )
        if not self.annotations:
            make_folders(self.folder)
        self.annotations.append(write_segments(self.folder, image_id, segments, self.categories))

    def finish(self) -> str:
        """Write the list, and give a line on what was written."""
        file = write_annotations(self.folder, self.annotations, self.categories)
        count = sum(len(found["segments_info"]) for found in self.annotations)
        return f"{file}: {len(self.annotations)} images, {count} segments of {len(self.categories.names)} classes"


def refuse_segments_there(folder: Path) -> None:
    """Raise UserError where a folder has segments already."""
    if (folder / FILE).exists():
        raise UserError(f"{folder / FILE} is there already; name a new folder, or remove it")
