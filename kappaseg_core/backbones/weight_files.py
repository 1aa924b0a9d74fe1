"""Weight files of published networks → a network's parameters, all of them or an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from kappaseg_core.errors import UserError
from kappaseg_core.weights.files import one_line, read_weights
from kappaseg_core.weights.renaming import COUNTER, shape

Convert = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def load_weight_file(model: nn.Module, path: Path, *, name: str, convert: Convert, spare: Collection[str] = ()) -> None:
    """Fill `model` from a weight file; floating-point numbers become f32.

    convert: renames what older programs called otherwise.   spare: modules of a classifier (`fc`, `head.fc`); the file
    may hold them though the network has none. Raises UserError where the file cannot be read or does not fit.
    """
    called = f"backbone.weights = {path}"
    found = converted(read_weights(path, called=called, which="raw").tensors, convert, called=called, name=name)
    wanted = model.state_dict()
    heads = tuple(f"{module}." for module in spare)
    found = {key: value for key, value in found.items() if key in wanted or not key.startswith(heads)}
    found |= {key: value for key, value in wanted.items() if key not in found and key.endswith(COUNTER)}
    if problem := first_misfit(found, wanted):
        raise UserError(
            f"backbone.weights = {path} does not fit {name}: {problem}; name the model that it was made for"
        )
    model.load_state_dict(found)


def converted(tensors: dict[str, Tensor], convert: Convert, *, called: str, name: str) -> dict[str, Tensor]:
    """The tensors under the names of the network `name`. Raises UserError where they are of quite another one."""
    try:
        return dict(convert(tensors))
    except (AttributeError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UserError(f"{called} holds no weights of {name}: {one_line(error)}") from None


def first_misfit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first tensor that is missing, misshaped or too many, in words; empty where all fit."""
    for key, tensor in wanted.items():
        if key not in found:
            return f"it has no {key} (wanted {shape(tensor)})"
        if found[key].shape != tensor.shape:
            return f"its {key} is {shape(found[key])}, wanted {shape(tensor)}"
    return next((f"its {key} ({shape(found[key])}) has no place" for key in found if key not in wanted), "")
