"""Ranked labels of images on disk: sorted Parquet parts, a manifest that is written last, an index for look-ups.

    cache = LabelCache.open("runs/x/cache", expect={"class_names": names})
    labels, scores = cache.lookup(["000000000139"], kappa=25)

Needs pyarrow and numpy, and nothing else of this project: whoever reads labels need not install a network.
"""

from __future__ import annotations

from label_cache.errors import CacheError
from label_cache.reader import Expectation, LabelCache, Lookup
from label_cache.rows import SOURCES, Columns
from label_cache.schema import SCHEMA_VERSION, CacheKey, Manifest, PartEntry, class_difference, class_hash
from label_cache.writer import CacheWriter, discard

__all__ = [
    "SCHEMA_VERSION",
    "SOURCES",
    "CacheError",
    "CacheKey",
    "CacheWriter",
    "Columns",
    "Expectation",
    "LabelCache",
    "Lookup",
    "Manifest",
    "PartEntry",
    "class_difference",
    "class_hash",
    "discard",
]
