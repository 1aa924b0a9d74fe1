"""`kappaseg plan`: files that the other commands take, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kappaseg_core.config import load_config
from pipelines.cli import main
from pipelines.plan.choose import KINDS
from pipelines.plan.estimate import Memory
from pipelines.plan.run import FILES, PARTS
from stage1_multilabel.config import RankConfig
from stage2_segmentation.config import Stage2Config, joint_config

NONE = Memory(0.0, 0.0, 0.0, 0.0, 0.0, evaluation=False)


@pytest.fixture(autouse=True)
def a_known_machine(monkeypatch: pytest.MonkeyPatch, made_up_memory: object) -> None:
    """No process is started to be measured, no time is spent on products, and choices stand on made-up memory."""
    monkeypatch.setattr("pipelines.plan.machine.base_mib", lambda: 700)
    monkeypatch.setattr("pipelines.plan.machine.rates", lambda device: {"fp32": 0.1, "bf16": 0.1})


@pytest.fixture
def planned(chain: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "plan"
    assert main(["plan", str(chain.data), "--out", str(out), "--memory", "8"]) == 0
    printed = capsys.readouterr().out
    assert "6 to train (all masks read), 2 to validate" in printed and "median 36 x 44" in printed
    assert "estimated, for 8.0 GiB on the CPU" in printed
    return out


def test_a_plan_is_ordinary_settings_with_reasons_that_the_commands_take(planned: Path) -> None:
    for part in PARTS:
        text = (planned / f"{part}.yaml").read_text("utf-8")
        config = load_config(KINDS[part], planned / f"{part}.yaml")
        assert config.out == str(planned / "runs") and config.loop.precision == "fp32"
        assert "# Estimated: " in text and "GiB on the CPU (network" in text and "TFLOP/s" in text
        assert max(map(len, text.splitlines())) <= 200
    assert load_config(RankConfig, planned / "rank.yaml").kappa == 4
    stage2 = load_config(Stage2Config, planned / "stage2.yaml")
    assert (stage2.source.train, stage2.source.kappa, stage2.augment.crop) == ("cache", 4, 64)
    joint = joint_config(planned / "joint.yaml", [])
    assert joint.labels.head == "encoder" and joint.source.kappa == 4
    assert "all labels: there are no more" in (planned / "stage2.yaml").read_text("utf-8")
    assert json.loads((planned / "fingerprint.json").read_text("utf-8"))["classes"] == 4


def small_network(file: Path) -> None:
    values = yaml.safe_load(file.read_text("utf-8"))
    values["backbone"] = {"kind": "small_cnn", "name": "8", "frozen": False}
    file.write_text(yaml.safe_dump(values), "utf-8")


def test_an_edited_file_is_estimated_again(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = planned / "stage2.yaml"

    def gib() -> float:
        assert main(["plan", "--check", str(file), "--memory", "8"]) == 0
        printed = capsys.readouterr().out
        return float(printed.split("Estimated: ")[1].split()[0])

    small_network(file)
    before = gib()
    file.write_text(file.read_text("utf-8").replace("crop: 64", "crop: 256"), "utf-8")
    assert gib() > before
    assert main(["plan", "--check", str(file), "--memory", "0.5"]) == 2
    assert "raise loop.accumulate" in capsys.readouterr().err


def test_a_file_whose_data_changed_is_estimated_from_its_masks(
    planned: Path, chain: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, classes = planned / "stage2.yaml", []
    small_network(file)
    monkeypatch.setattr(
        "pipelines.plan.run.memory_of", lambda config, found, here: classes.append(found.classes) or NONE
    )
    assert main(["plan", "--check", str(file), "--memory", "8"]) == 0
    values = yaml.safe_load(file.read_text("utf-8"))
    values["data"] = {"kind": "synthetic", "options": {"classes": 9, "size": 32, "train": 4, "val": 1}}
    values["source"] = {"train": "complete"}
    file.write_text(yaml.safe_dump(values), "utf-8")
    assert main(["plan", "--check", str(file), "--memory", "8"]) == 0
    assert classes == [4, 9]
    assert ["stage2", "8", "64", "all"] in [line.split()[:4] for line in capsys.readouterr().out.splitlines()]


def test_a_sample_stays_the_sample_where_a_file_is_checked(
    chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["plan", str(chain.data), "--out", str(tmp_path / "p"), "--memory", "8", "--images", "3"]) == 0
    monkeypatch.setattr("pipelines.plan.fingerprint.scan", lambda *_: pytest.fail("the masks were read again"))
    small_network(tmp_path / "p" / "stage2.yaml")
    assert main(["plan", "--check", str(tmp_path / "p" / "stage2.yaml"), "--memory", "8"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--crop", "256"], "--crop chooses settings, which plan --check takes from"),
        (["--backbone", "resnet18"], "--backbone chooses settings"),
        (["--overwrite"], "--overwrite chooses settings"),
        (["--images", "0"], "--images 0, wanted at least 1"),
        (["--out", "x"], "leave out DATA, its settings and --out"),
        (["--data.val", "x"], "leave out DATA, its settings and --out"),
    ],
)
def test_a_check_takes_its_settings_from_its_file(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["plan", "--check", "stage2.yaml", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_earlier_plan_is_not_lost(planned: Path, chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(chain.data), "--out", str(planned), "--memory", "8"]
    assert main(words) == 2
    assert "stage1.yaml exists; choose another --out, or --overwrite" in capsys.readouterr().err
    (planned / "stage1.yaml").write_text("mine\n", "utf-8")
    assert main([*words, "--overwrite"]) == 0
    assert "mine" not in (planned / "stage1.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backbone", "resnet19"], "'resnet19' is no model of timm"),
        (["--weights", "nowhere"], "--weights nowhere does not exist"),
        (["--memory", "0"], "--memory 0, wanted GiB above 0"),
        (["--memory", "0.1"], "pixels at a time takes"),
        (["--images", "0"], "--images 0, wanted at least 1"),
        (["--crop", "8"], "--crop 8, wanted at least 32"),
        (["--device", "tpu"], "wanted auto, cpu"),
        (["--data.kidn", "x"], "unknown setting kidn; did you mean kind?"),
        (["--data.train", "nosuch"], "split 'nosuch'"),
        (["--out", __file__], "test_plan.py is no folder; name another"),
    ],
)
def test_mistakes_are_one_line(
    chain: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    out = tmp_path / "plan"
    assert main(["plan", str(chain.data), "--out", str(out), *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kappaseg: ")]
    assert len(error) == 1 and said in error[0]
    assert not any((out / file).exists() for file in FILES)


def test_a_plan_without_data_says_what_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "plan needs DATA, the folder of a data set" in capsys.readouterr().err


def test_steps_can_be_taken_for_the_hours(planned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = planned / "joint.yaml"
    small_network(file)
    assert main(["plan", "--check", str(file), "--memory", "8", "--measure"]) == 0
    assert "by steps taken here" in capsys.readouterr().out
