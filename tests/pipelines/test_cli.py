"""The command line as a whole: a chain in one output folder, its repetition, its help, and the settings files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kappaseg_core.checkpoint import flatten, load_model
from kappaseg_core.config import DataConfig, load_config, to_plain
from kappaseg_core.scenes import scene_options
from label_cache import LabelCache
from pipelines.arguments import split_settings
from pipelines.cli import main
from pipelines.service.config import ServeConfig
from stage1_multilabel.classifier import build_classifier
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.model import build_segmentation
from tests.settings_files import FILES, ROOT, kind_of, verb_of

HELP = {"run-stage1": Stage1Config, "rank": RankConfig, "run-stage2": Stage2Config, "evaluate": Stage2Config,
        "predict": Stage2Config, "import-weights": Stage2Config, "data": DataConfig, "plan": DataConfig,
        "panoptic": DataConfig, "serve": ServeConfig, "bench network": Stage2Config,
        "bench data": Stage2Config}  # fmt: skip
SOURCES = ("cache", "complete", "oracle")


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Standard output of a command that must succeed."""
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


# The chain


def test_each_step_finds_the_result_of_the_one_before_it(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """conftest has run stage one, ranking with two folds and stage two, with nothing in common but --out."""
    for source in SOURCES[1:]:
        ran(capsys, *chain.words("run-stage2", "--source.train", source))
    table = ran(capsys, "evaluate", "--out", str(chain.out))
    assert [f"stage2-{source}" in table for source in SOURCES] == [True] * 3
    for source in SOURCES:
        (file,) = (chain.out / f"stage2-{source}").glob("evaluation-*.json")
        numbers = json.loads(file.read_text())
        assert numbers["images"] == 2 and 0 <= numbers["mIoU"] <= numbers["class_coverage"] <= 1
        assert numbers["class_coverage"] == 1 or source == "cache"
    assert "v0.jpg" in ran(capsys, "predict", "out/stage2-cache", str(chain.photo("v0")))
    assert "v0  (held-out)" in ran(capsys, "lookup", "out/labels", "v0")
    assert "val: 2 held-out" in ran(capsys, "cache", "info", "out/labels")
    assert ran(capsys, "cache", "check", "out/labels") == "out/labels: whole\n"


def test_ranking_with_folds_says_of_each_row_whether_its_classifier_had_seen_it(chain: Any) -> None:
    cache = LabelCache.open(chain.out / "labels")
    assert cache.key.folds == 2
    assert set(cache.lookup(cache.ids("train")).source) == {"out-of-fold"}
    assert set(cache.lookup(cache.ids("val")).source) == {"held-out"}
    assert sorted(path.name for path in (chain.out / "folds").iterdir()) == ["0-of-2", "1-of-2"]


def test_a_run_rebuilds_its_network_wherever_it_is_moved(chain: Any) -> None:
    moved = (chain.out / "stage2-cache").rename(chain.home / "moved")
    model, record = load_model(moved)
    assert not model.training and record["class_names"] == ["sky", "road", "tree", "car"]


def test_no_verb_trains_or_ranks_again_what_is_done(
    chain: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: object, **__: object) -> None:
        raise AssertionError("this was done already")

    monkeypatch.setattr("kappaseg_core.loop.Trainer.train_step", again)
    monkeypatch.setattr("stage1_multilabel.rank.scores_of", again)
    before = chain.files()
    for words in (chain.words("run-stage1"), chain.words("rank", "--folds", "2"), chain.words("run-stage2")):
        ran(capsys, *words)
    assert chain.files() == before


def test_evaluating_twice_writes_the_same_figures(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [ran(capsys, "evaluate", "out/stage2-cache") for _ in range(2)]
    assert tables[0] == tables[1]
    assert len(list((chain.out / "stage2-cache").glob("evaluation-*.json"))) == 1


@pytest.mark.parametrize("what", [["out"], ["--out", "out"], ["out/stage2-cache"], ["stage2.yaml", "--out", "out"]])
def test_a_run_is_found_by_its_folder_by_its_chain_and_by_its_settings(
    chain: Any, capsys: pytest.CaptureFixture[str], what: list[str]
) -> None:
    assert "stage2-cache" in ran(capsys, "evaluate", *what)


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--source.test", "oracle", "out"],
        ["evaluate", "out", "--source.test", "oracle", "--inference.flip=false"],
        ["evaluate", "--source.test=oracle", "--out", "out"],
        ["predict", "--inference.flip", "true", "out/stage2-cache", "--to", "here", "data/images/v0.jpg"],
        ["predict", "out/stage2-cache", "data/images/v0.jpg", "--source.test_kappa", "1", "--to=here"],
        ["data", "check", "--options.ignore", "255", "data", "--splits", "train"],
        ["data", "--options.ignore", "255", "pack", "data", "here.h5"],
        ["data", "pack", "data", "--options.ignore", "255", "here.h5"],
    ],
)
def test_settings_may_stand_before_and_after_what_a_verb_is_given(chain: Any, words: list[str]) -> None:
    assert main(words) == 0


def test_the_same_words_may_be_given_to_every_step_of_a_chain(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps that take their network from a run say that they have no use for a weight file."""
    given = ["--data.root", "data", "--out", "out", "--backbone.weights", "file"]
    for words in (["rank", "rank.yaml", "--folds", "2"], ["evaluate", "stage2.yaml"]):
        capsys.readouterr()
        assert main([*words, *given]) == 0
        assert "--backbone.weights is for training" in capsys.readouterr().err


def test_the_settings_of_a_run_find_it_among_those_of_its_chain(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, *chain.words("run-stage2", "--source.train", "complete"))
    shown = ran(capsys, "evaluate", "stage2.yaml", "--out", "out", "--source.train", "complete")
    assert "stage2-complete" in shown and "stage2-cache" not in shown


def test_an_evaluation_cannot_change_what_was_trained(chain: Any, refused: Any) -> None:
    refused(chain, ["evaluate", "out/stage2-cache", "--source.train", "complete"], "--source.train is part of the")


def test_another_evaluation_of_a_run_has_a_file_of_its_own(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, "evaluate", "out")
    ran(capsys, "evaluate", "out", "--source.test", "oracle")
    ran(capsys, "evaluate", "out", "--source.test_kappa", "3", "--inference.flip=true")
    names = sorted(path.name for path in (chain.out / "stage2-cache").glob("evaluation-*.json"))
    assert names == ["evaluation-cache-kappa2.json", "evaluation-cache-kappa3-flip-True.json", "evaluation-oracle.json"]


def test_settings_on_the_command_line_win_over_those_of_the_file(
    chain: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(capsys, *chain.words("run-stage1", "--out", "other", "--loop.steps=1", "--optim.weight-decay", "0.5"))
    record = yaml.safe_load(Path("other/stage1/run.yaml").read_text())["config"]
    assert (record["loop"]["steps"], record["loop"]["batch_size"], record["optim"]["weight_decay"]) == (1, 2, 0.5)


def test_looking_up_shows_the_first_labels_as_a_table_or_as_json(
    chain: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(ran(capsys, "lookup", "out/labels", "v1", "a0", "--kappa", "2", "--json"))
    found = LabelCache.open("out/labels").lookup(["v1", "a0"], 2)
    assert [(row["image_id"], row["rank"]) for row in rows] == [("v1", 1), ("v1", 2), ("a0", 1), ("a0", 2)]
    assert [row["id"] for row in rows] == found.labels.ravel().tolist()
    assert [row["score"] for row in rows] == pytest.approx(found.scores.ravel().tolist(), abs=1e-5)
    table = ran(capsys, "lookup", "out/labels", "v1", "--kappa", "2")
    assert [row["name"] in table for row in rows[:2]] == [True, True]


def test_looking_up_shows_all_stored_labels_where_there_are_fewer_than_ten(
    chain: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(json.loads(ran(capsys, "lookup", "out/labels", "v1", "--json"))) == 3


def test_a_packed_data_set_leads_to_the_same_cache(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Fingerprints are of the images, not of how they are stored, so a chain goes on after packing."""
    assert "nothing wrong" in ran(capsys, "data", "check", "data")
    ran(capsys, "data", "pack", "data", "data.h5")
    before = chain.files()
    words = ["--data.kind", "packed", "--data.root", "data.h5", "--data.options", "{}"]
    ran(capsys, *chain.words("run-stage2", "--name", "packed", *words))
    assert {name: value for name, value in chain.files().items() if "stage2-packed" not in name} == before


# What is loaded


@pytest.mark.parametrize("words", [["lookup", "out/labels", "v0"], ["cache", "info", "out/labels"],
                                   ["cache", "check", "out/labels"], ["rank", "rank.yaml", "--fold", "2"]])  # fmt: skip
def test_what_needs_no_network_loads_no_torch(chain: Any, words: list[str]) -> None:
    code = "import sys; from pipelines.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=chain.home)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "pipelines.cli" in loaded
    assert not {"torch", "torchvision", "timm", "h5py"} & loaded


# Help


@pytest.mark.parametrize("verb", HELP)
def test_help_names_every_setting(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*verb.split(), "--help"])
    printed = capsys.readouterr().out
    assert left.value.code == 0
    shown = {name.replace("-", "_") for name in re.findall(r"--([a-z][\w.-]*)", printed)}
    groups = {name.removesuffix(".NAME") for name in shown}  # those whose names the chosen module decides
    assert set(flatten(to_plain(HELP[verb]()))) <= groups


@pytest.mark.parametrize(
    "words", [["--help"], *([verb, "--help"] for verb in ("demo", "export", "lookup", "cache", "bench", "cost"))]
)
def test_help_of_a_verb_without_settings_is_short(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert 5 < len(capsys.readouterr().out.splitlines()) < 40


def test_every_verb_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for verb in (*(words.split()[0] for words in HELP), "demo", "export", "lookup", "cache", "cost"):
        assert re.search(rf"^    {verb}\s", printed, re.MULTILINE)


# Settings files


# those of benchmarks are in benchmark/test_plan.py, the published ones also in published/


@pytest.mark.parametrize("name", FILES)
def test_a_settings_file_holds_known_settings_and_says_how_it_is_used(name: str) -> None:
    path = ROOT / name
    config: Any = load_config(kind_of(name), path)
    scene_options(config.data)
    used = f"kappaseg {verb_of(name)} {name}"
    lines = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#") and used in line]
    assert lines
    written = lines[0].partition(used)[2].partition("  ")[0].replace("[", "").replace("]", "")
    plain = re.sub(r"(\S+)\|\S+", r"\1", written)  # a|b|c: one of them
    load_config(kind_of(name), path, split_settings(plain.split()))


@pytest.mark.parametrize("name", [name for name in FILES if Path(name).stem in ("stage1", "stage2")])
def test_a_settings_file_leads_to_a_network(name: str) -> None:
    """Built on the meta device (sizes, no numbers), without the weight file that a user would name."""
    config: Any = load_config(kind_of(name), ROOT / name)
    classes = getattr(scene_options(config.data), "classes", 7)
    backbone = replace(config.backbone, weights=None, frozen=False)
    with torch.device("meta"):
        if kind_of(name) is Stage1Config:
            size = config.augment.image_size
            model: Any = build_classifier(backbone, config.head, num_classes=classes, image_size=size)
        else:
            model = build_segmentation(replace(config, backbone=backbone), classes)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1000
    assert any(classes in parameter.shape for parameter in model.parameters())
