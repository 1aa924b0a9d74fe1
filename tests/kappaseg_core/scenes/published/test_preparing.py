"""What preparing does whatever the set: resuming, workers, links and copies, refusals. Shown on ADE20K."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from kappaseg_core.scenes import preparing
from kappaseg_core.scenes.published import Found, Item
from pipelines.cli import main
from tests.kappaseg_core.scenes.published.conftest import SetSizes
from tests.kappaseg_core.scenes.published.miniature import Miniature, draw_mask, draw_photo


def written(to: Path) -> dict[str, bytes]:
    """Every file of a folder but its record and its lock; bytes of linked photos."""
    files = (file for file in to.rglob("*") if file.is_file() and file.name not in ("prepared.json", ".lock"))
    return {str(file.relative_to(to)): file.read_bytes() for file in files}


def many(source: Path, images: int) -> list[str]:
    """A source of ADE20K with so many training images, and the command that prepares it but for --workers."""
    for number in range(images):
        name = f"ADE_train_{number:08d}"
        draw_photo(source / "images" / "training" / f"{name}.jpg", (20, 30), number)
        draw_mask(source / "annotations" / "training" / f"{name}.png", [[number % 151] * 30] * 20)
    return ["data", "prepare", "ade20k", "--source", str(source), "--partial"]


def test_an_interrupted_preparation_goes_on_with_what_is_missing(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to, make_scene = tmp_path / "to", preparing.make_scene
    left = 2

    def interrupted(work: preparing.Work, item: Item) -> str | None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return make_scene(work, item)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "make_scene", interrupted)
        assert main(ade20k.words(to)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not json.loads((to / "prepared.json").read_text())["finished"] and not list((to / "splits").iterdir())
    first = {mask: mask.stat().st_mtime_ns for mask in (to / "masks").iterdir()}
    assert len(first) == 2
    assert main(ade20k.words(to)) == 0
    assert "1 images made now; complete" in capsys.readouterr().out
    assert {mask: mask.stat().st_mtime_ns for mask in first} == first


def test_an_image_whose_mask_was_not_reached_is_made_though_its_photo_is_there(
    ade20k: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    assert main(ade20k.words(to)) == 0
    whole = written(to)
    next((to / "masks").iterdir()).unlink()
    assert main(ade20k.words(to)) == 0
    assert "1 images made now" in capsys.readouterr().out and written(to) == whole


def test_a_full_disk_is_one_line_and_no_flaw_of_an_image(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        assert main(ade20k.words(tmp_path / "to")) == 2
    printed = capsys.readouterr()
    assert "ADE_train_00000001.png: the disk is full; free space or choose another --out or --to" in printed.err
    assert not printed.out
    assert not list((tmp_path / "to" / "masks").iterdir())
    assert main(ade20k.words(tmp_path / "to")) == 0


def test_photos_are_links_or_copies(ade20k: Miniature, tmp_path: Path) -> None:
    assert main(ade20k.words(tmp_path / "linked")) == 0
    assert main(ade20k.words(tmp_path / "copied", "--photos", "copy")) == 0
    assert written(tmp_path / "linked") == written(tmp_path / "copied")
    links = [photo.is_symlink() for name in ("linked", "copied") for photo in (tmp_path / name / "images").iterdir()]
    assert links == [True] * 3 + [False] * 3
    shutil.rmtree(ade20k.source)
    assert main(["data", "check", str(tmp_path / "copied")]) == 0


def test_a_file_system_without_links_is_one_line_that_says_to_copy(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", none)
    assert main(ade20k.words(tmp_path / "to")) == 2
    assert "ADE_train_00000001.jpg to its photo: the file system has no links; name" in capsys.readouterr().err
    assert main(ade20k.words(tmp_path / "copied", "--photos", "copy")) == 0


def test_a_relative_source_gives_links_that_hold(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ade20k.source.parent)
    to = tmp_path / "to"
    assert main(["data", "prepare", "ade20k", "--source", ade20k.source.name, "--to", str(to), "--workers", "1"]) == 0
    assert all(photo.exists() for photo in (to / "images").iterdir())


def test_a_folder_that_holds_something_else_is_refused(
    ade20k: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    assert main(ade20k.words(to)) == 0
    before = written(to)
    for words, wanted in (
        (ade20k.words(to, "--photos", "copy"), "was begun with photos = 'link', now it is 'copy'"),
        (["data", "prepare", "ade20k", "--source", str(tmp_path), "--to", str(to)], f"source = '{ade20k.source}', now"),
        (["data", "prepare", "cityscapes", "--source", str(tmp_path), "--to", str(to)], "begun with set = 'ade20k'"),
    ):
        assert main(words) == 2
        assert wanted in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert main(ade20k.words(tmp_path / "full")) == 2
    assert "is not empty (it holds mine.txt); name a new folder" in capsys.readouterr().err
    assert main(ade20k.words(tmp_path / "full" / "mine.txt")) == 2
    assert "is a file, wanted a folder" in capsys.readouterr().err
    assert written(to) == before


def test_a_second_preparation_at_the_same_time_is_one_line(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would share the names of their temporary files."""
    to, make_scene, seconds = tmp_path / "to", preparing.make_scene, []

    def meanwhile(work: preparing.Work, item: Item) -> str | None:
        if not seconds:
            seconds.append(0)
            seconds[0] = main(ade20k.words(to))
        return make_scene(work, item)

    monkeypatch.setattr(preparing, "make_scene", meanwhile)
    assert main(ade20k.words(to)) == 0
    assert seconds == [2]
    printed = capsys.readouterr()
    assert f"{to} is in use by process {os.getpid()}" in printed.err and "wait for it to end" in printed.err
    assert "3 images made now; complete" in printed.out


def test_what_another_process_began_while_the_source_was_read_is_refused(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kappaseg_core.scenes.published import ade20k as module

    to, find = tmp_path / "to", module.find

    def slowly(source: Path, options: module.Options) -> Found:
        monkeypatch.setattr(module, "find", find)
        assert main(ade20k.words(to, "--photos", "copy")) == 0
        return find(source, options)

    monkeypatch.setattr(module, "find", slowly)
    assert main(ade20k.words(to)) == 2
    assert "was begun with photos = 'copy', now it is 'link'" in capsys.readouterr().err


def test_a_file_system_without_locks_is_a_note(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    assert main(ade20k.words(tmp_path / "to")) == 0
    assert "has no locks; see that one process at a time works there" in capsys.readouterr().err


def test_a_damaged_record_is_refused(ade20k: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "to"
    assert main(ade20k.words(to)) == 0
    (to / "prepared.json").write_text("{")
    assert main(ade20k.words(to)) == 2
    assert "prepared.json cannot be read" in capsys.readouterr().err


def test_the_record_says_what_the_folder_holds(ade20k: Miniature, tmp_path: Path) -> None:
    to = tmp_path / "to"
    assert main(ade20k.words(to)) == 0
    record = json.loads((to / "prepared.json").read_text())
    assert record["splits"] == {"train": {"images": 2, "published": 2}, "val": {"images": 1, "published": 1}}
    assert (record["set"], record["source"], record["photos"]) == ("ade20k", str(ade20k.source), "link")
    assert record["complete"] and record["finished"] and record["ignore"] == 255 and record["classes"] == 150


def test_a_partial_source_leaves_out_what_lacks_its_partner_and_says_so(
    ade20k: Miniature, set_sizes: SetSizes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    ade20k.photos["ADE_train_00000002"].unlink()
    assert main(ade20k.words(to, "--partial")) == 0
    printed = capsys.readouterr().out
    assert "1 images were left out" in printed and "not the complete set" in printed
    assert (to / "splits" / "train.txt").read_text() == "ADE_train_00000001\n"


def test_a_split_of_which_nothing_is_there_has_no_file(ade20k: Miniature, tmp_path: Path) -> None:
    to = tmp_path / "to"
    shutil.rmtree(ade20k.source / "images" / "validation")
    assert main(ade20k.words(to, "--partial")) == 0
    assert [file.name for file in (to / "splits").iterdir()] == ["train.txt"]


def test_every_flaw_counts_and_the_first_ones_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = many(tmp_path / "source", 13)
    for number in range(12):
        draw_mask(tmp_path / "source" / "annotations" / "training" / f"ADE_train_{number:08d}.png", [[0]])
    assert main([*words, "--to", str(tmp_path / "to"), "--workers", "1"]) == 2
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 10
    assert "12 images could not be prepared (the first 10 are shown)" in printed.err
    assert len(list((tmp_path / "to" / "masks").iterdir())) == 1


def test_an_image_in_two_splits_is_refused(
    ade20k: Miniature, set_sizes: SetSizes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "annotations"):
        for file in (ade20k.source / kind / "training").iterdir():
            shutil.copy(file, ade20k.source / kind / "validation")
    set_sizes(ade20k, {"train": 2, "val": 3})
    assert main(ade20k.words(tmp_path / "to")) == 2
    assert "image ADE_train_00000001 is listed more than once (and 1 more)" in capsys.readouterr().err


def test_a_label_map_with_a_class_beyond_k_never_reaches_a_mask(
    ade20k: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new set's mistake, which 8 bits would hide."""
    from kappaseg_core.scenes.published import ade20k as module

    label_map = module.label_map
    monkeypatch.setattr(module, "label_map", lambda item, options: label_map(item, options) + 200)
    with pytest.raises(ValueError, match=r"ADE_train_00000001 holds 199\.\.349, wanted -1\.\.149"):
        main(ade20k.words(tmp_path / "to"))


@pytest.mark.slow
def test_several_workers_write_what_one_writes(tmp_path: Path) -> None:
    words = many(tmp_path / "source", 40)
    for workers in ("1", "2"):
        assert main([*words, "--to", str(tmp_path / workers), "--workers", workers]) == 0
    assert len(written(tmp_path / "1")) == 82 and written(tmp_path / "1") == written(tmp_path / "2")


@pytest.mark.slow
def test_a_killed_preparation_leaves_whole_masks_and_no_process_and_goes_on(tmp_path: Path) -> None:
    words, to = many(tmp_path / "source", 150), tmp_path / "to"
    command = [sys.executable, "-m", "pipelines.cli", *words, "--to", str(to), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (to / "masks").is_dir() or not list((to / "masks").glob("*.png")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while session_lives(process.pid):
        assert time.monotonic() < deadline, "workers outlived the command"
        time.sleep(0.1)
    assert len(list((to / "masks").glob("*.png"))) < 150
    assert main([*words, "--to", str(to), "--workers", "1"]) == 0
    assert main(["data", "check", str(to)]) == 0
    assert main([*words, "--to", str(tmp_path / "undisturbed"), "--workers", "1"]) == 0
    temporary = {name for name in written(to) if name.endswith(".tmp")}
    assert {name: data for name, data in written(to).items() if name not in temporary} == written(
        tmp_path / "undisturbed"
    )


def session_lives(leader: int) -> bool:
    """Is there a process in the session (and group) that a dead process led."""
    try:
        os.killpg(leader, signal.SIG_DFL)  # signal 0: nothing is sent
    except ProcessLookupError:
        return False
    return True
