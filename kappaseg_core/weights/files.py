"""The tensors in a file that another program wrote. No code of a file is ever run.

safetensors hold tensors alone. What torch.save wrote is a pickle, and is read with torch's `weights_only`, which makes
tensors and plain values and refuses everything else. NumPy arrays (.npz) are read without pickles.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kappaseg_core.errors import UserError

Which = Literal["raw", "ema"]

#: names under which training programs put the weights beside other things; averaged ones have names of their own
WRAPPERS: dict[Which, tuple[str, ...]] = {
    "raw": ("state_dict", "model"),
    "ema": ("state_dict_ema", "model_ema", "ema_state_dict"),
}
DEPTH = 2  # {"model": {"state_dict": …}} is met, deeper nesting is not
#: what reading a file of another kind, or a damaged one, is known to end in
UNREADABLE = (
    SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError,
    AttributeError, AssertionError, struct.error, BadZipFile,
)  # fmt: skip


class Lost:
    """Stands in a pickle for what programs put beside the weights: whatever the file says of it is thrown away.

    NumPy numbers (Query2Label's `best_mAP`), NumPy arrays (the palette in mmcv's `meta`, where a data set has none of
    its own), and the words of the command line (timm's `args`).
    """

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


BESIDE: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
BESIDE = [
    *((Lost, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    (Lost, "numpy.dtype"), (Lost, "numpy.ndarray"), (Lost, "argparse.Namespace"),
]  # fmt: skip


@dataclass(frozen=True)
class WeightFile:
    """tensors: floating-point numbers as f32, under the file's names without a common `module.`.

    which: the copy of the weights that was taken, where the file says it.   parallel: whether the names began with
    `module.`, which distributed training adds.   class_names: those that mmcv's programs put into `meta`; else None.
    """

    tensors: dict[str, Tensor]
    which: Which = "raw"
    parallel: bool = False
    class_names: tuple[str, ...] | None = None


def read_weights(path: Path, *, called: str = "", which: Which | None = None) -> WeightFile:
    """The state dict in a .safetensors file or in one of torch.save. Raises UserError.

    called: what the file is in messages; empty = its path.
    which: the weights as trained (raw) or averaged (ema); None = the only ones there are.
    """
    called = called or str(path)
    content = read_content(path, called)
    chosen, taken = unwrapped(content, called, which)
    if not isinstance(chosen, Mapping) or not any(isinstance(value, Tensor) for value in chosen.values()):
        raise UserError(f"{called} holds no named tensors; give a .safetensors file or a state dict")
    named = {str(key): value for key, value in chosen.items() if isinstance(value, Tensor)}
    parallel = all(key.startswith("module.") for key in named)
    if parallel:
        named = {key.removeprefix("module."): value for key, value in named.items()}
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in named.items()}
    return WeightFile(tensors, taken, parallel, names_in(content))


def read_content(path: Path, called: str) -> Any:
    """Whatever a file holds. Raises UserError where it cannot be read, or not without running code of it."""
    if not path.is_file():
        raise UserError(f"{called} does not exist or is no file; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(BESIDE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of newer pickle protocols, which are read, or end in an error
            return torch.load(path, "cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(f"{called} cannot be read ({reason_of(error)})") from None


def reason_of(error: Exception) -> str:
    """Why a file could not be read, and what to do."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked is None:
        return f"{one_line(error)}; give a .safetensors file or a state dict"
    return (
        f"it asks for {asked[1]}, which is more than tensors and could run code; where you trust the file, save its "
        "state dict alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW), or ['model']"
    )


def unwrapped(content: Any, called: str, which: Which | None) -> tuple[Any, Which]:
    """The state dict inside what a file holds, and which copy it is. Raises UserError where `which` is not decided."""
    there = [kind for kind in WRAPPERS if inner(content, kind) is not None]
    if which is None and len(there) > 1:
        raise UserError(f"{called} holds weights as trained and averaged ones; add --weights raw or --weights ema")
    taken: Which = which or (there[0] if there else "raw")
    if taken == "ema" and "ema" not in there:
        raise UserError(
            f"{called} has no averaged weights ({', '.join(WRAPPERS['ema'])}); leave out --weights to take those it has"
        )
    content = content if inner(content, taken) is None else inner(content, taken)
    for _ in range(DEPTH - 1):
        deeper = inner(content, "raw")
        content = content if deeper is None else deeper
    return content, taken


def inner(content: Any, kind: Which) -> Mapping[Any, Any] | None:
    """The weights of that kind beside other things; None where `content` does not hold them so."""
    if not isinstance(content, Mapping):
        return None
    return next((content[key] for key in WRAPPERS[kind] if isinstance(content.get(key), Mapping)), None)


def names_in(content: Any) -> tuple[str, ...] | None:
    """The class names in mmcv's `meta`; None where there are none."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, list | tuple) else None


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file, as f32 where they are floating-point numbers. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file; give an .npz file")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as .npz ({one_line(error)}); give the published .npz file") from None
    return {name: value.float() if value.is_floating_point() else value for name, value in arrays.items()}


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if 0 < len(text) <= 200 else f"{type(error).__name__} {text[:200]}".strip()
