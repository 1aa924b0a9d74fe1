"""Small caches with random rankings, and what they must give back worked out one number at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from label_cache import CacheKey, CacheWriter, class_hash


@dataclass
class Source:
    """Rows as a classifier gives them, in parts: split → list of keyword arguments of write_part."""

    names: tuple[str, ...]
    key: CacheKey
    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def write(self, path: Path, *, commit: bool = True) -> CacheWriter:
        """The obvious ranking loop: skip what is done, write the rest, commit."""
        writer = CacheWriter(path, self.key, self.names)
        if writer.is_committed():
            return writer
        for split, parts in self.parts.items():
            for index, rows in enumerate(parts):
                if not writer.part_done(split, index, ids=rows["ids"]):
                    writer.write_part(split, index, **rows)
        if commit:
            writer.commit(self.counts)
        return writer

    @property
    def counts(self) -> dict[str, int]:
        return {split: len(parts) for split, parts in self.parts.items()}

    @property
    def ids(self) -> list[str]:
        return [image_id for parts in self.parts.values() for rows in parts for image_id in rows["ids"]]

    def expected(self) -> dict[str, list[tuple[float, int]]]:
        """Image id → (score, label) in the order that the cache must have, found with plain sorting."""
        found = {}
        for parts in self.parts.values():
            for rows in parts:
                for image_id, labels, scores in zip(rows["ids"], rows["labels"], rows["scores"], strict=True):
                    pairs = [(float(np.float16(s)), int(c)) for s, c in zip(scores, labels, strict=True)]
                    found[image_id] = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
        return found


def make_source(
    *, num_classes: int = 7, k: int = 4, rows: Sequence[int] = (3, 2), val_rows: Sequence[int] = (2,), seed: int = 0
) -> Source:
    """Random rankings with many equal scores; parts of the given numbers of images; ids in no order."""
    random = np.random.default_rng(seed)
    names = tuple(f"class {i}" for i in range(num_classes))
    key = CacheKey(
        dataset={"train": "a" * 64, "val": "b" * 64},
        classes=class_hash(names),
        model="c" * 64,
        preprocess="d" * 64,
        num_classes=num_classes,
        k=k,
    )
    source = Source(names, key)
    for split, counts in (("train", rows), ("val", val_rows)):
        source.parts[split] = [
            random_rows(random, f"{split}/é{part}", count, num_classes, k) for part, count in enumerate(counts)
        ]
    return source


def random_rows(random: np.random.Generator, stem: str, count: int, num_classes: int, k: int) -> dict[str, Any]:
    scores = (random.integers(0, 5, (count, k)) / 4 * 0.9).astype(np.float32)
    truth = [random.permutation(min(num_classes, 20))[: random.integers(0, 4)] for _ in range(count)]
    return {
        "ids": [f"{stem}-{i}" for i in random.permutation(count)],
        "labels": np.array([random.permutation(num_classes)[:k] for _ in range(count)]),
        "scores": scores,
        "source": [("in-sample", "out-of-fold", "held-out")[i] for i in random.integers(0, 3, count)],
        "truth": truth,
        "truth_pixels": [random.integers(1, 1000, len(labels)) for labels in truth],
    }


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of a cache directory but its derived index."""
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.is_file()}


def in_child(work: Callable[[], None]) -> int:
    """Exit status of `work` in a forked process: 0 where it returns, 1 where it raises."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture(name="make_source")
def make_source_fixture() -> Callable[..., Source]:
    return make_source


@pytest.fixture(name="files_of")
def files_of_fixture() -> Callable[[Path], dict[str, bytes]]:
    return files_of


@pytest.fixture(name="in_child")
def in_child_fixture() -> Callable[[Callable[[], None]], int]:
    return in_child


@pytest.fixture
def source() -> Source:
    return make_source()


@pytest.fixture
def committed(source: Source, tmp_path: Path) -> Path:
    """A finished cache of `source`."""
    source.write(tmp_path / "cache")
    return tmp_path / "cache"
