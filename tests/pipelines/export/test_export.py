"""`kappaseg export`: what it writes, that others can use it, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from kappaseg_core.checkpoint import run_fingerprint
from pipelines.cli import main
from pipelines.export import check, formats
from pipelines.export import run as export

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "export.md").read_text("utf-8")
K, KAPPA, SIDE = 4, 2, 32  # of the chain in conftest
RUNS = {"classifier": "stage1", "segmenter": "stage2-cache"}
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


@pytest.fixture(scope="module")
def sharp(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain with weights under which maps have more than one label. Not to be changed."""
    home = tmp_path_factory.mktemp("sharp") / "home"
    shutil.copytree(finished.home, home)
    generator = torch.Generator().manual_seed(10)
    for run in RUNS.values():
        file = home / "out" / run / "weights.safetensors"
        weights = load_file(file)
        for name in sorted(weights):
            if weights[name].ndim > 1:
                nn.init.kaiming_normal_(weights[name], nonlinearity="relu", generator=generator)
        save_file(weights, file)
    return home


@pytest.fixture(scope="module")
def exported(sharp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """classifier-onnx, segmenter-onnx, classifier-torch-export, segmenter-torch-export. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    for kind, run in RUNS.items():
        for form in SUFFIXES:
            to = str(folder / f"{kind}-{form}")
            assert main(["export", str(sharp / "out" / run), "--format", form, "--to", to]) == 0
    return folder


def example(number: int) -> str:
    """A program of the document."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[number]


def photo(path: Path, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    """A picture of coloured fields, H × W."""
    fields = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(fields).resize(size[::-1], Image.Resampling.NEAREST).save(path)


def label_map(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


# What is written


@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("kind", RUNS)
def test_a_folder_holds_the_network_its_card_and_its_class_names(
    exported: Path, sharp: Path, kind: str, form: str
) -> None:
    folder = exported / f"{kind}-{form}"
    assert {path.name for path in folder.iterdir()} == {f"{kind}{SUFFIXES[form]}", "export.json", "classes.txt"}
    assert (folder / "classes.txt").read_text() == (sharp / "data" / "classes.txt").read_text()
    card = json.loads((folder / "export.json").read_text("utf-8"))
    assert (card["kind"], card["format"], card["file"]) == (kind, form, f"{kind}{SUFFIXES[form]}")
    assert (card["run"], card["fingerprint"]) == (RUNS[kind], run_fingerprint(sharp / "out" / RUNS[kind]))
    assert (card["classes"], card["kappa"]) == (K, {"classifier": K, "segmenter": KAPPA}[kind])
    assert (card["image"]["size"], card["image"]["mean"], card["image"]["std"]) == ([SIDE] * 2, [0.5] * 3, [0.25] * 3)
    assert 0 <= max(card["check"]["differences"].values()) < 1e-4
    assert {"kappaseg", "python", "timm", "torch"} <= card["versions"].keys()
    assert ("onnxruntime" in card["versions"]) == (form == "onnx")


def test_the_card_describes_what_goes_in_and_comes_out(exported: Path) -> None:
    import onnxruntime

    kinds = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float)": "float32"}
    for kind in RUNS:
        folder = exported / f"{kind}-onnx"
        card = json.loads((folder / "export.json").read_text("utf-8"))
        session = onnxruntime.InferenceSession(folder / card["file"], providers=["CPUExecutionProvider"])
        for there, here in ((session.get_inputs(), card["inputs"]), (session.get_outputs(), card["outputs"])):
            assert [(x["name"], x["dtype"], x["shape"]) for x in here] == [
                (x.name, kinds[x.type], x.shape) for x in there
            ]
            assert all(x["meaning"] for x in here)


def test_no_path_of_the_machine_stands_in_a_file(exported: Path) -> None:
    for path in exported.rglob("*.*"):
        assert str(ROOT).encode() not in path.read_bytes()
        assert str(Path(torch.__file__).parents[1]).encode() not in path.read_bytes()


def test_kappa_and_size_are_those_asked_for(chain: Any) -> None:
    words = ["export", "out/stage2-cache", "--format", "torch-export", "--to", "deep/er", "--kappa", "3"]
    assert main([*words, "--size", "20x28"]) == 0
    card = json.loads(Path("deep/er/export.json").read_text("utf-8"))
    assert (card["kappa"], card["image"]["size"]) == (3, [20, 28])
    network = torch.export.load("deep/er/segmenter.pt2").module()
    found = network(torch.zeros(2, 3, 20, 28, dtype=torch.uint8), torch.tensor([[3, 0, 2], [1, 2, -1]]))
    assert found["label_map"].shape == (2, 20, 28) and found["rank_logits"].shape[:2] == (2, 3)


@pytest.mark.slow
def test_a_run_is_exported_with_the_rankings_that_it_is_tested_on(chain: Any) -> None:
    joint = ("--labels.options.pooled", "2", "--labels.options.heads", "2")
    assert main(chain.words("run-joint", *joint)) == 0
    assert main(chain.words("run-stage2", "--source.train", "complete")) == 0
    for run, inputs, kappa in (("joint", ["image"], KAPPA), ("complete", ["image"], K)):
        assert main(["export", f"out/stage2-{run}", "--format", "torch-export", "--to", run]) == 0
        card = json.loads(Path(run, "export.json").read_text("utf-8"))
        assert [x["name"] for x in card["inputs"]] == inputs
        assert card["kappa"] == kappa
        assert ("scores" in [x["name"] for x in card["outputs"]]) == (run == "joint")


# Elsewhere


def test_the_documents_example_gives_the_map_of_predict_without_this_project(
    exported: Path, sharp: Path, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    for kind in RUNS:
        shutil.copytree(exported / f"{kind}-onnx", tmp_path / kind)
    photo(tmp_path / "photo.png")
    alone(example(0))
    words = [str(sharp / "out" / RUNS["segmenter"]), str(tmp_path / "photo.png"), "--to", str(tmp_path / "predictions")]
    assert main(["predict", *words]) == 0
    wanted = label_map(tmp_path / "predictions" / "photo.labels.png")
    assert len(np.unique(wanted)) == KAPPA
    assert np.array_equal(label_map(tmp_path / "map.png"), wanted)


def test_a_photo_of_another_size_is_segmented_by_the_documents_example(
    exported: Path, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    for kind in RUNS:
        shutil.copytree(exported / f"{kind}-onnx", tmp_path / kind)
    photo(tmp_path / "photo.png", (45, 61))
    alone(example(0))
    assert label_map(tmp_path / "map.png").shape == (SIDE, SIDE)


@pytest.mark.slow
def test_the_pair_runs_with_torch_alone(exported: Path, alone: Callable[[str], Path], tmp_path: Path) -> None:
    for kind in RUNS:
        shutil.copytree(exported / f"{kind}-torch-export", tmp_path / f"{kind}-pt2")
    pictures = torch.randint(256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.save(pictures, tmp_path / "pictures.pt")
    before = f'import torch\nsmall = large = torch.load("pictures.pt")\nkappa = {KAPPA}\n'
    after = 'torch.save([ranking["labels"], found["label_map"], found["rank_logits"]], "found.pt")\n'
    alone(before + example(1) + after)
    labels, label_map, rank_logits = torch.load(tmp_path / "found.pt")
    onnx = {kind: formats.load_onnx(exported / f"{kind}-onnx" / f"{kind}.onnx") for kind in RUNS}
    ranking = onnx["classifier"]({"image": pictures})
    wanted = onnx["segmenter"]({"image": pictures, "labels": ranking["labels"][:, :KAPPA]})
    assert torch.equal(labels, ranking["labels"])
    assert torch.allclose(rank_logits, wanted["rank_logits"], atol=1e-4)
    assert (label_map == wanted["label_map"]).double().mean() > 0.999


# Mistakes

TO = ["--to", "here"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["out/stage1", "--format", "onnx"], "required: --to"),
        (["out/stage1", *TO], "required: --format"),
        (["out/stage1", "--format", "tflite", *TO], "invalid choice: 'tflite' (choose from"),
        (["out/labels", "--format", "onnx", *TO], "out/labels is not a run directory"),
        (["out/stage1", "--format", "onnx", "--to", "net.onnx"], "names a file, but a folder is written"),
        (["out/stage1", "--format", "onnx", "--to", "data"], "--to data is there already; choose another folder"),
        (["out/stage1", "--format", "onnx", "--to", "rank.yaml"], "--to rank.yaml is there already"),
        (["out/stage1", "--format", "onnx", *TO, "--kappa", "5"], "κ = 5, wanted 1 to 4, the number of classes"),
        (["out/stage2-cache", "--format", "onnx", *TO, "--kappa", "0"], "κ = 0, wanted 1 to 4"),
        (["out/stage1", "--format", "onnx", *TO, "--size", "12by9"], "--size 12by9, wanted SIDE or HEIGHTxWIDTH"),
        (["out/stage1", "--format", "onnx", *TO, "--size", "0"], "--size 0, wanted SIDE or HEIGHTxWIDTH in pixels"),
    ],
)
def test_a_mistake_is_refused_in_one_line(chain: Any, refused: Any, words: list[str], wanted: str) -> None:
    refused(chain, ["export", *words], wanted)


def test_kappa_is_refused_where_all_labels_are_kept(chain: Any, refused: Any) -> None:
    assert main(chain.words("run-stage2", "--source.train", "complete")) == 0
    words = ["export", "out/stage2-complete", "--format", "onnx", *TO, "--kappa", "2"]
    refused(chain, words, "--kappa 2: this run is tested on all its 4 labels; leave --kappa out")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    chain: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else there(name))
    words = ["export", "out/stage1", "--format", "onnx", *TO]
    refused(chain, words, "needs onnxscript, which is missing; pip install 'kappaseg[export]'")


def test_a_file_that_differs_from_its_network_is_not_left(
    chain: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    words = ["export", "out/stage2-cache", "--format", "torch-export", "--to", "new/here"]
    refused(chain, words, "rank_logits of the exported network differ by", "nothing is written", begun=True)


def test_a_network_that_cannot_be_traced_is_refused_in_one_line(
    chain: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        try:
            raise ValueError("no function for aten.fold\nand a long story")
        except ValueError as error:
            raise RuntimeError("it failed\nsee above") from error

    monkeypatch.setattr(export, "traced", broken)
    words = ["export", "out/stage1", "--format", "onnx", *TO]
    refused(chain, words, "out/stage1 cannot be exported as onnx: no function for aten.fold; try another", begun=True)
