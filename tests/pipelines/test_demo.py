"""`kappaseg demo`: its words, its settings, and (slow) a whole quick run that is stopped once."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pipelines.demo as module
from kappaseg_core.config import load_config
from kappaseg_core.errors import UserError
from label_cache import LabelCache
from pipelines.arguments import split_settings
from pipelines.cli import main
from pipelines.demo import SOURCES, Costs, Settings, demo
from pipelines.demo_words import findings
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import Evaluation

PLAIN = Evaluation(
    images=2, mIoU=0.30, mIoU_in_truth=0.31, pixel_accuracy=0.5, mean_class_accuracy=0.4, zero_iou_share=0.2,
    pixel_coverage=1.0, image_coverage=1.0, class_coverage=1.0, mean_kappa=64.0, class_iou={}, absent=(),
)  # fmt: skip
ORACLE = replace(PLAIN, mIoU=0.7, mean_kappa=6.0)
TOLD = replace(PLAIN, mIoU=0.55, mean_kappa=6.0)
SECONDS = {"stage1": 60.0, "complete": 50.0, "cache": 40.0, "oracle": 30.0}


def words_for(ranked: float, *, prior: float = 0.6, pixels: float = 0.9, classes: float = 0.8) -> tuple[str, ...]:
    cache = replace(PLAIN, mIoU=ranked, pixel_coverage=pixels, class_coverage=classes, mean_kappa=20.0)
    scores = {"complete": PLAIN, "cache": cache, "oracle": ORACLE, "told": TOLD}
    return findings(scores, prior_coverage=prior, kappa=20, num_classes=64, seconds=SECONDS)


def test_a_gain_is_told_with_both_numbers_and_what_it_cost() -> None:
    words = words_for(0.45)[1]
    assert words.startswith("Ranking first helped: 45.0 % mIoU with the best 20 labels, 30.0 % with all 64")
    assert "stage two took 40 s instead of 50 s, and stage one 60 s before it" in words
    assert words.endswith("this run does not show.")


def test_a_loss_is_told_as_one_and_the_bound_says_whether_it_was_avoidable() -> None:
    assert words_for(0.2)[1].startswith("Ranking first did not help: 20.0 %")
    assert words_for(0.2)[1].endswith("would have allowed 80.0 %, so the loss lies in stage two.")
    assert words_for(0.2, classes=0.25)[1].endswith("It could not: its ranking allows 25.0 % at most.")


@pytest.mark.parametrize("ranked", [0.29, 0.30, 0.315])
def test_a_small_difference_is_not_called_one(ranked: float) -> None:
    assert words_for(ranked)[1].startswith("Ranking first made no clear difference")


def test_a_ranking_no_better_than_frequency_is_said_to_be_so() -> None:
    assert words_for(0.45)[0].startswith("Stage one has learnt to look: the best 20 labels of its ranking hold 90.0 %")
    assert words_for(0.45, prior=0.9)[0].startswith("Stage one has learnt nothing that helps")


def test_the_room_above_is_measured_from_the_better_scheme() -> None:
    assert "40.0 points above the better of the two" in words_for(0.2)[2]
    assert "25.0 points above the better of the two" in words_for(0.45)[2]
    assert "no more than the better of the two" in words_for(0.75)[2]


@pytest.mark.parametrize("quick", [False, True])
def test_the_commands_shown_lead_to_the_configurations_that_were_run(tmp_path: Path, quick: bool) -> None:
    settings = Settings(tmp_path / "a demo", quick)
    settings.write()
    for verb, name, kind, more in (
        ("run-stage1", "stage1", Stage1Config, ()),
        ("rank", "rank", RankConfig, ()),
        ("run-stage2", "stage2", Stage2Config, (("source.train", "oracle"),)),
    ):
        program, used, file, *rest = shlex.split(settings.command(verb, name, *more))
        assert (program, used) == ("kappaseg", verb)
        assert load_config(kind, file, split_settings(rest)) == settings.load(kind, name, *more)


def test_all_three_settings_files_speak_of_the_same_scenes(tmp_path: Path) -> None:
    settings = Settings(tmp_path, False)
    settings.write()
    data = settings.load(Stage1Config, "stage1").data
    assert settings.load(RankConfig, "rank").data == settings.load(Stage2Config, "stage2").data == data


def test_the_longest_start_of_a_step_is_its_cost(tmp_path: Path) -> None:
    costs = Costs(tmp_path / "costs.json")
    assert costs.measure("rank", lambda: time.sleep(0.05)) is None
    first = costs.read()["rank"]["seconds"]
    assert costs.measure("rank", lambda: "found it done") == "found it done"
    assert costs.read()["rank"]["seconds"] == first >= 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick demo that was stopped when ranking, and then started again through the command line."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "rank_images", stopped)
        with pytest.raises(KeyboardInterrupt):
            demo(out, quick=True)
    before = (out / "stage1" / "weights.safetensors").stat().st_mtime_ns
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    assert (out / "stage1" / "weights.safetensors").stat().st_mtime_ns == before
    yield out


def stopped(config: RankConfig) -> LabelCache:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_demo_that_was_stopped_goes_on_to_a_whole_report(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    for heading in ("Stage two on images it has not seen", "From image to ranked labels to label map", "Curves",
                    "Tables", "Steps", "Loss of stage one", "Pixels whose label is among the best κ"):  # fmt: skip
        assert heading in text
    assert "its numbers mean nothing" in text
    assert len(re.findall(r"<img ", text)) == 3 * 5  # images, and for each the photo, the truth and three maps


@pytest.mark.slow
def test_the_report_loads_nothing_from_outside(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text)
    assert len(re.findall(r"""(?:src|href)=["']data:""", text)) == 3 * 5
    assert not re.search(r"url\((?!#)|@import|<script", text)


@pytest.mark.slow
def test_every_step_leaves_its_product_and_stands_in_the_report(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    for product in ("stage1/weights.safetensors", *(f"stage2-{source}/summary.json" for source in SOURCES)):
        assert (folder / product).exists()
    assert len(list((folder / "predictions").glob("*.png"))) == 2 * 3
    for command in ("run-stage1", "rank", "run-stage2", "evaluate", "predict"):
        assert f"kappaseg {command} {folder}" in text
    assert LabelCache.open(folder / "labels").splits == ("train", "val")


@pytest.mark.slow
def test_a_demo_of_the_other_length_is_refused_and_changes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    with pytest.raises(UserError, match="another configuration"):
        demo(folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
