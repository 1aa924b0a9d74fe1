"""No damaged part is ever answered from: single flipped bits, lost ends, exchanged files."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from label_cache import CacheError, CacheWriter, LabelCache
from label_cache.quality import check

REPAIR = "delete that part and run `kappaseg rank` again"


def flips(path: Path, count: int) -> Iterator[Path]:
    """One bit of one part is wrong, `count` times; afterwards the part is as it was."""
    chosen = random.Random(0)
    parts = sorted(path.glob("*.parquet"))
    for _ in range(count):
        part = chosen.choice(parts)
        whole = part.read_bytes()
        bit = chosen.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        part.write_bytes(damaged)
        yield part
        part.write_bytes(whole)


def test_every_flipped_bit_is_found_beside_a_stored_index(source: Any, committed: Path) -> None:
    LabelCache.open(committed).lookup(source.ids)
    found = 0
    for part in flips(committed, 60):
        with pytest.raises(CacheError, match=rf"part {part.name} of cache .* is damaged .*{REPAIR}"):
            LabelCache.open(committed).lookup(source.ids)
        found += 1
    assert found == 60
    assert len(LabelCache.open(committed).lookup(source.ids).labels) == 7


def test_every_flipped_bit_is_found_while_building_reading_and_checking(source: Any, committed: Path) -> None:
    for part in flips(committed, 60):
        cache = LabelCache.open(committed)
        with pytest.raises(CacheError, match=rf"part {part.name} .* is damaged .*{REPAIR}"):
            cache.lookup(source.ids)
        with pytest.raises(CacheError, match=rf"part {part.name} .* is damaged"):
            cache.read_split(part.name.split("-")[0])
        (problem,) = check(cache)
        assert part.name in problem and REPAIR in problem
        assert not (committed / "index").exists()
        assert not CacheWriter(committed, source.key, source.names).is_committed()


def test_every_flipped_bit_of_an_unfinished_cache_makes_its_part_not_done(source: Any, tmp_path: Path) -> None:
    writer = source.write(tmp_path, commit=False)
    for part in flips(tmp_path, 200):
        split, index = re.match(r"(\w+)-(\d+)", part.name).groups()
        assert not writer.part_done(split, int(index))
    assert writer.part_done("train", 0)


def test_a_damaged_part_is_written_again_by_ranking_again(
    source: Any, committed: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    before = files_of(committed)
    next(flips(committed, 1))  # left damaged
    assert files_of(committed) != before
    source.write(committed)
    assert files_of(committed) == before and check(LabelCache.open(committed)) == []


@pytest.mark.parametrize("lost", [1, 8, 100, 1000, 10**9])
def test_a_truncated_part_is_named(source: Any, committed: Path, lost: int) -> None:
    cache = LabelCache.open(committed)
    part = committed / "val-00000.parquet"
    part.write_bytes(part.read_bytes()[:-lost])
    for read in (lambda: LabelCache.open(committed), lambda: cache.lookup("val/é0-0"), lambda: cache.read_split("val")):
        with pytest.raises(CacheError, match=rf"part val-00000.parquet .* is damaged \(\d+ bytes, .*{REPAIR}"):
            read()
    assert REPAIR in check(cache)[0]


def test_a_part_of_another_cache_moved_into_place_is_found(
    make_source: Callable[..., Any], source: Any, committed: Path, tmp_path: Path
) -> None:
    LabelCache.open(committed).lookup(source.ids)
    part = committed / "val-00000.parquet"
    size = part.stat().st_size
    for seed in range(1, 200):  # one that only differs in content; its times are older than the index
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        make_source(seed=seed).write(tmp_path / "other", commit=False)
        other = tmp_path / "other" / part.name
        if other.stat().st_size == size:
            break
    else:
        pytest.fail("no part of equal size")
    os.utime(other, ns=(1, 1))
    os.replace(other, part)
    with pytest.raises(CacheError, match=r"part val-00000.parquet .* is damaged \(sha256"):
        LabelCache.open(committed).lookup(source.ids)


def test_a_deleted_part_is_named_even_beside_an_index(source: Any, committed: Path) -> None:
    cache = LabelCache.open(committed)
    cache.lookup(source.ids)
    (committed / "train-00000.parquet").unlink()
    with pytest.raises(CacheError, match=r"part train-00000.parquet of cache .* is missing"):
        LabelCache.open(committed)
    assert any("train-00000.parquet" in problem and "is missing" in problem for problem in check(cache))
