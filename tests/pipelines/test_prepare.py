"""`kappaseg data prepare`: what is listed, what is printed at the end, and mistakes on the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kappaseg_core.config import DataConfig
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes import published as published_package
from kappaseg_core.scenes.prepared import Prepared
from kappaseg_core.scenes.published import published_set, set_names
from pipelines.cli import main
from pipelines.prepare import show_prepared
from tests.kappaseg_core.scenes.published.miniature import draw_mask, draw_photo

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("words", [["data", "prepare"], ["data", "prepare", "--help"]])
def test_without_a_name_the_sets_are_listed_with_their_sizes(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name in set_names():
        module = published_set(name)
        published = module.published(module.Options())
        (line,) = [line for line in lines if re.match(rf" *{name} ", line)]
        assert module.TITLE in line and f" {published.num_classes} " in line
        assert all(f"{count:,} {split}" in line for split, count in published.splits.items())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ade2k"], "data set = 'ade2k' is unknown; did you mean ade20k? there are: ade20k, "),
        (["ade20k"], "needs two folders; write kappaseg data prepare ade20k --source DIR --to DIR"),
        (["ade20k", "--source", "nowhere"], "write kappaseg data prepare ade20k --source DIR --to DIR"),
        (["ade20k", "--source", "nowhere", "--to", "to"], "nowhere is no folder; unpack ADEChallengeData2016.zip"),
        (["ade20k", "--source", ".", "--to", "to"], "holds no annotations (nor ADEChallengeData2016/annotations)"),
        (["ade20k", "--source", ".", "--to", "to", "--workers", "0"], "--workers 0, wanted at least 1"),
        (["ade20k", "--source", ".", "--to", "to", "--photos", "move"], "invalid choice: 'move'"),
        (["ade20k", "--source", ".", "--to", "to", "--variant", "1"], "unknown setting variant; data prepare takes"),
        (["ade20k", "--source", ".", "--to", "to", "--splits", "val"], "data prepare takes no --splits"),
        (["ade20k", "out", "--source", ".", "--to", "to"], "data prepare takes no 'out'"),
        (
            ["pascal_context", "--source", ".", "--to", "to", "--options.classes", "33"],
            "options.classes = 33, wanted one of 59, 60",
        ),
        (
            ["pascal_context", "--source", ".", "--to", "to", "--options.clases", "59"],
            "unknown setting options.clases; did you mean classes?",
        ),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    words: list[str], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "prepare", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kappaseg: ") and wanted in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [["--source", "x"], ["--to", "x"], ["--partial"], ["--workers", "2"]])
def test_flags_of_preparing_are_refused_elsewhere(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "data", *flag]) == 2
    assert f"{flag[0]} is for data prepare" in capsys.readouterr().err


def prepared(classes: int, ignore: int) -> Prepared:
    return Prepared("A set", classes, ignore, {"val": 3}, {"val": 3}, made=3, left_out=0, flaws=())


def test_the_commands_that_follow_state_the_ignore_value_where_it_is_not_the_usual_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_prepared(prepared(150, 255), Path("to"))
    assert "ignore" not in capsys.readouterr().out
    show_prepared(prepared(847, 65535), Path("to"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  kappaseg")]
    assert lines == [
        "kappaseg data check to --data.options.ignore 65535",
        "kappaseg data pack to to.h5 --data.options.ignore 65535",
        "kappaseg run-stage1 CONFIG --data.root to --data.options.ignore 65535 --out RUN",
    ]


def test_the_document_names_every_set_with_its_classes_and_images() -> None:
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    for name in set_names():
        module = published_set(name)
        published = module.published(module.Options())
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` ")]
        assert f"| {published.num_classes:,} |" in row.replace(" / 59", "")
        assert " / ".join(f"{count:,}" for count in published.splits.values()) in row
        assert f"kappaseg data prepare {name} " in text


def test_the_example_of_the_document_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text("utf-8"), re.DOTALL)
    assert block.startswith("# kappaseg_core/scenes/published/crossings.py\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "crossings.py").write_text(block, "utf-8")
    monkeypatch.setattr(published_package, "__path__", [*published_package.__path__, str(tmp_path / "more")])
    monkeypatch.delitem(sys.modules, f"{published_package.__name__}.crossings", raising=False)
    source, to = tmp_path / "source", tmp_path / "to"
    for image_id, split in (("a", "train"), ("b", "train"), ("c", "val")):
        draw_photo(source / "photos" / split / f"{image_id}.jpg", (1, 3))
        draw_mask(source / "labels" / split / f"{image_id}.png", [[0, 1, 9]])
    assert main(["data", "prepare", "crossings", "--source", str(source), "--to", str(to), "--workers", "1"]) == 0
    assert open_scenes(DataConfig(root=str(to)), "val")[0].mask.tolist() == [[-1, 0, 1]]
