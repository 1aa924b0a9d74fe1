"""A JSON file too large to hold: the records of its lists one at a time, with their places, read again from there.

Polygons take five times their size as Python objects, and six while they are read: for LVIS' 1.1 GB, 7 GB. Here one
pass notes where each record lies, in 24 bytes, and who needs the records of an image reads those bytes again. The pass
takes 12 s per GB of polygons and 3 s of run lengths; a run that resumes makes it again, instead of trusting an index of
its own that may be of other files.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from kappaseg_core.errors import UserError

#: bytes read at a time
CHUNK = 1 << 24

#: Bytes that a record may have: polygons of four million points. A file that is damaged early is not read to its end.
LARGEST = 1 << 26

#: What a number that the window cuts leaves behind its value is shorter: "1e+" is read as 1.
CUT_NUMBER = 3

_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Record(NamedTuple):
    """An element of one of the lists. key: the list.  start, end: its bytes in the file."""

    key: str
    value: Any
    start: int
    end: int


@dataclass(frozen=True)
class Places:
    """Where the records of each image lie in a file, in the file's order.

    image_ids: i64 [N], ascending.  spans: i64 [N, 2], first byte and the one behind the last.
    """

    path: Path
    image_ids: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, path: Path, image_ids: Sequence[int], spans: array[int]) -> Places:
        """image_ids in the file's order, spans flat: start, end, start, end …"""
        ids = np.asarray(image_ids, np.int64)
        order = np.argsort(ids, kind="stable")
        return cls(path, ids[order], np.asarray(spans, np.int64).reshape(-1, 2)[order])

    def at(self, image_id: int) -> np.ndarray:
        """Spans of an image, i64 [n, 2]; n = 0 where the file has none."""
        first, last = np.searchsorted(self.image_ids, [image_id, image_id + 1])
        return self.spans[first:last]


def records(path: Path) -> Iterator[Record]:
    """The elements of all lists at the top level of a JSON object, in the file's order. Raises UserError.

    Text is decoded byte by byte (latin-1), so that places are bytes: strings beyond ASCII look odd. `read_records` and
    numbers are not concerned.
    """
    with _open(path) as file:
        text = _Text(file, path)
        text.expect("{")
        while not text.take("}"):
            key = text.value()
            text.expect(":")
            if text.take("["):
                while not text.take("]"):
                    value = text.value()
                    yield Record(key, value, text.value_start, text.place)
                    text.take(",")
            else:
                text.value()
            text.take(",")


def read_records(path: Path, spans: np.ndarray) -> list[Any]:
    """The records at `spans`, i64 [n, 2], in that order."""
    found = []
    with _open(path) as file:
        for start, end in spans.tolist():
            file.seek(start)
            found.append(json.loads(file.read(end - start)))
    return found


class _Text:
    """A window that moves over the text. place: in the file, of the next character that is not taken yet."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.window, self.at, self.before = "", 0, 0
        self.value_start = 0

    @property
    def place(self) -> int:
        return self.before + self.at

    def take(self, character: str) -> bool:
        """Whether the next character that is no blank is this one; then it is taken."""
        self._skip_blanks()
        found = self.window.startswith(character, self.at)
        self.at += found
        return found

    def expect(self, character: str) -> None:
        if not self.take(character):
            raise self._problem(f"no {character!r}")

    def value(self) -> Any:
        """The JSON value that comes next."""
        self._skip_blanks()
        self.value_start = self.place
        while True:
            try:
                value, end = _DECODER.raw_decode(self.window, self.at)
            except json.JSONDecodeError as error:
                if len(self.window) - self.at > LARGEST or not self._read_on():
                    raise self._problem(error.msg) from None
                continue
            if end + CUT_NUMBER > len(self.window) and self._read_on():
                continue
            self.at = end
            return value

    def _skip_blanks(self) -> None:
        while True:
            blanks = _BLANKS.match(self.window, self.at)
            assert blanks is not None  # of any length
            self.at = blanks.end()
            if self.at < len(self.window) or not self._read_on():
                return

    def _read_on(self) -> bool:
        """Drop what was taken and read a chunk. False at the end of the file."""
        chunk = self.file.read(CHUNK).decode("latin-1")
        if chunk:
            self.window, self.before, self.at = self.window[self.at :] + chunk, self.place, 0
        return bool(chunk)

    def _problem(self, what: str) -> UserError:
        return UserError(
            f"{self.path} is no whole JSON object: {what} at byte {self.place}; "
            "wanted {…} to its end: make or download it again"
        )


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None
