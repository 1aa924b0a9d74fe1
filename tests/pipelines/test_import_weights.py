"""`kappaseg import-weights`: runs that the other verbs take, and mistakes that leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from kappaseg_core.checkpoint import load_model, read_record
from kappaseg_core.config import build, to_plain
from pipelines.cli import main
from pipelines.service.app import create_app
from pipelines.service.config import ServeConfig
from pipelines.service.house import build_house
from stage1_multilabel.classifier import build_model
from stage1_multilabel.config import Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.model import build_segmentation
from tests.weights import published
from tests.weights.folders import folder_of
from tests.weights.published import State, shaken
from tests.weights.test_hf_eomt import eomt
from tests.weights.test_hf_queries import maskformer
from tests.weights.test_hf_upernet import upernet
from tests.weights.test_vit import augreg_arrays

K, WIDTH, IMAGE = 4, 16, 32
VIT = {"name": "vit_base_patch16_384", "options": {"img_size": IMAGE, "embed_dim": WIDTH, "depth": 2, "num_heads": 1}}
SWIN = {"name": "swin_large_patch4_window12_384", "options": {
    "embed_dim": 4, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "img_size": IMAGE
}}  # fmt: skip
EVALUATE = ("--data.root", "data", "--loop.device", "cpu")


def segmentation(source: str, branch: str = "none") -> State:
    """RankSeg's state dict of a tiny network of the chain's four classes."""
    values = {
        "backbone": VIT, "host": {"options": {"width": WIDTH}}, "source": {"train": source, "kappa": 2},
        "labels": {"head": branch, "options": {"pooled": 2} if branch == "encoder" else {}},
    }  # fmt: skip
    return published.rankseg(shaken(build_segmentation(build(Stage2Config, values), K)).state_dict())


def classification() -> State:
    """Query2Label's state dict of a tiny classifier of the chain's four classes."""
    head = {"preset": "official", "width": 8, "ffn": 12, "heads": 2}
    config = build(Stage1Config, {"backbone": SWIN, "head": head, "augment": {"image_size": IMAGE}})
    state = shaken(build_model(to_plain(config), ("",) * K)).state_dict()
    trunk = published.swin(published.part(state, "backbone.network.model."))
    return published.query2label(state, trunk, torch.zeros(1, 8, 1, 1))


@pytest.fixture
def files(chain: Any) -> Any:
    """A chain with published files beside it: joint.pth, baseline.pth, checkpoint.pkl, vit.npz."""
    meta = {"mmseg_version": "0.17", "CLASSES": ("sky", "road", "tree", "car")}
    torch.save({"state_dict": segmentation("joint", "encoder"), "meta": meta}, "joint.pth")
    torch.save({"state_dict": segmentation("complete"), "meta": meta, "optimizer": {"state": {}}}, "baseline.pth")
    state = {f"module.{name}": value for name, value in classification().items()}
    torch.save({"epoch": 7, "arch": "q2l", "state_dict": state, "best_mAP": np.float64(90.5)}, "checkpoint.pkl")
    np.savez("vit.npz", **augreg_arrays())
    return chain


def imported(kind: str, source: str, destination: str, *more: str) -> list[str]:
    """The words of an import with the chain's classes."""
    return ["import-weights", kind, source, destination, "--classes", "data/classes.txt", *more]


JOINT = imported("rankseg", "joint.pth", "new/stage2-joint", "--labels.options.pooled", "2")
BASELINE = imported("rankseg", "baseline.pth", "new/stage2-baseline")
CLASSIFIER = imported(
    "query2label", "checkpoint.pkl", "new/stage1", "--heads", "2", "--backbone.options.img_size", "32"
)


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# What the other verbs do with it


def test_an_imported_joint_network_is_evaluated_and_predicts(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    printed = ran(capsys, *JOINT)
    assert "RankSeg's joint network (1 × TransEnc)" in printed and "4 classes" in printed
    assert [" ".join(line.split()) for line in printed.splitlines() if "source.kappa" in line] == [
        "source.kappa 2 shapes"
    ]
    assert [line.split()[-1] for line in printed.splitlines() if "options.pooled" in line] == ["settings"]
    assert [line.split()[-1] for line in printed.splitlines() if "host.options.heads" in line] == ["published"]
    assert "stage2-joint" in ran(capsys, "evaluate", "new", *EVALUATE)
    (file,) = Path("new/stage2-joint").glob("evaluation-*.json")
    assert json.loads(file.read_text())["images"] == 2
    assert "v0.jpg" in ran(capsys, "predict", "new/stage2-joint", "data/images/v0.jpg")


def test_an_imported_baseline_is_evaluated_with_all_labels_and_with_other_rankings(
    files: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(capsys, *BASELINE)
    for source in ("complete", "oracle", "cache"):
        cache = ("--source.cache", "out/labels", "--source.test_kappa", "2") if source == "cache" else ()
        ran(capsys, "evaluate", "new/stage2-baseline", *EVALUATE, "--source.test", source, *cache)
    assert len(list(Path("new/stage2-baseline").glob("evaluation-*.json"))) == 3


@pytest.mark.parametrize("make", [upernet, maskformer])
def test_a_network_of_transformers_is_evaluated_with_all_labels_and_with_other_rankings(
    files: Any, capsys: pytest.CaptureFixture[str], make: Any
) -> None:
    """Its classes are the data set's in another order, and one more: rows go by name."""
    folder_of(make("resnet", id2label=dict(enumerate(("boat", "car", "tree", "sky", "road")))), Path("theirs"))
    ran(capsys, "import-weights", "hf", "theirs", "new/stage2-theirs", "--transfer-to", "data/classes.txt",
        "--inference.short_side", "32", "--augment.crop", "32")  # fmt: skip
    for source in ("complete", "oracle", "cache"):
        cache = ("--source.cache", "out/labels", "--source.test_kappa", "2") if source == "cache" else ()
        ran(capsys, "evaluate", "new/stage2-theirs", *EVALUATE, "--source.test", source, *cache)
    assert len(list(Path("new/stage2-theirs").glob("evaluation-*.json"))) == 3
    assert "v0.jpg" in ran(capsys, "predict", "new/stage2-theirs", "data/images/v0.jpg")


def test_an_imported_classifier_ranks_a_data_set_and_single_images(
    files: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Query2Label on swin" in ran(capsys, *CLASSIFIER)
    ran(capsys, "rank", "rank.yaml", "--data.root", "data", "--out", "new")
    assert "v0  (held-out)" in ran(capsys, "lookup", "new/labels", "v0")
    ran(capsys, *files.words("run-stage2", "--out", "new"))  # a chain goes on from it
    ran(capsys, "predict", "new/stage2-cache", "data/images/v0.jpg")


def test_imported_networks_are_served(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, *JOINT)
    ran(capsys, *CLASSIFIER)
    config = ServeConfig(classifier="new/stage1", segmenter="new/stage2-joint")
    with TestClient(create_app(build_house(config), None), base_url="http://127.0.0.1") as client:
        image = {"image": Path("data/images/v0.jpg").read_bytes()}
        ranked = client.post("/v1/rank?kappa=3", files=image)
        assert ranked.status_code == 200 and ranked.json()["kappa"] == 3
        assert client.post("/v1/segment", files=image).status_code == 200


def test_training_goes_on_from_an_imported_network(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The settings are those of the run; the network of the first step is the imported one."""
    ran(capsys, *JOINT)
    loop = ("--loop.steps", "1", "--loop.batch_size", "2", "--optim.lr", "1e-12", "--optim.weight_decay", "0")
    words = ("run-joint", "new/stage2-joint", "--init", "new/stage2-joint", "--data.root", "data", "--out", "more")
    ran(capsys, *words, *loop)
    before, _ = load_model("new/stage2-joint")
    after, record = load_model("more/stage2-joint")
    assert record["inputs"]["init"] and "imported" not in record["inputs"]
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6, msg=name)


def test_training_starts_from_the_blocks_and_masks_of_an_eomt(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(eomt(), Path("theirs"))
    words = ("import-weights", "hf", "theirs", "new/stage2-eomt", "--transfer-to", "data/classes.txt")
    ran(capsys, *words, "--augment.crop", "32", "--augment.short_side", "32", "--source.train", "oracle")
    loop = ("--loop.steps", "1", "--loop.batch_size", "2", "--optim.lr", "1e-12", "--optim.weight_decay", "0")
    ran(
        capsys,
        "run-stage2",
        "new/stage2-eomt",
        "--init",
        "new/stage2-eomt",
        "--data.root",
        "data",
        "--out",
        "more",
        *loop,
    )
    before, after = (load_model(f"{out}/stage2-{name}")[0] for out, name in (("new", "eomt"), ("more", "oracle")))
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6, msg=name)


def test_a_classifier_for_other_classes_is_trained_further(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint's classes are others than the data set's: two of them are in both, by name."""
    Path("theirs.txt").write_text("boat\nroad\ncow\nsky\n")
    words = [word if word != "data/classes.txt" else "theirs.txt" for word in CLASSIFIER]
    printed = ran(capsys, *words, "--transfer-to", "data/classes.txt")
    assert "classes: 2 rows by name, 2 of the file not used, 2 new" in printed and "tree, car" in printed
    assert read_record(Path("new/stage1"))["class_names"] == ["sky", "road", "tree", "car"]
    transfer = json.loads(Path("new/stage1/import.json").read_text())["transfer"]
    assert transfer == {"taken": [[0, 3], [1, 1]], "new": ["tree", "car"], "left": ["boat", "cow"]}
    loop = ("--loop.steps", "1", "--loop.batch_size", "2", "--optim.lr", "1e-12", "--optim.weight_decay", "0")
    ran(capsys, "run-stage1", "new/stage1", "--init", "new/stage1", "--data.root", "data", "--out", "more", *loop)
    before, after = load_model("new/stage1")[0].state_dict(), load_model("more/stage1")[0].state_dict()
    torch.testing.assert_close(after["head.bias"], before["head.bias"], rtol=0, atol=1e-6)  # no prior laid over it


def test_what_was_imported_is_written_down(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, *CLASSIFIER)
    record, origin = read_record(Path("new/stage1")), json.loads(Path("new/stage1/import.json").read_text())
    assert record["inputs"]["imported"] == "query2label" and len(record["inputs"]["file"]) == 64
    assert origin["from_shapes"]["head.ffn"] == 12 and origin["published_values"]["backbone.mean"][0] == 0.485
    assert "backbone.1.pe" in [name for names in origin["left_out"].values() for name in names]
    assert json.loads(Path("new/stage1/summary.json").read_text())["steps"] == 0


def test_other_class_names_in_the_file_are_told(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "otherwise" not in ran(capsys, *BASELINE)
    Path("data/classes.txt").write_text("sky\nroad\nbush\ncar\n")
    words = [word.replace("new/", "newer/") for word in BASELINE]
    assert "otherwise than --classes: class 2 is 'tree' there and 'bush' here" in ran(capsys, *words)


# Backbones


def test_augreg_arrays_become_a_weight_file_for_training(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    printed = ran(capsys, "import-weights", "augreg", "vit.npz", "new/vit.safetensors")
    backbone = printed.splitlines()[-1].partition('--backbone "')[2].removesuffix('"')
    assert yaml.safe_load(backbone)["name"] == "vit_base_patch16_384"
    words = ("--source.train", "complete", "--host.options", "{width: 8, heads: 2}", "--backbone", backbone)
    ran(capsys, *files.words("run-stage2", "--out", "new", *words))


def test_a_file_of_a_timm_model_becomes_a_checked_weight_file(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, "resnet.pth")
    words = ("import-weights", "timm", "resnet.pth", "resnet.safetensors", "--backbone.name", "test_resnet")
    printed = ran(capsys, *words)
    assert "left out: " in printed and '--backbone "{name: test_resnet, weights: resnet.safetensors}"' in printed
    found, wanted = load_file("resnet.safetensors"), model.state_dict()
    assert found and all(torch.equal(value, wanted[name]) for name, value in found.items())


# Mistakes


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["import-weights", "segmentor", "joint.pth", "new"], ["invalid choice: 'segmentor'", "see kappaseg import-w"]),
        (["import-weights", "rankseg", "joint.pth"], ["required: DST"]),
        (["import-weights", "rankseg", "joint.pth", "new/a"], ["joint.pth is for 4 classes", "add --classes FILE"]),
        (imported("rankseg", "no.pth", "new/a"), ["no.pth does not exist"]),
        (imported("segmenter", "joint.pth", "new/a"), ["joint.pth is no segmenter checkpoint: it has no decoder"]),
        (imported("rankseg", "joint.pth", "out/stage1"), ["out/stage1 exists; choose another DST"]),
        (imported("query2label", "checkpoint.pkl", "new/a"), ["head.heads cannot be told", "add --heads N"]),
        (imported("query2label", "checkpoint.pkl", "new/a", "--heads", "3"), ["head width 8, wanted a multiple"]),
        (imported("query2label", "checkpoint.pkl", "new/a", "--heads", "two"), ["head.heads = 'two', wanted a whole"]),
        (imported("rankseg", "joint.pth", "new/a", "--heads", "3"), ["--heads is for query2label"]),
        (imported("rankseg", "joint.pth", "new/a", "--weights", "ema"), ["joint.pth has no averaged weights"]),
        (imported("rankseg", "joint.pth", "new/a", "--source.kappa", "3"), ["source.kappa = 3, but joint.pth was"]),
        (imported("rankseg", "joint.pth", "new/a", "--config", "no.yaml"), ["configuration no.yaml does not exist"]),
        (imported("rankseg", "joint.pth", "new/a", "--init", "out/stage2-cache"), ["init is for training"]),
        (imported("rankseg", "joint.pth", "new/a", "--transfer-to", "no.txt"), ["no.txt does not exist"]),
        (imported("rankseg", "classes.pth", "new/a"), ["classes.pth cannot be read (it asks for", "more than tensors"]),
        (imported("rankseg", "cut.pth", "new/a"), ["cut.pth cannot be read"]),
        (imported("rankseg", "wrong.pth", "new/a"),
         ["does not fit its network: 1 missing, first backbone.network.model.norm.bias (16); 1 unknown, first x;"]),
        (["import-weights", "augreg", "vit.npz", "new/vit.pth"], ["give a name that ends in .safetensors"]),
        (["import-weights", "augreg", "joint.pth", "new/v.safetensors"], ["joint.pth cannot be read as .npz"]),
        (["import-weights", "augreg", "other.npz", "new/v.safetensors"], ["other.npz is no augreg checkpoint"]),
        (imported("augreg", "vit.npz", "new/v.safetensors"), ["--classes has no meaning for format augreg"]),
        (["import-weights", "timm", "joint.pth", "new/v.safetensors"], ["add --backbone.name NAME"]),
        (["import-weights", "timm", "joint.pth", "new/v.safetensors", "--backbone.name", "resnet10t"],
         ["joint.pth does not fit its network", "missing"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    files: Any, refused: Any, words: list[str], wanted: list[str]
) -> None:
    state = segmentation("joint", "encoder")
    torch.save({"state_dict": state, "args": Stage2Config()}, "classes.pth")
    Path("cut.pth").write_bytes(Path("joint.pth").read_bytes()[:-500])
    torch.save({**{n: v for n, v in state.items() if n != "backbone.ln1.bias"}, "x": torch.zeros(1)}, "wrong.pth")
    np.savez("other.npz", a=np.zeros(3))
    refused(files, words, *wanted)


def test_every_tensor_that_does_not_fit_is_printed(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    state = segmentation("complete")
    save_file({n: v.contiguous() for n, v in state.items() if "ffn" not in n}, "wrong.safetensors")
    assert main(imported("rankseg", "wrong.safetensors", "new/a")) == 2
    assert "no rankseg checkpoint: it has no backbone.layers.0.ffn.layers.0.0.weight" in capsys.readouterr().err
    save_file({n: v.contiguous() for n, v in state.items() if ".ln2." not in n}, "wrong.safetensors")
    assert main(imported("rankseg", "wrong.safetensors", "new/a")) == 2
    printed = capsys.readouterr()
    assert "4 missing" in printed.err and len(printed.err.splitlines()) == 1
    norms = [f"backbone.network.model.blocks.{block}.norm2.{kind}" for block in (0, 1) for kind in ("weight", "bias")]
    assert [line.split()[:2] for line in printed.out.splitlines()] == [["missing", name] for name in norms]


def test_a_start_that_does_not_fit_is_refused(files: Any, refused: Any) -> None:
    assert main(JOINT) == 0
    start = ("--init", "new/stage2-joint", "--out", "more")
    network = "new/stage2-joint/weights.safetensors does not fit this network"
    refused(files, files.words("run-stage2", "--source.train", "complete", *start), network, "the settings of that run")
    nowhere = ("--source.train", "complete", "--init", "nowhere")
    refused(files, files.words("run-stage2", *nowhere, "--out", "more"), "nowhere is not a run directory")
    both = ("--backbone.weights", str(files.photo("v0")))
    refused(files, ["run-joint", "new/stage2-joint", *start, "--data.root", "data", *both], "backbone.weights")
    Path("data/classes.txt").write_text("sky\nroad\nbush\ncar\n")
    refused(
        files, ["run-joint", "new/stage2-joint", *start, "--data.root", "data"], "has other classes", "--transfer-to"
    )


def test_an_imported_classifier_has_no_folds(files: Any, refused: Any) -> None:
    assert main(CLASSIFIER) == 0
    words = ["rank", "rank.yaml", "--data.root", "data", "--out", "new", "--folds", "2"]
    refused(files, words, "new/stage1 was imported", "rank without --folds")


def test_folds_of_a_classifier_that_starts_from_one_of_all_images_are_refused(files: Any, refused: Any) -> None:
    """It has seen the images of every fold already."""
    assert main([*files.words("run-stage1", "--init", "out/stage1"), "--out", "more"]) == 0
    refused(files, ["rank", "rank.yaml", "--data.root", "data", "--out", "more", "--folds", "2"], "out of fold")
    assert main([*files.words("run-stage1", "--init", "more/stage1"), "--out", "most"]) == 0
    between = Path("more/stage1/run.yaml")
    record = yaml.safe_load(between.read_text())
    record["inputs"] |= {"train": "of other images", "val": "of others"}
    between.write_text(yaml.safe_dump(record))
    refused(
        files, ["rank", "rank.yaml", "--data.root", "data", "--out", "most", "--folds", "2"], "starts from out/stage1"
    )
