from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from label_cache import CacheError, LabelCache, discard
from label_cache.index import EMPTY, bits, slots
from label_cache.quality import check

FORK_WARNS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def built(path: Path) -> int:
    """Which folder the index is: changes when it is built anew."""
    return (path / "index" / "DERIVED.json").stat().st_ino


def wait_for_the_clock(directory: Path) -> None:
    """Until a file touched now is newer than all that are there: the clock of a file system ticks in milliseconds."""
    latest = max(path.stat().st_ctime_ns for path in directory.iterdir())
    probe = directory / ".clock"
    probe.touch()
    while probe.stat().st_mtime_ns <= latest:
        probe.touch()
    probe.unlink()


def test_the_index_is_built_once_and_then_used(source: Any, committed: Path) -> None:
    LabelCache.open(committed).lookup(source.ids)
    first = built(committed)
    for _ in range(3):
        LabelCache.open(committed).lookup(source.ids)
    assert built(committed) == first
    derived = json.loads((committed / "index" / "DERIVED.json").read_text())
    assert derived["manifest"] == hashlib.sha256((committed / "manifest.json").read_bytes()).hexdigest()


def test_equal_caches_have_equal_indexes(source: Any, tmp_path: Path) -> None:
    files = []
    for name in "ab":
        source.write(tmp_path / name)
        LabelCache.open(tmp_path / name).lookup(source.ids)
        files.append({p.name: p.read_bytes() for p in (tmp_path / name / "index").iterdir()})
    assert files[0] == files[1]


def test_the_index_is_built_anew_when_the_manifest_changes(
    make_source: Callable[..., Any], source: Any, committed: Path, tmp_path: Path
) -> None:
    LabelCache.open(committed).lookup(source.ids)
    kept = tmp_path / "kept"
    shutil.copytree(committed / "index", kept)
    discard(committed)
    other = make_source(seed=5)
    other.write(committed)
    shutil.copytree(kept, committed / "index")
    labels, _ = LabelCache.open(committed).lookup(other.ids)
    expected = other.expected()
    assert labels.tolist() == [[c for _, c in expected[i]] for i in other.ids]


@pytest.mark.parametrize("name", ["DERIVED.json", "labels.npy", "table.npy", "ids.npy"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "emptied"])
def test_an_incomplete_index_is_built_anew(source: Any, committed: Path, name: str, damage: str) -> None:
    before = LabelCache.open(committed).lookup(source.ids)
    file = committed / "index" / name
    data = file.read_bytes()
    file.unlink()
    if damage != "deleted":
        file.write_bytes(data[:-1] if damage == "cut" else b"")
    first = built(committed) if name != "DERIVED.json" else None
    after = LabelCache.open(committed).lookup(source.ids)
    assert np.array_equal(before.labels, after.labels)
    assert built(committed) != first
    assert sorted(p.name for p in committed.iterdir() if p.name.startswith(".")) == []


def test_a_copied_cache_is_verified_once_and_its_index_used(
    source: Any, committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LabelCache.open(committed).lookup(source.ids)
    copy = tmp_path / "copy"
    shutil.copytree(committed / "index", copy / "index")  # the index first: then the parts look newer than it
    for path in committed.glob("*.*"):
        shutil.copy(path, copy / path.name)
    wait_for_the_clock(copy)
    first, read = built(copy), []
    monkeypatch.setattr("label_cache.index.read_bytes", lambda _, part: read.append(part.name))
    LabelCache.open(copy).lookup(source.ids)
    assert sorted(read) == ["train-00000.parquet", "train-00001.parquet", "val-00000.parquet"]
    LabelCache.open(copy).lookup(source.ids)
    assert len(read) == 3 and built(copy) == first


def hash_other(monkeypatch: pytest.MonkeyPatch, key_for: Callable[[bytes], int]) -> None:
    """Let the index take key_for(id) for the CRC-32 of an id."""
    monkeypatch.setattr("label_cache.index.crc32", key_for)


@pytest.mark.parametrize(
    "key_for",
    [
        pytest.param(lambda raw: 7, id="all equal"),
        pytest.param(lambda raw: 2**32 - 1, id="all the largest"),
        pytest.param(lambda raw: 2**32 - 1 - raw[-1] % 3, id="three at the end"),
        pytest.param(lambda raw: raw[-1] << 20, id="near each other"),
    ],
)
def test_ids_whose_keys_collide_are_told_apart(
    source: Any, committed: Path, monkeypatch: pytest.MonkeyPatch, key_for: Callable[[bytes], int]
) -> None:
    hash_other(monkeypatch, key_for)
    cache, expected = LabelCache.open(committed), source.expected()
    for image_id in source.ids:
        assert cache.lookup(image_id).labels[0].tolist() == [c for _, c in expected[image_id]]
    assert "stranger" not in cache


def test_an_id_with_the_key_of_another_is_unknown(
    source: Any, committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = source.ids[0].encode()
    hash_other(monkeypatch, lambda raw: zlib.crc32(known if raw == b"stranger" else raw))
    cache = LabelCache.open(committed)
    assert source.ids[0] in cache
    for ids in ("stranger", ["stranger"]):
        with pytest.raises(CacheError, match="'stranger' is not among"):
            cache.lookup(ids)


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 4096])
def test_every_row_is_found_within_a_few_places(count: int) -> None:
    raw = [b"%012d" % row for row in range(count)]
    table = slots(raw)
    filled = np.flatnonzero(table != EMPTY)
    assert np.array_equal(np.sort(table[filled] & np.uint64(2**32 - 1)), np.arange(count))
    assert table[-1] == EMPTY  # where a search for what is larger than all ends
    first = (table[filled] >> np.uint64(64 - bits(count))).astype(np.int64)
    assert (filled - first).min() >= 0 and (filled - first).max() < 12


@FORK_WARNS
def test_processes_that_build_the_index_at_once_all_get_it(source: Any, committed: Path) -> None:
    expected = LabelCache.open(committed).lookup(source.ids).labels
    context = get_context("fork")

    def racer(start: Any) -> None:
        start.wait()
        found = LabelCache.open(committed).lookup(source.ids).labels
        os._exit(0 if np.array_equal(found, expected) else 1)

    for stale in (False, True) * 4:
        if stale:
            (committed / "index" / "DERIVED.json").write_text("{}")
        else:
            shutil.rmtree(committed / "index")
        start = context.Barrier(3)
        racers = [context.Process(target=racer, args=(start,)) for _ in range(3)]
        for process in racers:
            process.start()
        for process in racers:
            process.join()
        assert [process.exitcode for process in racers] == [0, 0, 0]
        assert sorted(p.name for p in committed.iterdir() if p.is_dir()) == ["index"]
        assert check(LabelCache.open(committed)) == []


def test_a_read_only_cache_is_read_through_a_private_index_and_says_so(
    source: Any, committed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Path.mkdir

    def read_only(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent == committed:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    cache, expected = LabelCache.open(committed), source.expected()
    with caplog.at_level(logging.WARNING):
        labels, _ = cache.lookup(source.ids)
    assert labels.tolist() == [[c for _, c in expected[i]] for i in source.ids]
    assert "Read-only file system" in caplog.text and str(committed) in caplog.text
    assert not (committed / "index").exists()
    caplog.clear()
    cache.lookup(source.ids)
    assert caplog.text == ""


def test_a_part_touched_within_the_clock_tick_of_its_check_is_checked_again(
    source: Any, committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LabelCache.open(committed).lookup(source.ids)
    wait_for_the_clock(committed)
    part = committed / "train-00001.parquet"
    part.touch()
    touched, read = part.stat().st_mtime_ns, []
    monkeypatch.setattr("label_cache.index.read_bytes", lambda _, part: read.append(part.name))
    monkeypatch.setattr("label_cache.index._time_of", lambda _: touched)
    LabelCache.open(committed).lookup(source.ids)
    LabelCache.open(committed).lookup(source.ids)
    assert read == [part.name] * 2
    monkeypatch.setattr("label_cache.index._time_of", lambda _: part.stat().st_ctime_ns + 1)
    LabelCache.open(committed).lookup(source.ids)
    LabelCache.open(committed).lookup(source.ids)
    assert read == [part.name] * 3


def last_slot(table: bytes) -> int:
    """Where the last slot that holds a row starts in table.npy: four bytes of the row, four of the CRC."""
    byte = len(table) - 8
    while table[byte : byte + 8] == b"\xff" * 8:
        byte -= 8
    return byte


@pytest.mark.parametrize("byte", range(8))
def test_a_decayed_slot_is_one_clear_error(source: Any, committed: Path, byte: int) -> None:
    LabelCache.open(committed).lookup(source.ids)
    file = committed / "index" / "table.npy"
    data = bytearray(file.read_bytes())
    data[last_slot(data) + byte] ^= 0x81
    file.write_bytes(data)
    cache, expected = LabelCache.open(committed), source.expected()
    for image_id in source.ids:
        with contextlib.suppress(CacheError):
            assert cache.lookup(image_id).labels[0].tolist() == [c for _, c in expected[image_id]]
    with pytest.raises(CacheError, match=r"the look-up index .* delete .*index, it will be built anew"):
        cache.lookup(source.ids)


def test_check_finds_an_index_that_says_something_else(source: Any, committed: Path) -> None:
    cache = LabelCache.open(committed)
    cache.lookup(source.ids)
    for name in ("labels", "scores", "sources", "table", "ids", "offsets"):
        file = committed / "index" / f"{name}.npy"
        data = file.read_bytes()
        byte = last_slot(data) if name == "table" else len(data) - 1
        file.write_bytes(data[:byte] + bytes([data[byte] ^ 1]) + data[byte + 1 :])
        problems = check(cache)
        assert problems and all("the index disagrees with part" in problem for problem in problems), name
        file.write_bytes(data)
    assert check(cache) == []
