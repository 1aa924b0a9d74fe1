"""Label caches that change under a running service: a new generation, damage, and what is mended."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from label_cache import LabelCache
from label_cache.schema import MANIFEST
from pipelines.cli import main
from pipelines.service.caches import ServedCache
from pipelines.service.config import ServeConfig
from tests.pipelines.conftest import CLASSES
from tests.pipelines.service.conftest import answering
from tests.pipelines.service.test_surface import write_cache

#: enough that a batch takes a while
IDS = [f"image-{number:03}" for number in range(200)]
PART = "val-00000.parquet"


@contextmanager
def serving(*folders: Path, check_seconds: float = 0.01) -> Iterator[TestClient]:
    """A service of caches alone, each under the name of its folder."""
    config = ServeConfig(caches=tuple(f"{f.absolute().name}={f}" for f in folders), check_seconds=check_seconds)
    with answering(config) as client:
        yield client


def followed(client: TestClient, name: str = "labels") -> ServedCache:
    found: ServedCache = client.app.state.house.caches[name]  # type: ignore[attr-defined]
    return found


def is_served(client: TestClient, version: str) -> bool:
    return bool(client.get("/v1/caches/labels").json()["version"] == version)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def write(folder: Path, turn: int) -> str:
    """A generation of the cache with its labels moved by `turn`, and one more image in front of all others for each;
    its version."""
    write_cache(folder, [*(f"a{number}" for number in range(turn)), *IDS], turn=turn)
    return LabelCache.open(folder).digest


def labels_of(turn: int) -> list[int]:
    return [(rank + turn) % len(CLASSES) for rank in range(3)]


# ------------------------------------------------------------------------------------------------------ new generations


class Hammer(threading.Thread):
    """Looks up one image and many in turn until told to stop. answers: (status, JSON)."""

    def __init__(self, client: TestClient) -> None:
        super().__init__()
        self.client, self.answers, self.stopped = client, list[tuple[int, Any]](), threading.Event()

    def has(self, answers: int) -> bool:
        return len(self.answers) >= answers

    def run(self) -> None:
        while not self.stopped.is_set():
            for answer in (self.client.get("/v1/caches/labels/labels/image-007"),
                           self.client.post("/v1/caches/labels/labels:batch", json={"image_ids": IDS})):  # fmt: skip
                self.answers.append((answer.status_code, answer.json()))


@contextmanager
def hammered(client: TestClient) -> Iterator[Hammer]:
    hammer = Hammer(client)
    hammer.start()
    try:
        yield hammer
    finally:
        hammer.stopped.set()
        hammer.join()


def written_anew(folder: Path, turn: int) -> str:
    return write(folder, turn)


def renamed_into_place(folder: Path, turn: int) -> str:
    """The folder is a link to the generation of the day; a rename replaces it."""
    target = folder.with_name(f"generation-{turn}")
    version = write(target, turn)
    link = folder.with_name("link")
    link.symlink_to(target)
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    os.replace(link, folder)
    return version


def copied_over(folder: Path, turn: int) -> str:
    """The files of another folder, one after the other, each by rename, the manifest last."""
    other = folder.with_name("other")
    version = write(other, turn)
    (folder / MANIFEST).unlink()
    for name in (PART, MANIFEST):
        shutil.copy2(other / name, folder / ".new")
        os.replace(folder / ".new", folder / name)
    return version


@pytest.mark.parametrize("switch", [written_anew, renamed_into_place, copied_over])
def test_every_answer_is_of_one_generation(tmp_path: Path, switch: Callable[[Path, int], str]) -> None:
    folder = tmp_path / "labels"
    turns = {write(folder, 0): 0}
    if switch is renamed_into_place:
        shutil.rmtree(folder)
        turns = {switch(folder, 0): 0}
    with serving(folder) as client:
        with hammered(client) as hammer:
            until(partial(hammer.has, 4))
            for turn in range(1, 7):
                version = switch(folder, turn)
                turns[version] = turn
                until(partial(is_served, client, version))
                until(partial(hammer.has, len(hammer.answers) + 4))
        assert {status for status, _ in hammer.answers} == {200}
        assert {answer["version"] for _, answer in hammer.answers} == set(turns) and len(turns) == 7
        for _, answer in hammer.answers:
            wanted = labels_of(turns[answer["version"]])
            if "image_id" in answer:
                assert answer["ids"] == wanted and answer["names"] == [CLASSES[label] for label in wanted]
            else:
                assert answer["image_ids"] == IDS and answer["ids"] == [wanted] * len(IDS)


def test_a_copy_of_an_answer_ends_with_its_generation(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    write(folder, 0)
    with serving(folder) as client:
        path = "/v1/caches/labels/labels/image-007"
        same = {"If-None-Match": client.get(path).headers["etag"]}
        assert client.get(path, headers=same).status_code == 304
        version = write(folder, 1)
        until(partial(is_served, client, version))
        answer = client.get(path, headers=same)
        assert answer.status_code == 200 and answer.json()["ids"] == labels_of(1)


def test_while_a_generation_is_written_the_last_one_answers(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    old = write(folder, 0)
    with serving(folder, check_seconds=60) as client:

        def is_the_old_one() -> None:
            followed(client).refresh(CLASSES)
            assert client.get("/v1/readyz").status_code == 200
            answer = client.get("/v1/caches/labels/labels/image-007")
            assert (answer.status_code, answer.json()["version"], answer.json()["ids"]) == (200, old, labels_of(0))

        (folder / MANIFEST).unlink()
        is_the_old_one()
        (folder / PART).unlink()
        shutil.rmtree(folder / "index")
        is_the_old_one()
        (folder / PART).write_bytes(b"half of it")
        is_the_old_one()
        new = write(folder, 1)
        followed(client).refresh(CLASSES)
        assert client.get("/v1/caches/labels/labels/image-007").json()["version"] == new


def test_a_directory_that_is_away_for_a_moment_is_not_missed(tmp_path: Path) -> None:
    """Two renames replace a directory. At the second look it is gone."""
    folder, aside = tmp_path / "labels", tmp_path / "aside"
    write(folder, 0)
    with serving(folder, check_seconds=60) as client:
        folder.rename(aside)
        followed(client).refresh(CLASSES)
        assert client.get("/v1/readyz").status_code == 200
        aside.rename(folder)
        followed(client).refresh(CLASSES)
        folder.rename(aside)
        followed(client).refresh(CLASSES)
        assert client.get("/v1/readyz").status_code == 200
        followed(client).refresh(CLASSES)
        assert client.get("/v1/caches/labels/labels/image-007").status_code == 503


# --------------------------------------------------------------------------------------------------------------- damage


def flipped(folder: Path) -> str:
    with (folder / PART).open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    return "is damaged (sha256"


def flipped_and_dated_back(folder: Path) -> str:
    before = (folder / PART).stat()
    said = flipped(folder)
    os.utime(folder / PART, ns=(before.st_atime_ns, before.st_mtime_ns))
    return said


def cut(folder: Path) -> str:
    os.truncate(folder / PART, 50)
    return "is damaged (50 bytes"


def part_deleted(folder: Path) -> str:
    (folder / PART).unlink()
    return f"part {PART} of it is missing"


def manifest_overwritten(folder: Path) -> str:
    (folder / MANIFEST).write_text("{}")
    return f"{MANIFEST} is damaged"


def deleted(folder: Path) -> str:
    shutil.rmtree(folder)
    return "does not exist"


def of_other_classes(folder: Path) -> str:
    write_cache(folder, IDS, names=("sky", "road", "bush", "car"))
    return "class 2 is 'bush' there and 'tree' here"


DAMAGES = [flipped, flipped_and_dated_back, cut, part_deleted, manifest_overwritten, deleted, of_other_classes]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_named_and_the_others_answer(
    tmp_path: Path, damage: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, other, kept = tmp_path / "labels", tmp_path / "other", tmp_path / "kept"
    version = write(folder, 0)
    write(other, 1)
    shutil.copytree(folder, kept)
    with serving(folder, other) as client, caplog.at_level(logging.ERROR, "kappaseg.service"):
        time.sleep(0.02)  # a later tick of the file system's clock
        said = damage(folder)
        until(lambda: client.get("/v1/readyz").status_code == 503)
        ready = client.get("/v1/readyz")
        assert ready.json()["ready"] is False and int(ready.headers["retry-after"]) >= 1
        parts = ready.json()["parts"]
        assert said in parts["cache labels"] and parts["cache other"] == parts["service"] == "ready"
        listed = {cache["name"]: cache for cache in client.get("/v1/caches").json()["caches"]}
        assert not listed["labels"]["ready"] and said in listed["labels"]["reason"] and listed["other"]["ready"]
        assert 'kappaseg_ready{part="cache labels"} 0.0' in client.get("/v1/metrics").text
        answers = [
            client.get("/v1/caches/labels/labels/image-007"), client.get("/v1/caches/labels/images"),
            client.post("/v1/caches/labels/labels:batch", json={"image_ids": IDS}),
        ]  # fmt: skip
        for answer in answers:
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert "labels" in answer.json()["detail"] and said in answer.json()["detail"]
        assert client.get("/v1/caches/other/labels/image-007").json()["ids"] == labels_of(1)
        texts = [ready.text, client.get("/v1/caches").text, *(answer.text for answer in answers)]
        assert not any(str(tmp_path) in text for text in texts)
        time.sleep(0.1)  # looked at again and again
        logged = [record.getMessage() for record in caplog.records]
        assert logged and len(set(logged)) == len(logged)  # each state once
        assert all(message.startswith("cache labels is not ready: ") for message in logged)

        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
        until(lambda: client.get("/v1/readyz").status_code == 200)
        mended = client.get("/v1/caches/labels/labels/image-007").json()
        assert (mended["ids"], mended["version"]) == (labels_of(0), version)
        assert 'kappaseg_ready{part="cache labels"} 1.0' in client.get("/v1/metrics").text


def test_a_path_that_is_relative_is_not_told_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "labels", 0)
    monkeypatch.chdir(tmp_path / "labels")
    with serving(Path(".")) as client:
        said = cut(tmp_path / "labels")
        until(lambda: client.get("/v1/readyz").status_code == 503)
        told = client.get("/v1/readyz").json()["parts"]["cache labels"]
        assert said in told and f"part {PART} of it is damaged" in told


def test_an_index_that_is_deleted_is_no_damage(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    write(folder, 0)
    with serving(folder, check_seconds=60) as client:
        shutil.rmtree(folder / "index")
        followed(client).refresh(CLASSES)
        assert client.get("/v1/readyz").status_code == 200
        assert client.get("/v1/caches/labels/labels/image-007").json()["ids"] == labels_of(0)


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_a_service_does_not_start_with_a_damaged_cache(
    tmp_path: Path, damage: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "labels"
    write(folder, 0)
    time.sleep(0.02)
    said = damage(folder)
    capsys.readouterr()
    assert main(["serve", "--cache", str(folder), "--port", "0"]) == 2
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith("kappaseg: ") and str(folder) in line and said in line
    assert "Traceback" not in printed.err and not printed.out


def test_a_service_does_not_start_with_a_cache_that_is_being_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "labels"
    write(folder, 0)
    (folder / MANIFEST).unlink()
    assert main(["serve", "--cache", str(folder), "--port", "0"]) == 2
    assert "unfinished" in capsys.readouterr().err.splitlines()[-1]
