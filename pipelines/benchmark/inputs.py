"""What the steps of a benchmark read, as fingerprints, and what they run on. What is known is told without torch."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kappaseg_core.config import DataConfig, fingerprint
from kappaseg_core.errors import UserError
from kappaseg_core.files import file_sha256, write_text


@dataclass(frozen=True)
class Inputs:
    """data: fingerprint of both splits and of what their files mean.   classes: K."""

    data: str
    classes: int


def absolute(path: str) -> str:
    """The path from anywhere, because steps have other working directories; nothing stays nothing."""
    return os.path.abspath(path) if path else path


def read_inputs(data: DataConfig, out: Path) -> Inputs:
    """The inputs, from OUT/inputs.json where the files are the ones that were read then.

    Raises UserError for a data set that is not there.
    """
    file, seen = out / "inputs.json", fingerprint([asdict(data), stamps(data.root)])
    try:
        known: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    if known.get("seen") != seen:
        known = {"seen": seen, **opened(data)}
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(known) + "\n")
    return Inputs(known["data"], known["classes"])


@lru_cache(maxsize=16)
def weights_sha256(weights: str | None) -> str | None:
    """sha256 of a weight file; None for random numbers. Raises UserError where it is not there."""
    if weights is None:
        return None
    if not Path(weights).is_file():
        raise UserError(f"--backbone.weights {weights}: there is no such file; give the weight file, or none")
    return file_sha256(Path(weights))


def stamps(root: str) -> list[tuple[str, int, int]]:
    """Name, size and time of every file of a data set: where these are as before, so is what is in them."""
    if not root:
        return []
    top = Path(root)
    if not top.exists():
        raise UserError(f"data.root = {root!r} is not there; give the folder or file of the data set with --data.root")
    files = [top] if top.is_file() else [Path(folder, name) for folder, _, names in os.walk(top) for name in names]
    stats = [(file, file.stat() if file.exists() else file.lstat()) for file in files]  # a link may lead nowhere
    return sorted((str(file.relative_to(top)), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


def opened(data: DataConfig) -> dict[str, Any]:
    """What the scene sets say of themselves."""
    from kappaseg_core.scenes import open_scenes

    splits = {name: open_scenes(data, name) for name in (data.train, data.val)}
    prints = {name: [scenes.fingerprint(), list(scenes.image_ids)] for name, scenes in splits.items()}
    names = list(splits[data.train].class_names)
    meaning = {"kind": data.kind, "options": data.options, "classes": names}
    return {"data": fingerprint([prints, meaning]), "classes": len(names)}


def machine() -> dict[str, Any]:
    """What figures are made on, as far as it can be told without torch."""
    return {
        "cpu": line_of(Path("/proc/cpuinfo"), "model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [line_of(file, "Model") for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))],
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "timm", "ray")},
    }


def line_of(file: Path, key: str) -> str:
    """The value in the first line `key: value`; empty where there is none."""
    if not file.exists():
        return ""
    lines = file.read_text("utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of this source tree, with "-dirty" where files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    if not any((folder / ".git").exists() for folder in here.parents):
        return "unknown"
    words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return "unknown"
    return found.stdout.strip() or "unknown"
