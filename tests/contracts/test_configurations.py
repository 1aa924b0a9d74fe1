"""Settings: what --help shows of a group is what it holds, also where only one of its settings is given."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kappaseg_core.config import build, load_config
from pipelines.benchmark.config import BenchmarkConfig
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {"stage1": Stage1Config, "rank": RankConfig, "stage2": Stage2Config}


def groups(kind: Any) -> Iterator[tuple[Any, Any, str]]:
    """(type, default, name) of every group of settings below a configuration."""
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[entry.name]):
            assert entry.default_factory is not dataclasses.MISSING
            yield hints[entry.name], entry.default_factory(), f"{kind.__name__}.{entry.name}"
            yield from groups(hints[entry.name])


@pytest.mark.parametrize(
    ("kind", "default"),
    [pytest.param(*found[:2], id=found[2]) for top in (*KINDS.values(), BenchmarkConfig) for found in groups(top)],
)
def test_what_is_not_given_of_a_group_is_as_where_nothing_is_given(kind: Any, default: Any) -> None:
    assert build(kind, {}) == default


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_settings_file_can_be_read(path: Path) -> None:
    for name, kind in KINDS.items():
        if path.stem.startswith(name):
            load_config(kind, path)
