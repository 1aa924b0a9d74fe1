"""Pickles are read as data: nothing that they name is run."""

from __future__ import annotations

import builtins
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kappaseg_core.errors import UserError
from kappaseg_core.scenes.published.plain_pickle import read_plain_pickle


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def written(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_arrays_come_back_from_every_protocol(protocol: int, tmp_path: Path) -> None:
    content = {
        "names": ["wall", "Süd", None, True],
        "more": (1, -2.5, 10**20, "x"),
        "counts": np.arange(6, dtype=np.float32).reshape(2, 3),
        "words": np.array(["a", "bc"], object),
        "letters": np.array(["a", "bc"]),
        "one": np.float64(0.5),
    }
    back = read_plain_pickle(written(tmp_path / "file.pkl", content, protocol), "advice")
    assert back["names"] == content["names"] and back["more"] == content["more"] and back["one"] == 0.5
    for key in ("counts", "words", "letters"):
        assert back[key].dtype == content[key].dtype and back[key].tolist() == content[key].tolist()


@pytest.mark.parametrize("where", ["top", "in a list", "in an array"])
@pytest.mark.parametrize("function", [os.system, builtins.eval, builtins.getattr, os.mkdir, np.load])
def test_a_pickle_that_calls_something_is_refused_by_name_and_runs_nothing(
    function: Any, where: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    argument = {os.system: f"touch {trace}", builtins.eval: f"open({str(trace)!r}, 'w')"}.get(function, str(trace))
    call = Call(function, argument)
    content = {"top": call, "in a list": ["wall", call], "in an array": np.array([call, call], object)}[where]
    with pytest.raises(UserError) as caught:
        read_plain_pickle(written(tmp_path / "file.pkl", content), "convert it")
    assert function.__name__ in str(caught.value) and str(caught.value).endswith("; convert it")
    assert not trace.exists()


def test_a_module_that_a_pickle_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "file.pkl").write_bytes(b"ctrap\nThing\n)R.")
    with pytest.raises(UserError, match=r"asks for trap\.Thing, which is not read from a pickle; convert it"):
        read_plain_pickle(tmp_path / "file.pkl", "convert it")
    assert not (tmp_path / "trace").exists()


def test_a_codec_other_than_latin1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.pkl").write_bytes(b"c_codecs\nencode\n(Vabc\nVzip\ntR.")
    with pytest.raises(UserError, match="asks for the codec zip"):
        read_plain_pickle(tmp_path / "file.pkl", "convert it")


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(["wall"] * 50)[:-20], b"Pname\n."])
def test_what_is_no_whole_pickle_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pkl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_plain_pickle(tmp_path / "file.pkl", "convert it")
    assert "file.pkl" in str(caught.value) and "\n" not in str(caught.value)
