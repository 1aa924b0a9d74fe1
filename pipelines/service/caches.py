"""Label caches that are looked up while they may be replaced. No torch here."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter
from pydantic_core import to_json

from label_cache import SOURCES, CacheError, Expectation, LabelCache
from label_cache.index import Index
from label_cache.schema import MANIFEST, read_manifest
from pipelines.service.problems import Problem, come_back
from pipelines.service.watch import Watch

_log = logging.getLogger("kappaseg.service")

Texts = NDArray[np.object_]


@cache
def score_texts() -> Texts:
    """The JSON of every score: by the bits of its float16, the shortest decimal that gives it back."""
    bits = np.arange(0x3C00 + 1, dtype=np.uint16)  # 0.0 to 1.0
    return np.array([str(score) for score in bits.view(np.float16)], object)


def decimals(scores: NDArray[np.float32]) -> list[float]:
    """Scores that float16 can hold, each as the shortest decimal that gives it back: 0.998, not 0.998046875."""
    return [float(text) for text in score_texts()[scores.astype(np.float16).view(np.uint16)]]


@dataclass(frozen=True)
class Generation:
    """A cache as it was at one moment: its rows stay readable when the directory is written anew."""

    cache: LabelCache
    index: Index
    ids: Texts
    names: Texts

    @classmethod
    def of(cls, cache: LabelCache) -> Generation:
        names = [to_json(name).decode() for name in cache.class_names]
        ids = [str(label) for label in range(cache.num_classes)]
        return cls(cache, cache.index, np.array(ids, object), np.array(names, object))

    @property
    def version(self) -> str:
        return self.cache.digest

    def kappa(self, asked: int | None) -> int:
        """Ranks to give. Raises Problem for more than are stored."""
        if asked is not None and asked > self.cache.k:
            raise Problem(
                422, f"kappa: {asked}, the cache stores {self.cache.k} ranks per image", field="kappa",
                limit=self.cache.k,
            )  # fmt: skip
        return self.cache.k if asked is None else asked

    def row_json(self, name: str, image_id: str, row: int, kappa: int) -> bytes:
        """One row as the JSON of records.CachedLabels."""
        labels = self.index.labels[row, :kappa]
        scores = self.index.scores[row, :kappa].view(np.uint16)
        text = (
            f'{{"image_id":{to_json(image_id).decode()},"cache":{to_json(name).decode()},"version":"{self.version}",'
            f'"source":"{SOURCES[self.index.sources[row]]}","kappa":{kappa},"ids":[{joined(self.ids, labels)}],'
            f'"names":[{joined(self.names, labels)}],"scores":[{joined(score_texts(), scores)}]}}'
        )
        return text.encode()

    def rows_json(self, name: str, image_ids: Sequence[str], kappa: int) -> tuple[bytes, int]:
        """Many rows as the JSON of records.CachedBatch, and how many of the ids are not there."""
        rows = self.index.rows_of(image_ids)
        there = rows >= 0
        missing = [image_id for image_id, found in zip(image_ids, there, strict=True) if not found]
        if missing:
            image_ids = [image_id for image_id, found in zip(image_ids, there, strict=True) if found]
            rows = rows[there]
        labels = self.ids[self.index.labels[rows, :kappa]]
        scores = score_texts()[self.index.scores[rows, :kappa].view(np.uint16)]
        sources = [SOURCES[code] for code in self.index.sources[rows].tolist()]
        head = to_json({"cache": name, "version": self.version, "kappa": kappa, "image_ids": image_ids,
                        "missing": missing, "source": sources})  # fmt: skip
        text = f',"ids":[{json_rows(labels)}],"scores":[{json_rows(scores)}]}}'
        return head[:-1] + text.encode(), len(missing)


def joined(texts: Texts, places: NDArray[Any]) -> str:
    """Some of the texts, separated by commas; three times in a look-up, and this way takes half the time of others."""
    return ",".join(texts.take(places).tolist())


def json_rows(texts: Texts) -> str:
    return ",".join(f"[{','.join(row)}]" for row in texts.tolist())


class ServedCache:
    """A named cache directory, followed through its generations.

    `refresh` is called from a thread, at the start and then every second or so. A new generation is taken over whole,
    once it is complete and checked; until then the old one answers. A part that is damaged or gone, or a new
    generation with other classes, makes the cache unready, with the reason, until that is mended.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path.absolute()  # whole, to be found in messages and left out of them
        self.now: Generation | None = None
        self.fault: str | None = "not opened yet"
        self._seen: object = None
        self._missing = False  # whether the directory was away at the last look
        self._counters: tuple[Counter, Counter] | None = None

    def current(self) -> Generation:
        """What answers now. Raises Problem (503) with the reason where nothing may."""
        if self.fault is not None or self.now is None:
            raise come_back(f"cache {self.name} is not ready: {self.fault}", seconds=5)
        return self.now

    def count(self, watch: Watch, *, found: int, missing: int) -> None:
        if self._counters is None:
            self._counters = watch.lookups.labels(self.name, "yes"), watch.lookups.labels(self.name, "no")
        for counter, times in zip(self._counters, (found, missing), strict=True):
            if times:
                counter.inc(times)

    def refresh(self, class_names: tuple[str, ...] | None = None) -> None:
        """Take over a new generation, notice damage. class_names: those that it has to have."""
        seen = self._look()
        missing, self._missing = self._missing, seen is None and not self.path.is_dir()
        if seen is not None and seen == self._seen:
            return
        if seen is None and self.now is not None and not (missing and self._missing):
            return  # being written anew; between two renames a whole directory may be away for a moment
        try:
            found = LabelCache.open(self.path, expect=Expectation(class_names=class_names) if class_names else None)
            generation = Generation.of(found)
        except CacheError as error:
            if self._look() != seen:
                return  # written anew at this moment; look again
            told = self._told(error)
            if self.now is not None and told != self.fault:  # at the start whoever started it is told
                _log.error("cache %s is not ready: %s", self.name, error)
            self._seen, self.fault = seen, told
            return
        if self.now is None or self.now.version != generation.version:
            _log.info("cache %s: %d images, version %s", self.name, len(found), generation.version[:12])
        self._seen, self.now, self.fault = seen, generation, None

    def _look(self) -> object:
        """What tells an untouched directory: manifest and parts, with size and time. None without a manifest."""
        try:
            manifest, digest = read_manifest(self.path)
        except CacheError as error:
            return str(error)
        except OSError:
            return None
        names = [MANIFEST, *(part.name for part in manifest.parts)]
        return digest, tuple(stamp(self.path / name) for name in names)

    def _told(self, error: CacheError) -> str:
        """The error without the place of the directory, which is nobody's business outside."""
        return str(error).replace(f"cache {self.path}", "it").replace(f"{self.path}{os.sep}", "").replace(
            str(self.path), "it"
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """For records.CacheInfo."""
        told: dict[str, Any] = {"name": self.name, "ready": self.fault is None, "reason": self.fault}
        if self.now is not None:
            cache = self.now.cache
            told |= {"version": cache.digest, "images": len(cache), "splits": list(cache.splits), "kappa": cache.k,
                     "num_classes": cache.num_classes, "model": cache.key.model, "folds": cache.key.folds}  # fmt: skip
        return told


def stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns  # a copied file may keep its old mtime
