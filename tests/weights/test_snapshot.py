"""Folders of transformers: which files are read, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kappaseg_core.errors import UserError
from kappaseg_core.weights.snapshot import read_snapshot
from pipelines.cli import main
from tests.weights.folders import NAMES, folder_of
from tests.weights.test_files import Code
from tests.weights.test_hf_upernet import upernet


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(upernet("convnext"), tmp_path_factory.mktemp("hf") / "theirs")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "theirs"
    copy.mkdir()
    for path in saved.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def changed(folder: Path, **more: Any) -> None:
    """Other values in config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | more
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_shards_and_pickled_state_dicts_hold_the_same_as_one_file(folder: Path) -> None:
    whole = read_snapshot(folder)
    before = whole.fingerprint
    assert whole.class_names == NAMES and [path.name for path in whole.files] == ["config.json", "model.safetensors"]
    names = sorted(whole.tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: whole.tensors[name] for name in some}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shards = read_snapshot(folder)
    assert len(shards.files) == 4 and shards.fingerprint != before
    (folder / "model.safetensors.index.json").unlink()
    torch.save(whole.tensors, folder / "pytorch_model.bin")
    for other in (shards, read_snapshot(folder)):
        assert other.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(other.tensors[name], value) for name, value in whole.tensors.items())


def test_the_fingerprint_is_of_every_file(folder: Path) -> None:
    before = read_snapshot(folder).fingerprint
    assert read_snapshot(folder).fingerprint == before
    changed(folder, pool_scales=[1, 3])
    assert read_snapshot(folder).fingerprint != before


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lost_shard(folder: Path) -> None:
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-7.safetensors"}}))


def foreign_shard(folder: Path) -> None:
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def empty_index(folder: Path) -> None:
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def pickle(folder: Path) -> None:
    no_weights(folder)
    torch.save({"a": torch.zeros(1), "b": Code(folder / "executed")}, folder / "pytorch_model.bin")


def unnamed_class(folder: Path) -> None:
    changed(folder, id2label={"0": "sky", "2": "road"})


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (no_config, ["holds no config.json"]),
        (no_json, ["config.json cannot be read as JSON"]),
        (no_object, ["config.json holds a list, wanted an object"]),
        (no_weights, ["holds no weights; wanted one of model.safetensors, "]),
        (lost_shard, ["model-7.safetensors does not exist"]),
        (foreign_shard, ["names '../other.safetensors', wanted a file of the same folder"]),
        (empty_index, ["lists no files (weight_map)"]),
        (pickle, ["which is more than tensors and could run code"]),
        (unnamed_class, ["id2label has no name for class 1 of 2"]),
    ],
)
def test_a_damaged_folder_is_one_line(folder: Path, damage: Any, wanted: list[str]) -> None:
    damage(folder)
    with pytest.raises(UserError) as caught:
        read_snapshot(folder)
    assert "\n" not in str(caught.value) and all(words in str(caught.value) for words in wanted), caught.value
    assert not (folder / "executed").exists()


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(UserError, match=r"is no folder; give the one that holds config\.json"):
        read_snapshot(folder / "model.safetensors")


def other_head(folder: Path) -> None:
    changed(folder, id2label={"0": "sky", "1": "road"})


def other_program(folder: Path) -> None:
    changed(folder, architectures=["SegformerForSemanticSegmentation"])


def other_backbone(folder: Path) -> None:
    changed(folder, backbone_config={"model_type": "focalnet"})


def no_names(folder: Path) -> None:
    changed(folder, id2label={str(number): f"LABEL_{number}" for number in range(5)})


def other_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["backbone_config"]
    changed(folder, backbone_config=config | {"hidden_act": "relu"})


def fewer_stages(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["backbone_config"]
    changed(folder, backbone_config=config | {"out_features": ["stage2", "stage4"]})


def lost_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["decode_head.classifier.bias"]
    save_file(tensors | {"surplus": torch.zeros(2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (other_head, ["names 2 classes (id2label), and the head beside it is for 5"]),
        (other_program, ["SegformerForSemanticSegmentation, wanted UperNetForSemanticSegmentation or "]),
        (other_backbone, ["its backbone is 'focalnet', wanted one of swin, maskformer-swin, convnext, resnet"]),
        (no_names, ["is for 5 classes, whose names have to be given: add --classes"]),
        (other_activation, ["its hidden_act is 'relu', and only 'gelu' can be taken over"]),
        (fewer_stages, ["its head reads stage2, stage4 of its convnext, wanted stage1, "]),
        (lost_tensor, ["1 missing, first host.classify.cls_bias (5)", "1 unknown, first surplus"]),
    ],
)
def test_a_network_that_cannot_be_taken_over_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: Any, wanted: list[str]
) -> None:
    damage(folder)
    assert main(["import-weights", "hf", str(folder), str(folder.parent / "out/stage2-hf")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(words in line for words in wanted), line
    assert not (folder.parent / "out").exists()
