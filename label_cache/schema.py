"""What a cache says about itself: what it was made from (`CacheKey`) and what it consists of (`Manifest`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from label_cache.errors import CacheError, reason

#: Version of the part and manifest layout. Readers refuse every other one.
SCHEMA_VERSION = 1
#: Name of the file whose presence makes a directory a cache. It is written last.
MANIFEST = "manifest.json"
_KIND = "kappaseg label cache"


def class_hash(names: Sequence[str]) -> str:
    """sha256 (hex) of the class names joined by line feeds: same names in the same order, same value."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def class_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """Where two class lists part, in words; empty where they are one."""
    for label, (old, new) in enumerate(zip(there, here, strict=False)):
        if old != new:
            return f"class {label} is {old!r} there and {new!r} here"
    return f"{len(there)} classes there and {len(here)} here" if len(there) != len(here) else ""


def short(digest: object) -> str:
    """The first 12 characters of a digest, enough to tell two of them apart in a message."""
    return str(digest)[:12]


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """Everything that the rows of a cache depend on. Two caches with equal keys hold the same rows.

    dataset: split name → fingerprint (hex) of the images of that split.
    classes: `class_hash` of the class names.      model: fingerprint (hex) of the classifier, of all N with folds.
    preprocess: fingerprint (hex) of size, interpolation and normalisation of the classifier's input.
    score_kind: what a score is; "sigmoid" = independent probability of each label.
    num_classes: K.      k: ranks stored per image, 1..K.      folds: N of N-fold out-of-fold ranking, 0 = none.
    """

    dataset: Mapping[str, str]
    classes: str
    model: str
    preprocess: str
    score_kind: str = "sigmoid"
    num_classes: int
    k: int
    folds: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset", dict(sorted(self.dataset.items())))
        if not self.dataset:
            raise CacheError("a cache needs at least one split; name the splits to rank")
        if not 1 <= self.k <= self.num_classes:
            raise CacheError(
                f"a cache cannot store {self.k} ranks of {self.num_classes} classes; choose 1 to {self.num_classes}"
            )

    def fingerprint(self) -> str:
        """sha256 (hex) of all fields and of the layout's version; every part carries it."""
        return hashlib.sha256(_json({"schema_version": SCHEMA_VERSION, **self.to_plain()}).encode()).hexdigest()

    def to_plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> CacheKey:
        return cls(**values)


def key_differences(stored: CacheKey, wanted: CacheKey) -> list[str]:
    """One phrase per field in which two keys differ, both sides named."""
    ours, theirs = _flat(stored), _flat(wanted)
    return [
        f"{name} is {short(ours.get(name, 'absent'))} there and {short(theirs.get(name, 'absent'))} here"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    ]


def _flat(key: CacheKey) -> dict[str, Any]:
    plain = key.to_plain()
    splits = {f"data set fingerprint of split {split}": value for split, value in plain.pop("dataset").items()}
    return splits | plain


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """One part file as the manifest lists it. first_id and last_id are the smallest and largest image id in it."""

    name: str
    split: str
    rows: int
    sha256: str
    bytes: int
    first_id: str
    last_id: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole cache: key, class names in order of label id, parts in order of split name and part number."""

    key: CacheKey
    class_names: tuple[str, ...]
    parts: tuple[PartEntry, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def splits(self) -> dict[str, range]:
        """Split → its rows, counted through all parts in order."""
        found: dict[str, range] = {}
        row = 0
        for part in self.parts:
            start = found[part.split].start if part.split in found else row
            row += part.rows
            found[part.split] = range(start, row)
        return found

    def to_json(self) -> str:
        values = {
            "kind": _KIND,
            "schema_version": self.schema_version,
            "fingerprint": self.key.fingerprint(),
            "key": self.key.to_plain(),
            "class_names": list(self.class_names),
            "parts": [dataclasses.asdict(part) for part in self.parts],
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest in a JSON text. Raises ValueError where the text contradicts itself or is of another layout."""
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("kind") != _KIND:
            raise ValueError(f"no `kind: {_KIND}`")
        if values["schema_version"] != SCHEMA_VERSION:
            raise UnknownLayout(f"layout version {values['schema_version']}, this program reads {SCHEMA_VERSION}")
        key = CacheKey.from_plain(values["key"])
        names = tuple(values["class_names"])
        parts = tuple(PartEntry(**part) for part in values["parts"])
        if key.fingerprint() != values["fingerprint"]:
            raise ValueError("the key does not give the fingerprint beside it")
        if class_hash(names) != key.classes or len(names) != key.num_classes:
            raise ValueError("the class names do not give the class hash beside them")
        if any(Path(part.name).name != part.name for part in parts) or {p.split for p in parts} != set(key.dataset):
            raise ValueError("the parts do not belong to the splits of the key")
        return cls(key=key, class_names=names, parts=parts)


class UnknownLayout(ValueError):
    """A manifest of another SCHEMA_VERSION: not damaged, so never to be overwritten unasked."""


def read_manifest(directory: Path) -> tuple[Manifest, str]:
    """The manifest of a cache and the sha256 (hex) of its bytes.

    Raises FileNotFoundError where there is none, CacheError where it is damaged or of another layout.
    """
    data = (directory / MANIFEST).read_bytes()
    try:
        manifest = Manifest.from_json(data.decode())
    except UnknownLayout as error:
        raise CacheError(f"cache {directory} has {error}; use the version of kappaseg that wrote it") from error
    except (ValueError, KeyError, TypeError, CacheError) as error:
        raise CacheError(
            f"{directory / MANIFEST} is damaged ({reason(error)}); delete it and run `kappaseg rank` again"
        ) from error
    return manifest, hashlib.sha256(data).hexdigest()


def _json(values: Any) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
