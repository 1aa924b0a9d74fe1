"""A tiny data set and a tiny chain on it, made once and copied for each test."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines.cli import main

CLASSES = ("sky", "road", "tree", "car")
IMAGES = {"train": ("a0", "a1", "a2", "a3", "a4", "a5"), "val": ("v0", "v1")}
HEIGHT, WIDTH = 36, 44
#: ranks that the cache stores; fewer than K, so that a κ can be in the vocabulary and not in the cache
STORED = 3

SETTINGS = {
    "stage1": {
        "backbone": {"kind": "small_cnn", "name": "8"},
        "head": {"preset": "fast", "width": 8, "ffn": 16, "heads": 2, "decoder_layers": 1},
        "augment": {"image_size": 32, "randaugment_ops": 0, "cutout": 0},
        "loop": {"steps": 3, "batch_size": 2, "save_every": 2, "log_every": 1},
    },
    "rank": {"kappa": STORED, "part_images": 4},
    "stage2": {
        "backbone": {"kind": "small_cnn", "name": "8"},
        "host": {"options": {"width": 8, "heads": 2, "depth": 1}},
        "source": {"kappa": 2},
        "augment": {"short_side": 32, "crop": 32, "photometric": False},
        "inference": {"short_side": 32},
        "loop": {"steps": 3, "batch_size": 2, "save_every": 2, "log_every": 1},
    },
}
#: verb → its settings file
FILES = {"run-stage1": "stage1", "rank": "rank", "run-stage2": "stage2", "run-joint": "stage2"}


@dataclass(frozen=True)
class Chain:
    """A data set, settings and an output folder, all below one folder."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def out(self) -> Path:
        return self.home / "out"

    def settings(self, name: str) -> str:
        return str(self.home / f"{name}.yaml")

    def words(self, verb: str, *more: str) -> list[str]:
        """The command line of a verb of the chain; later settings win over those given here."""
        return [verb, self.settings(FILES[verb]), "--data.root", str(self.data), "--out", str(self.out), *more]

    def photo(self, image_id: str) -> Path:
        return self.data / "images" / f"{image_id}.jpg"

    def mask(self, image_id: str) -> Path:
        return self.data / "masks" / f"{image_id}.png"

    def files(self) -> dict[str, str]:
        """Everything below home: path → sha256, or "folder"."""
        return {
            str(path.relative_to(self.home)): "folder"
            if path.is_dir()
            else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.home.rglob("*"))
        }


def make_chain(home: Path, *, seed: int = 0) -> Chain:
    """Data set and settings files, no results yet. Photos are noise, so that truncating one cuts its pixels."""
    chain, rng = Chain(home), np.random.default_rng(seed)
    for name in ("images", "masks", "splits"):
        (chain.data / name).mkdir(parents=True)
    (chain.data / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, image_ids in IMAGES.items():
        (chain.data / "splits" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in image_ids))
        for image_id in image_ids:
            noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(noise).save(chain.photo(image_id), quality=95)
            mask = rng.integers(0, len(CLASSES), (2, 2), dtype=np.uint8).repeat(HEIGHT // 2, 0).repeat(WIDTH // 2, 1)
            mask[0] = 255
            Image.fromarray(mask).save(chain.mask(image_id))
    for name, values in SETTINGS.items():
        Path(chain.settings(name)).write_text(yaml.safe_dump(values))
    return chain


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Stage one, ranking with two folds and stage two, through the command line. Not to be changed: copy it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    chain = make_chain(tmp_path_factory.mktemp("chain"))
    for words in (chain.words("run-stage1"), chain.words("rank", "--folds", "2"), chain.words("run-stage2")):
        assert main(words) == 0
    torch.set_num_threads(threads)
    return chain


@pytest.fixture
def chain(finished: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A copy of the finished chain; the working directory is inside, so that nothing is written unseen."""
    return copied(finished, tmp_path, monkeypatch)


@pytest.fixture
def fresh(finished: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A copy without any result: data set and settings alone."""
    chain = copied(finished, tmp_path, monkeypatch)
    shutil.rmtree(chain.out)
    return chain


def copied(finished: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    chain = Chain(tmp_path / "home")
    shutil.copytree(finished.home, chain.home)
    monkeypatch.chdir(chain.home)
    return chain


#: (chain, command line, *texts in the message) → the message
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused: status 2, one line on standard error, no file changed.

    begun: work had begun, so lines of progress may come before.   but: the one file that may change.
    """

    def check(chain: Chain, words: list[str], *wanted: str, begun: bool = False, but: str = "") -> str:
        before = chain.files()
        capsys.readouterr()
        status = main(words)
        printed = capsys.readouterr()
        *progress, line = printed.err.splitlines()
        assert line.startswith("kappaseg: "), printed.err
        assert status == 2
        assert begun or not progress
        assert not any("Traceback" in line for line in progress)
        for text in wanted:
            assert text in line
        assert {**chain.files(), but: ""} == {**before, but: ""}
        return line

    return check
