"""Records of JSON files that are not held in memory."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published import records as module
from kappaseg_core.scenes.published.records import Places, read_records, records

CONTENT: dict[str, Any] = {
    "info": {"year": 2020, "lists": [[1, 2], {}]},
    "numbers": [12345, -1.5e3, 6],
    "empty": [],
    "images": [{"id": 1, "name": 'a"}],[{'}, {"id": 22, "name": "Süd, 東"}],
    "annotations": [{"segmentation": [[1.25, 2.5], [3, 4]], "image_id": 22}, {"image_id": 1, "counts": "]}\\"}],
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 24])
@pytest.mark.parametrize("indent", [None, 1])
def test_records_and_their_places_are_the_same_wherever_chunks_end(
    chunk: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    path = tmp_path / "file.json"
    path.write_text(f" {json.dumps(CONTENT, indent=indent, ensure_ascii=False)}\n", "utf-8")
    found = list(records(path))
    wanted = [(key, value) for key, values in CONTENT.items() if isinstance(values, list) for value in values]
    assert [record.key for record in found] == [key for key, _ in wanted]
    spans = np.array([(record.start, record.end) for record in found])
    assert read_records(path, spans) == [value for _, value in wanted]
    numbers = [record.value for record in found if record.key == "numbers"]
    assert numbers == CONTENT["numbers"]


@pytest.mark.parametrize(
    "text, byte",
    [
        ("", 0),
        ("[1, 2]", 0),
        ('{"a": [1, 2', 11),
        ('{"a": [1, 2]', 12),
        ('{"a" [1]}', 5),
        ('{"a": [{"b": }]}', 7),
        ("\xff\xfe", 0),
    ],
)
def test_what_is_no_whole_json_is_one_line_with_its_place(text: str, byte: int, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("latin-1"))
    step = r"wanted \{…\} to its end: make or download it again$"
    with pytest.raises(UserError, match=rf"file\.json is no whole JSON object: .* at byte {byte}; {step}"):
        list(records(path))


def test_a_file_that_is_damaged_early_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "LARGEST", 30)
    path = tmp_path / "file.json"
    path.write_text('{"a": [{"b" 1}, ' + "2, " * 1000 + "3]}")
    read = module._Text._read_on
    times = []
    monkeypatch.setattr(module._Text, "_read_on", lambda text: times.append(1) or read(text))
    with pytest.raises(UserError, match="at byte 7"):
        list(records(path))
    assert len(times) < 10


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read: no such file or directory"):
        list(records(tmp_path / "none.json"))


def test_places_keep_the_order_of_the_file_within_an_image() -> None:
    places = Places.of(Path("file"), [7, 3, 7, 5, 7], array("q", [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]))
    assert places.at(7).tolist() == [[0, 1], [20, 21], [40, 41]]
    assert places.at(3).tolist() == [[10, 11]]
    assert places.at(4).tolist() == places.at(99).tolist() == []
