"""Matrices in MATLAB files, of both generations: version 5 (scipy reads it) and 7.3, which is HDF5."""

from __future__ import annotations

import importlib
import zlib
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.flaws import MissingMask


def matrix(path: Path, variable: str) -> np.ndarray:
    """A variable of a .mat file, [H, W], integers. Raises UserError, MissingMask."""
    if not path.exists():
        raise MissingMask(f"mask {path} does not exist; unpack the archive of the masks again")
    try:
        values = _version_7(path, variable) if h5py.is_hdf5(path) else _version_5(path, variable)
    except KeyError:
        raise UserError(f"mask {path} has no variable {variable}; see whether it belongs to this set") from None
    if values.ndim != 2 or values.dtype.kind not in "uif":
        seen = f"{values.ndim} dimensions of {values.dtype}"
        raise UserError(f"mask {path}: {variable} has {seen}, wanted a matrix of numbers; unpack that file again")
    return values.astype(np.int64)


def require_reader(path: Path) -> None:
    """Raises UserError where the file is there, needs scipy, and there is none: before thousands of files say so."""
    if path.exists() and not h5py.is_hdf5(path):
        _scipy_io()


def _version_7(path: Path, variable: str) -> np.ndarray:
    """HDF5 lists the columns of a MATLAB matrix as its rows."""
    try:
        with h5py.File(path) as file:
            return np.asarray(file[variable]).T
    except OSError as error:
        raise _damaged(path, error) from None


def _version_5(path: Path, variable: str) -> np.ndarray:
    io = _scipy_io()
    try:
        return np.asarray(io.loadmat(path, variable_names=[variable])[variable])
    except (io.matlab.MatReadError, OSError, ValueError, TypeError, zlib.error, NotImplementedError) as error:
        raise _damaged(path, error) from None


def _scipy_io() -> ModuleType:
    try:
        return importlib.import_module("scipy.io")
    except ModuleNotFoundError:
        raise UserError("MATLAB files need scipy, which is missing; pip install 'kappaseg[data]'") from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"mask {path} is damaged: {' '.join(str(error).split())}; unpack that file again")
