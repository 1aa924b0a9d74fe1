"""Weight files of published networks → a network's parameters, all of them or an error."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kappaseg_core.errors import UserError

WRAPPERS = ("state_dict", "model")  # names under which training programs put the weights beside other things

Convert = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def load_weight_file(model: nn.Module, path: Path, *, name: str, convert: Convert, spare: Collection[str] = ()) -> None:
    """Fill `model` from a weight file; floating-point numbers become f32.

    convert: renames what older programs called otherwise.   spare: modules of a classifier (`fc`, `head.fc`); the file
    may hold them though the network has none. Raises UserError where the file cannot be read or does not fit.
    """
    tensors = read_weight_file(path)
    try:
        found = dict(convert(tensors))
    except (AttributeError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UserError(f"backbone.weights = {path} holds no weights of {name}: {one_line(error)}") from None
    wanted = model.state_dict()
    heads = tuple(f"{module}." for module in spare)
    found = {key: value for key, value in found.items() if key in wanted or not key.startswith(heads)}
    # counts steps of training; files without it (frozen batch norm) compute the same
    missing_counters = {
        key: value for key, value in wanted.items() if key not in found and key.endswith("num_batches_tracked")
    }
    found.update(missing_counters)
    if problem := first_misfit(found, wanted):
        raise UserError(
            f"backbone.weights = {path} does not fit {name}: {problem}; name the model that it was made for"
        )
    model.load_state_dict(found)


def first_misfit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing, misshaped or too many, in words; empty where all fit."""
    for key, tensor in wanted.items():
        if key not in found:
            return f"it has no {key} (wanted {shape(tensor)})"
        if found[key].shape != tensor.shape:
            return f"its {key} is {shape(found[key])}, wanted {shape(tensor)}"
    return next((f"its {key} ({shape(found[key])}) has no place" for key in found if key not in wanted), "")


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that torch.save wrote. Raises UserError."""
    if not path.is_file():
        raise UserError(f"backbone.weights = {path} does not exist or is no file; give a .safetensors or .pth file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"backbone.weights = {path} cannot be read ({one_line(error)}); give a .safetensors file or a state dict"
        ) from None
    return tensors_of(content, path)


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a file holds, as f32 and without the prefix that distributed training adds."""
    for _ in WRAPPERS:
        inner = [content[key] for key in WRAPPERS if isinstance(content, Mapping) and key in content]
        content = next((value for value in inner if isinstance(value, Mapping)), content)
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"backbone.weights = {path} holds no named tensors; give a .safetensors file or a state dict")
    named = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if all(key.startswith("module.") for key in named):
        named = {key.removeprefix("module."): value for key, value in named.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in named.items()}


def shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if 0 < len(text) <= 200 else f"{type(error).__name__} {text[:200]}".strip()
