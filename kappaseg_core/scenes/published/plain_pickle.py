"""Pickles of plain data, read without running anything that they name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kappaseg_core.errors import UserError


def read_plain_pickle(path: Path, advice: str) -> Any:
    """Containers, strings, numbers and NumPy arrays of a pickle. Raises UserError that ends in `advice`.

    A pickle is a program: it may name any function and have it called. Here the only ones that are found are those by
    which NumPy's arrays come back; another name ends the reading before anything of it is imported.
    """
    try:
        with path.open("rb") as file:
            return _Plain(file).load()
    except _Refused as error:
        raise UserError(f"{path} asks for {error}, which is not read from a pickle; {advice}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}; {advice}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path} is no whole pickle ({error!r}); {advice}") from None


class _Refused(Exception):
    """The name that a pickle asked for."""


def _encode(text: str, encoding: str) -> bytes:
    """What bytes are in pickles of protocol 2; any other codec is refused, since each is a module."""
    if encoding != "latin1":
        raise _Refused(f"the codec {encoding}")
    return text.encode("latin1")


def _empty(kind: type, shape: tuple[int, ...], dtype: bytes) -> np.ndarray:
    """An array before its state is set; `kind` is ndarray, the only class there is here."""
    return np.ndarray(shape, dtype.decode())


def _scalar(dtype: np.dtype, value: bytes) -> Any:
    return np.frombuffer(value, dtype)[0]


def _from_buffer(value: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(value, dtype).reshape(shape, order=order)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _empty
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the persistent object {pid}")
