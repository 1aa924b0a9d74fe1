"""prepared.json: what a prepared folder was made from, and whether it is all of the published set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.files import write_text, writing

FILE = "prepared.json"
FOLDERS = ("images", "masks", "splits")
#: one more where objects are told apart
INSTANCES = "instances"
#: held by the process that prepares; it stays, and says who did last
LOCK = ".lock"


@dataclass(frozen=True)
class Record:
    """What makes two folders the same. source: absolute.   photos: link, copy."""

    set: str
    options: dict[str, Any]
    source: str
    photos: str
    classes_sha256: str


@dataclass(frozen=True)
class Prepared:
    """What a folder holds.

    ignore: mask value of "no label".   images, published: split → images written, images in the published set.
    made: scenes that this start made.   flaws: a line per scene that cannot be made.
    left_out: images without photo or without mask, of a source that was said to be partial.
    things: classes whose objects are told apart; 0 where none are.
    """

    title: str
    classes: int
    ignore: int
    images: dict[str, int]
    published: dict[str, int]
    made: int
    left_out: int
    flaws: tuple[str, ...]
    things: int = 0

    @property
    def complete(self) -> bool:
        return self.images == self.published and not self.flaws


def refuse_another(record: Record, folder: Path) -> None:
    """Raises UserError where the folder holds something else than what is to be made."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder} is a file, wanted a folder")
    if not (folder / FILE).exists():
        others = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.exists() else []
        if others:
            raise UserError(f"--to {folder} is not empty (it holds {others[0]}); name a new folder")
        return
    try:
        there = json.loads((folder / FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / FILE} cannot be read ({error}); name a new folder") from None
    for name, wanted in asdict(record).items():
        if there.get(name) != wanted:
            raise UserError(
                f"--to {folder} was begun with {name} = {there.get(name)!r}, now it is {wanted!r}; name a new folder, "
                "or remove that one"
            )


def begin(record: Record, folder: Path, *, instances: bool) -> None:
    """Make the folders and say what they are for; from here on the same preparation may go on."""
    for name in (*FOLDERS, *([INSTANCES] if instances else [])):
        with writing(folder / name):
            (folder / name).mkdir(parents=True, exist_ok=True)
    _write(folder, {**asdict(record), "finished": False})


def end(record: Record, folder: Path, prepared: Prepared) -> None:
    """Say that the folder is finished, and what is in it."""
    splits = {
        split: {"images": images, "published": prepared.published[split]} for split, images in prepared.images.items()
    }
    facts = {"title": prepared.title, "classes": prepared.classes, "ignore": prepared.ignore, "splits": splits}
    if prepared.things:
        facts["things"] = prepared.things
    _write(folder, {**asdict(record), **facts, "complete": prepared.complete, "finished": True})


def _write(folder: Path, values: dict[str, Any]) -> None:
    write_text(folder / FILE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
