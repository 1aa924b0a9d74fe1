"""Settings: what --help shows of a group is what it holds, also where only one of its settings is given."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from kappaseg_core.config import build, load_config
from pipelines.benchmark.config import BenchmarkConfig, load_benchmark
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config
from tests.settings_files import BENCHMARKS, FILES, ROOT, kind_of

TOPS = (Stage1Config, RankConfig, Stage2Config, BenchmarkConfig)


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
    [pytest.param(*found[:2], id=found[2]) for top in TOPS for found in groups(top)],
)
def test_what_is_not_given_of_a_group_is_as_where_nothing_is_given(kind: Any, default: Any) -> None:
    assert build(kind, {}) == default


@pytest.mark.parametrize("name", FILES)
def test_every_settings_file_can_be_read(name: str) -> None:
    load_config(kind_of(name), ROOT / name)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_settings_file_of_a_benchmark_can_be_read(name: str) -> None:
    load_benchmark(ROOT / name)
