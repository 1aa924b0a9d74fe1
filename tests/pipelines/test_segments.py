"""Segments from a network to files: `evaluate` and `predict`, with a network that was told what is in its images."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from kappaseg_core.config import DataConfig, to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import Ranking
from kappaseg_core.scenes import open_scenes, things_of
from kappaseg_core.scenes.panoptic_files import read_annotations
from kappaseg_core.segments import scene_segments
from kappaseg_core.structures import Scene
from pipelines import evaluate, predict
from pipelines.benchmark.measure import measure_run
from pipelines.cli import main
from pipelines.found_segments import files_for_segments
from stage2_segmentation.config import InferenceConfig, SourceConfig, Stage2Config
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.structures import QueryPrediction, Seen

DATA = DataConfig("synthetic", options={"classes": 8, "train": 2, "val": 3, "size": 40, "objects": 3})
SETTINGS = ["--data.kind", "synthetic", *(word for name, value in DATA.options.items()
                                          for word in (f"--data.options.{name}", str(value)))]  # fmt: skip
SURE = 20.0  # a logit


class Told(nn.Module):
    """A query for each true segment but the first, whose mask lies `shift` pixels too low; the rest is "no object"."""

    cell, branch, learns_objects, host = 1, None, True, SimpleNamespace()
    backbone = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __init__(self, shift: int) -> None:
        super().__init__()
        scenes = open_scenes(DATA, "val")
        self.shift, self.things = shift, things_of(scenes)
        self.scenes: dict[bytes, Scene] = {scenes.image(n).tobytes(): scenes[n] for n in range(len(scenes))}

    def look(self, images: Tensor) -> Seen:
        return Seen(images)

    def segment(self, seen: Seen, ranking: Ranking) -> QueryPrediction:
        pixels = (255 * seen.features[0]).round().byte().numpy()
        segments = scene_segments(self.scenes[pixels.tobytes()], self.things)
        classes, masks = torch.zeros(1, len(segments), ranking.kappa + 1), []
        for number, label in enumerate(segments.labels):
            classes[0, number, :-1] = SURE * (ranking.labels[0] == label) * (number > 0)
            classes[0, number, -1] = SURE * (number == 0)
            masks.append(torch.where(segments.map.roll(self.shift, 0) == number + 1, SURE, -SURE))
        return QueryPrediction(classes, torch.stack(masks)[None])


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run out/stage2-complete of such a network; the current folder is beside."""
    monkeypatch.chdir(tmp_path)
    return make_run(monkeypatch)


def make_run(monkeypatch: pytest.MonkeyPatch, *, inference: InferenceConfig | None = None) -> Path:
    run, scenes = Path("out/stage2-complete"), open_scenes(DATA, "val")
    plan = inference or InferenceConfig(short_side=None)
    config = Stage2Config(data=DATA, source=SourceConfig("complete"), inference=plan, out="out")
    things = [name for name, thing in zip(scenes.class_names, things_of(scenes), strict=True) if thing]
    record = {"model": "told", "config": to_plain(config), "inputs": {"rankings": "complete"},
              "class_names": list(scenes.class_names), "things": things}  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    (run / "weights.safetensors").write_bytes(b"")
    for module in (evaluate, predict):
        monkeypatch.setattr(module, "load_segmentation", lambda _: (Told(2), config, scenes.class_names))
    monkeypatch.setattr(evaluate, "refuse_other_rankings", lambda *_: None)
    return run


def evaluated(run: Path) -> dict[str, Any]:
    (file,) = run.glob("evaluation-*.json")
    return dict(json.loads(file.read_text()))


def test_the_quality_that_evaluate_says_is_that_of_the_files_it_writes(
    told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(told), "--segments", "found"]) == 0
    printed = capsys.readouterr().out
    assert "found/panoptic.json: 3 images" in printed
    found = evaluated(told)["panoptic"]
    assert 0.2 < found["RQ"] < 0.95 and 0.5 < found["SQ"] < 0.95
    row = ["stage2-complete", "things", *(f"{100 * found[name + '_things']:.2f}" for name in ("PQ", "SQ", "RQ"))]
    assert row in [line.split()[:5] for line in printed.splitlines()]
    assert main(["panoptic", "write", "-", "truth", *SETTINGS]) == 0
    assert main(["panoptic", "quality", "truth", "found", "--to", "quality.json"]) == 0
    of_files = json.loads(Path("quality.json").read_text())
    assert {name: of_files[name] for name in found} == found
    assert {c["name"]: c["PQ"] for c in of_files["classes"]} == evaluated(told)["class_PQ"]


def test_a_benchmark_measures_the_same_quality(told: Path) -> None:
    assert main(["evaluate", str(told), "--source.test", "oracle"]) == 0
    measure_run(told, Path("measured"), settings=[("source.test", "oracle")], gallery=1)
    measured = json.loads(Path("measured/measurement.json").read_text())
    assert measured["panoptic"] == evaluated(told)["panoptic"]
    assert measured["mIoU"] == pytest.approx(evaluated(told)["mIoU"])


def test_predict_draws_segments_and_writes_them_as_files(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = open_scenes(DATA, "val")
    for index, name in enumerate(scenes.image_ids):
        Image.fromarray(scenes.image(index).transpose(1, 2, 0)).save(f"{name}.png")
    photos = [f"{name}.png" for name in scenes.image_ids]
    assert main(["predict", str(told), *photos, "--to", "seen"]) == 0
    printed = capsys.readouterr().out
    files = {str(path.relative_to("seen")) for path in Path("seen").rglob("*") if path.is_file()}
    each = (f"{folder}{name}{ending}" for name in scenes.image_ids
            for folder, ending in (("", ".png"), ("", ".labels.png"), ("panoptic/", ".png")))  # fmt: skip
    assert files == {"panoptic.json", *each}
    found = read_annotations(Path("seen/panoptic.json"))
    assert found.image_ids == scenes.image_ids and found.categories.names == scenes.class_names
    several = 0
    for index in range(len(scenes)):
        segments = found[index].segments()
        wanted = scene_segments(scenes[index], things_of(scenes))
        assert segments.labels.tolist() == wanted.labels.tolist()[1:]
        assert segments.map.equal((wanted.map.roll(2, 0) - 1).clamp(min=0))
        several += len(segments) > len(segments.labels.unique())
    assert several and " × " in printed and "(rank " in printed
    assert main(["predict", str(told), photos[0], "--to", "seen"]) == 0  # its own files, again
    assert main(["panoptic", "draw", "seen", "--images", ".", "--to", "drawn"]) == 0
    assert np.array_equal(*(np.asarray(Image.open(f"{folder}/{photos[0]}")) for folder in ("seen", "drawn")))


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *wanted: str) -> None:
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kappaseg: ")]
    for text in wanted:
        assert text in line
    assert sorted(Path().rglob("*")) == before


def test_a_folder_that_has_segments_is_not_written_to(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("found").mkdir()
    Path("found/panoptic.json").write_text("{}")
    refused(["evaluate", str(told), "--segments", "found"], capsys, "found/panoptic.json is there already")


def test_segments_of_several_runs_or_of_none_are_refused(
    told: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("out/stage2-other")
    other.mkdir()
    for run in (told, other):
        for name in ("run.yaml", "summary.json"):
            (run / name).write_bytes((told / "run.yaml").read_bytes())
    refused(["evaluate", "out", "--segments", "found"], capsys, "--segments found is for one run, found 2")
    monkeypatch.setattr(Told, "learns_objects", False)
    refused(["evaluate", str(told), "--segments", "found"], capsys, "was trained on labels and finds no objects")


def test_files_of_segments_are_written_by_one_process(told: Path) -> None:
    with pytest.raises(UserError, match="one process writes all segments, found 2"):
        files_for_segments(
            Path("found"), told, cast(SegmentationModel, Told(0)), open_scenes(DATA, "val"), Placement(0, 2)
        )


def test_windows_are_refused_before_anything_is_read(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("photo.png")
    for words in (["evaluate", str(told)], ["predict", str(told), "photo.png"]):
        refused([*words, "--inference.mode", "slide"], capsys, "set --inference.mode whole")


def test_data_without_objects_and_other_things_are_refused(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["evaluate", str(told), "--data.options.objects", "null"]
    refused(plain, capsys, "split 'val' has label maps and no instance maps, wanted both; see docs/data.md")
    record = yaml.safe_load((told / "run.yaml").read_text())
    (told / "run.yaml").write_text(yaml.safe_dump({**record, "things": record["things"][1:]}))
    refused(["evaluate", str(told)], capsys, "label_0001 is stuff, in split 'val' it is a thing; evaluate on the data")


def test_a_run_that_does_not_say_what_things_are_cannot_predict(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("photo.png")
    record = yaml.safe_load((told / "run.yaml").read_text())
    del record["things"]
    (told / "run.yaml").write_text(yaml.safe_dump(record))
    refused(["predict", str(told), "photo.png"], capsys, "does not say which classes have objects; add a list")


def test_the_rule_of_segments_is_part_of_the_name_of_an_evaluation(
    told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both say what differs; a rule that no query meets leaves no quality, and words on what to do."""
    assert main(["evaluate", str(told), "--inference.segments.score", "1.0"]) == 0
    (file,) = told.glob("evaluation-*.json")
    assert file.name == "evaluation-complete-segments.score-1.0.json"
    assert evaluated(told)["panoptic"]["PQ"] == 0
    assert "no segment was found; a query becomes one where" in capsys.readouterr().out


# With a real network


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that trains a tiny Mask2Former on objects; the current folder is empty but for its settings."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    sizes = {"queries": 5, "width": 32, "encoder_layers": 1, "encoder_ffn": 32, "layers": 1, "heads": 2, "ffn": 32}
    settings = {
        "data": to_plain(DATA),
        "backbone": {"name": "resnet10t"},
        "host": {"kind": "mask2former", "options": {**sizes, "points": 16, "target": "objects"}},
        "source": {"train": "complete", "kappa": None},
        "augment": {"short_side": 40, "crop": 40},
        "inference": {"short_side": None},
        "loop": {"steps": 1, "batch_size": 2},
    }
    Path("objects.yaml").write_text(yaml.safe_dump(settings))
    return ["run-stage2", "objects.yaml", "--out", "out"]


def test_a_mask_network_learns_objects_and_is_measured_by_them(words: list[str]) -> None:
    assert main(words) == 0
    run = Path("out/stage2-complete")
    things = open_scenes(DATA, "val").class_names[1::2]
    assert yaml.safe_load((run / "run.yaml").read_text())["things"] == list(things)
    assert {"mIoU", "PQ", "PQ_things", "PQ_stuff"} <= json.loads((run / "summary.json").read_text())["metrics"].keys()
    rule = ["--inference.segments", "{score: 0, overlap: 0, least: 0}"]
    assert main(["evaluate", str(run), *rule, "--segments", "found"]) == 0
    found = read_annotations(Path("found/panoptic.json"))
    assert len(found) == 3 and max(len(found[index].segments()) for index in range(3)) > 0
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save("photo.png")
    assert main(["predict", str(run), "photo.png"]) == 0
    assert read_annotations(Path("predictions/panoptic.json"))[0].segments().map.shape == (30, 50)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (["--data.options.objects", "null"], "host.options.target = objects, but split 'train' has label maps and no"),
        (["--inference.flip", "true"], "inference.flip = true, but objects are found in one view of the whole image"),
    ],
)
def test_objects_that_cannot_be_learnt_or_found_are_told_before_training(
    words: list[str], more: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([*words, *more], capsys, wanted)


def test_feeding_with_objects_is_measured_and_so_is_the_step(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "data", "objects.yaml", "--seconds", "0.2", "--workers", "0", "--network", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["needed_images_per_second"] > 0
    refused([*command, "--data.options.objects", "null"], capsys, "host.options.target = objects, but split 'train'")
