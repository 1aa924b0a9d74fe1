"""Run directories: a network comes back as it was saved, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from kappaseg_core.checkpoint import (
    RunDirectory,
    State,
    Summary,
    load_model,
    load_weights,
    open_run,
    read_record,
    run_fingerprint,
    save_weights,
)
from kappaseg_core.errors import UserError
from kappaseg_core.files import new_folder, write_atomic, write_text

CONFIG = {"width": 4, "out": "somewhere", "loop": {"seed": 1, "loader_workers": 0, "save_every": 5}}
NAMES = ("cat", "dog")
SUMMARY = Summary("run", 3, 1.5, 20, {"mIoU": 0.25}, 3, 10, 10)


def build_model(config: dict[str, Any], class_names: tuple[str, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(config["width"], len(class_names)), nn.BatchNorm1d(len(class_names)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    network = build_model(CONFIG, NAMES)
    network(torch.randn(5, 4))  # moves the batch-norm statistics
    return network


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return opened(tmp_path / "run")


@pytest.fixture
def finished(run: RunDirectory, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    run.finish(model, SUMMARY)
    monkeypatch.setattr("kappaseg_core.checkpoint.importlib.import_module", {"the.model": Builder}.__getitem__)
    yield run.path


class Builder:
    build_model = staticmethod(build_model)


def opened(path: Path, config: Any = CONFIG, **inputs: str) -> RunDirectory:
    return open_run(path, model="the.model", config=config, class_names=NAMES, inputs=inputs)


def test_a_finished_run_gives_its_network_back(finished: Path, model: nn.Module) -> None:
    loaded, record = load_model(finished)
    assert not loaded.training
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (record["config"], record["class_names"]) == (CONFIG, list(NAMES))
    assert RunDirectory(finished).summary() == SUMMARY


def test_an_unfinished_run_is_not_loaded(run: RunDirectory, model: nn.Module) -> None:
    save_weights(model, run.path / "weights.safetensors")
    with pytest.raises(UserError, match="is not complete; start the same training command again"):
        load_model(run.path)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "", "just words"])
def test_a_damaged_record_is_named(run: RunDirectory, text: str) -> None:
    (run.path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml is damaged"):
        read_record(run.path)


def test_weights_of_another_network_are_refused(tmp_path: Path, model: nn.Module) -> None:
    """Other names, missing ones and other shapes."""
    path = tmp_path / "weights.safetensors"
    save_weights(model, path)
    wider = nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2))
    with pytest.raises(UserError, match=r"1 of 7 tensors differ, first 0\.weight"):
        load_weights(wider, path)
    with pytest.raises(UserError, match=r"5 of 2 tensors differ, first 1\."):
        load_weights(nn.Sequential(nn.Linear(4, 2)), path)
    save_weights(nn.Sequential(nn.Linear(4, 2)), path)
    with pytest.raises(UserError, match=r"5 of 7 tensors differ, first 1\."):
        load_weights(model, path)


def test_damaged_and_missing_weights_are_named(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match="does not exist; run the training again"):
        load_weights(model, path)
    save_weights(model, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="is damaged"):
        load_weights(model, path)


def test_a_saved_moment_comes_back(run: RunDirectory) -> None:
    assert run.load_state() is None
    assert not run.has_progress
    state = State(7, {"model/a": torch.arange(6.0).view(2, 3).T, "optim/0/step": torch.tensor(3.0)}, {"best": 0.1})
    run.save_state(state)
    found = run.load_state()
    assert run.has_progress
    assert found is not None
    assert (found.step, found.numbers) == (7, {"best": 0.1})
    assert all(torch.equal(found.tensors[name], state.tensors[name]) for name in state.tensors)


def test_a_damaged_moment_is_named(run: RunDirectory) -> None:
    run.save_state(State(7, {"a": torch.ones(20)}))
    path = run.path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"state\.safetensors is damaged .* delete .* and start the run again"):
        run.load_state()


def test_the_fingerprint_follows_weights_and_settings_and_not_the_place(
    finished: Path, tmp_path: Path, model: nn.Module
) -> None:
    same = opened(tmp_path / "moved", {**CONFIG, "out": "elsewhere"})
    same.finish(model, replace(SUMMARY, seconds=99.0))
    assert run_fingerprint(same.path) == run_fingerprint(finished)
    other = opened(tmp_path / "seed", {**CONFIG, "loop": {"seed": 2}})
    other.finish(model, SUMMARY)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6  # type: ignore[index]
    changed = opened(tmp_path / "weights")
    changed.finish(model, SUMMARY)
    assert len({run_fingerprint(path) for path in (finished, other.path, changed.path)}) == 3


def test_other_inputs_are_another_run(run: RunDirectory) -> None:
    run.save_state(State(1, {"a": torch.ones(1)}))
    with pytest.raises(UserError, match=r"inputs\.train is None there, 'abc' here"):
        opened(run.path, train="abc")
    assert read_record(run.path)["inputs"] == {}


def with_progress(tmp_path: Path, config: dict[str, Any]) -> None:
    opened(tmp_path / "run", config).save_state(State(1, {}))


def test_a_setting_that_is_younger_than_a_run_may_have_the_value_of_before(tmp_path: Path) -> None:
    with_progress(tmp_path, {"lr": 0.1})
    opened(tmp_path / "run", {"lr": 0.1, "compile": False, "negatives": None})
    with pytest.raises(UserError, match="compile is None there, True here"):
        opened(tmp_path / "run", {"lr": 0.1, "compile": True})


def test_an_option_that_was_not_given_is_not_zero(tmp_path: Path) -> None:
    """Its default may be another: labels.options.dropout is 0.1 where it is left out."""
    with_progress(tmp_path, {"labels": {"options": {"heads": 2}}})
    with pytest.raises(UserError, match=r"labels\.options\.dropout is None there, 0 here"):
        opened(tmp_path / "run", {"labels": {"options": {"heads": 2, "dropout": 0}}})
    opened(tmp_path / "run", {"labels": {"options": {"heads": 2, "chunk": None}}})


def test_many_differences_are_counted(run: RunDirectory) -> None:
    run.save_state(State(1, {"a": torch.ones(1)}))
    with pytest.raises(UserError, match=r"\(and 1 more\); choose another --out"):
        opened(run.path, {"width": 5, "a": 1, "b": 2, "loop": {"seed": 1}, "c": 3})


def test_logged_steps_after_the_saved_moment_are_forgotten(run: RunDirectory) -> None:
    for step in (2, 4, 6):
        run.add_metrics({"step": step, "loss": 1 / step})
    run.keep_metrics_until(4)
    assert [line["step"] for line in run.metrics()] == [2, 4]


def test_a_record_survives_odd_class_names(tmp_path: Path) -> None:
    names = ("Wörter: mit #", "yes", "1.0", "null", "a\tb")
    open_run(tmp_path / "r", model="the.model", config={}, class_names=names, inputs={})
    assert tuple(read_record(tmp_path / "r")["class_names"]) == names
    assert yaml.safe_load((tmp_path / "r" / "run.yaml").read_text("utf-8"))["class_names"] == list(names)


def test_a_failed_write_leaves_the_last_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "no space")

    with pytest.raises(UserError, match=r"cannot write .*file: the disk is full"):
        write_atomic(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "bank") as folder:
        (folder / "part").write_text("x")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "bank") as folder:
        (folder / "part").write_text("x")
        assert not (tmp_path / "bank").exists()
    assert [p.name for p in (tmp_path / "bank").iterdir()] == ["part"]
    assert [p.name for p in tmp_path.iterdir()] == ["bank"]


def test_a_run_says_which_classes_have_objects_where_it_learns_them(tmp_path: Path) -> None:
    def begin(things: tuple[bool, ...] | None) -> RunDirectory:
        return open_run(tmp_path / "run", model="the.model", config=CONFIG, class_names=NAMES, inputs={}, things=things)

    run = begin((False, True))
    assert read_record(run.path)["things"] == ["dog"]
    run.save_state(State(1, {}))
    with pytest.raises(UserError, match=r"things is \['dog'\] there, \['cat', 'dog'\] here"):
        begin((True, True))
    with pytest.raises(UserError, match=r"things is \['dog'\] there, None here"):
        begin(None)
