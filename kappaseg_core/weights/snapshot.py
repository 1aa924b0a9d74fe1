"""A network's folder as transformers writes it: config.json beside the weights, in one file or in several.

Of the program itself nothing is needed: the folder is read as what it is, JSON and tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.files import file_sha256
from kappaseg_core.weights.files import WeightFile, Which, read_weights

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
#: names of the weights, the first that is there is taken; an index lists files that hold a part each
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls classes that were never named


@dataclass(frozen=True)
class Snapshot(WeightFile):
    """config: what config.json says.   preprocessing: the same of images, empty where the folder does not say it.

    class_names: in order of ids, None where the classes were never named.   files: everything that was read.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over the names and contents of all files."""
        lines = [f"{path.name} {file_sha256(path)}\n" for path in sorted(self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_snapshot(folder: Path, *, which: Which | None = None) -> Snapshot:
    """Settings and tensors in a folder. Raises UserError where something is missing, or holds more than tensors."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the one that holds {CONFIG} and the weights")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no {CONFIG}; give the folder that save_pretrained wrote")
    config, preprocessing = read_json(folder / CONFIG), folder / PREPROCESSING
    weights, index = weight_files(folder)
    read = [read_weights(path, which=which) for path in weights]
    there = [preprocessing] if preprocessing.is_file() else []
    return Snapshot(
        {name: value for file in read for name, value in file.tensors.items()}, read[0].which,
        class_names=class_names(config, folder), config=config,
        preprocessing=read_json(preprocessing) if there else {},
        files=(folder / CONFIG, *there, *index, *weights),
    )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, wanted an object of settings")
    return found


def weight_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files that hold the tensors, and the index that lists them where there is one. Raises UserError."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no weights; wanted one of {', '.join(WEIGHTS)}")
    if path.suffix != ".json":
        return [path], []
    parts = read_json(path).get("weight_map")
    if not isinstance(parts, Mapping) or not parts:
        raise UserError(f"{path} lists no files (weight_map); fetch the folder again")
    names = sorted({str(name) for name in parts.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise UserError(f"{path} names {outside[0]!r}, wanted a file of the same folder")
    return [folder / name for name in names], [path]


def class_names(config: Mapping[str, Any], folder: Path) -> tuple[str, ...] | None:
    """The names in id2label, in order of ids; None where there are none. Raises UserError where an id has no name."""
    named = config.get("id2label")
    if not isinstance(named, Mapping) or not named:
        return None
    names = tuple(str(named.get(str(number), "")) for number in range(len(named)))
    if "" in names:
        raise UserError(f"{folder / CONFIG}: id2label has no name for class {names.index('')} of {len(names)}")
    return None if all(UNNAMED.fullmatch(name) for name in names) else names
