"""Reading files of others: the tensors, whatever stands around them, and never any code."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.weights.files import read_arrays, read_weights

RAW, EMA = torch.arange(3.0), torch.arange(3.0) + 10


def saved(folder: Path, content: Any, name: str = "file.pth", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def error_of(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"state_dict": state, "meta": {"epoch": 3}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
)
def test_the_state_dict_is_found_inside_what_programs_put_around_it(tmp_path: Path, wrap: Any) -> None:
    state = {"a.weight": RAW, "b": RAW.half()}
    found = read_weights(saved(tmp_path, wrap(state))).tensors
    assert {name: (value.tolist(), value.dtype) for name, value in found.items()} == {
        "a.weight": ([0.0, 1.0, 2.0], torch.float32), "b": ([0.0, 1.0, 2.0], torch.float32),
    }  # fmt: skip


def test_the_prefix_of_distributed_training_is_told(tmp_path: Path) -> None:
    file = read_weights(saved(tmp_path, {"state_dict": {"module.a": RAW}}))
    assert file.parallel and set(file.tensors) == {"a"}
    assert not read_weights(saved(tmp_path, {"state_dict": {"module.a": RAW, "b": RAW}})).parallel


def test_which_copy_is_meant_has_to_be_said_where_there_are_two(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"a": RAW}, "state_dict_ema": {"a": EMA}})
    assert "add --weights raw or --weights ema" in error_of(lambda: read_weights(path))
    assert read_weights(path, which="raw").tensors["a"].tolist() == RAW.tolist()
    assert read_weights(path, which="ema").tensors["a"].tolist() == EMA.tolist()
    only = saved(tmp_path, {"model_ema": {"a": EMA}}, "ema.pth")
    assert read_weights(only).tensors["a"].tolist() == EMA.tolist() and read_weights(only).which == "ema"


def test_averaged_weights_that_are_not_there_are_not_replaced_by_others(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"a": RAW}})
    assert "has no averaged weights" in error_of(lambda: read_weights(path, which="ema"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_numpy_number_beside_the_weights_is_passed_over(tmp_path: Path, legacy: bool) -> None:
    """Query2Label's checkpoint.pkl: best_mAP is an np.float64."""
    content = {"epoch": 5, "arch": "q2l", "state_dict": {"a": RAW}, "best_mAP": np.float64(90.5)}
    path = saved(tmp_path, content, "checkpoint.pkl", _use_new_zipfile_serialization=not legacy)
    assert read_weights(path).tensors["a"].tolist() == RAW.tolist()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_palette_of_mmcv_and_the_command_line_of_timm_are_passed_over(tmp_path: Path, legacy: bool) -> None:
    """mmsegmentation draws the colours of a data set without a palette as an array; timm saves its parsed arguments."""
    meta = {"CLASSES": ("sky", "road"), "PALETTE": np.arange(6).reshape(2, 3)}
    content = {"state_dict": {"a": RAW}, "meta": meta, "args": Namespace(lr=0.1, opt=Namespace(name="sgd"))}
    file = read_weights(saved(tmp_path, content, _use_new_zipfile_serialization=not legacy))
    assert file.tensors["a"].tolist() == RAW.tolist() and file.class_names == ("sky", "road")


def test_class_names_of_mmcv_are_found(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": {"a": RAW}, "meta": {"CLASSES": ("sky", "road"), "mmseg_version": "0.17"}})
    assert read_weights(path).class_names == ("sky", "road")


class Code:
    """Its pickle opens a file for writing when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_of_a_file_is_run_and_what_it_asks_for_is_named(tmp_path: Path, legacy: bool) -> None:
    target = tmp_path / "executed"
    path = saved(
        tmp_path, {"state_dict": {"a": RAW}, "x": Code(target)}, _use_new_zipfile_serialization=not legacy
    )  # fmt: skip
    message = error_of(lambda: read_weights(path))
    assert "open, which is more than tensors and could run code" in message and "weights_only=False" in message
    assert not target.exists()


def test_a_plain_pickle_is_not_run_either(tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"a": Code(target)}))
    assert "cannot be read" in error_of(lambda: read_weights(path))
    assert not target.exists()


def test_a_stand_in_for_numpy_numbers_runs_nothing_given_to_it(tmp_path: Path) -> None:
    """What is let through takes any arguments and throws them away: nothing inside them is called."""
    target = tmp_path / "executed"

    class Number:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, (Code(target),)

    path = saved(tmp_path, {"state_dict": {"a": RAW}, "best": Number()})
    assert "cannot be read" in error_of(lambda: read_weights(path))
    assert not target.exists()


def test_numpy_numbers_are_let_through_while_a_file_is_read_and_not_longer(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    read_weights(saved(tmp_path, {"a": RAW, "best_mAP": np.float64(1)}))
    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("content", [b"", b"not a file of weights", b"PK\x03\x04 broken", b"\x80\x02}q\x00."])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("file.pth", "file.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert name in error_of(lambda name=name: read_weights(tmp_path / name))  # type: ignore[misc]
    (tmp_path / "file.npz").write_bytes(content)
    assert "cannot be read as .npz" in error_of(lambda: read_arrays(tmp_path / "file.npz"))


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {"epoch": 3}}, RAW])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    assert "holds no named tensors" in error_of(lambda: read_weights(saved(tmp_path, content)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in error_of(lambda: read_weights(tmp_path / "no.pth"))
    assert "does not exist" in error_of(lambda: read_arrays(tmp_path / "no.npz"))
    assert "is no file" in error_of(lambda: read_weights(tmp_path))


def test_safetensors_are_read(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"a": RAW, "steps": torch.tensor(3)}
    save_file(tensors, tmp_path / "file.safetensors")
    found = read_weights(tmp_path / "file.safetensors").tensors
    assert found["a"].tolist() == RAW.tolist() and found["steps"].dtype == torch.int64


def test_arrays_of_objects_are_refused_because_they_are_pickles(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    np.savez(tmp_path / "file.npz", a=np.array([Code(target)], dtype=object))
    assert "cannot be read as .npz" in error_of(lambda: read_arrays(tmp_path / "file.npz"))
    assert not target.exists()
