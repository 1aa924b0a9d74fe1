"""The miniatures of all published sets, and the command that prepares them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kappaseg_core.scenes.published import published_set, set_names
from pipelines.cli import main
from tests.kappaseg_core.scenes.published.miniature import Miniature

#: set, or set and variant → what makes its miniature; every set there is has to have one
MAKERS: dict[str, Callable[[Path], Miniature]] = {
    f"{name} {variant}".strip(): make
    for name in set_names()
    for variant, make in importlib.import_module(f"{__package__}.miniatures.{name}").VARIANTS.items()
}

SetSizes = Callable[[Miniature, Mapping[str, int]], None]


def pretend(patch: pytest.MonkeyPatch, miniature: Miniature, splits: Mapping[str, int]) -> None:
    """Pretend that a set was published with so many images per split."""
    module = published_set(miniature.set)
    published = module.published
    patch.setattr(module, "published", lambda options: replace(published(options), splits=splits))


@pytest.fixture
def set_sizes(monkeypatch: pytest.MonkeyPatch) -> SetSizes:
    return lambda miniature, splits: pretend(monkeypatch, miniature, splits)


@pytest.fixture(scope="module", params=sorted(MAKERS))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Miniature, Path]:
    """A miniature of each set and variant, and the folder prepared from it, which tests only read."""
    path = tmp_path_factory.mktemp("prepared")
    made = MAKERS[request.param](path / "source")
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, made, made.counts)
        assert main(made.words(path / "to")) == 0
    return made, path / "to"


@pytest.fixture(params=sorted(MAKERS))
def miniature(request: pytest.FixtureRequest, tmp_path: Path, set_sizes: SetSizes) -> Miniature:
    """A miniature of each set and variant that counts as complete."""
    made = MAKERS[request.param](tmp_path / "source")
    set_sizes(made, made.counts)
    return made


@pytest.fixture
def ade20k(tmp_path: Path, set_sizes: SetSizes) -> Miniature:
    """The miniature of ADE20K, which counts as complete."""
    made = MAKERS["ade20k"](tmp_path / "source")
    set_sizes(made, made.counts)
    return made
