"""Variants in turns, as many as fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.bench.comparisons import compare, known_in
from pipelines.bench.needs import Needs
from pipelines.bench.turns import fitting, in_turns, measured, seconds
from pipelines.bench.variants import Variant
from pipelines.bench.worker import OUT_OF_MEMORY, Ended, Worker

if TYPE_CHECKING:
    from tests.pipelines.bench.conftest import FakeWorker


def named(variant: Variant, *names: str) -> list[Variant]:
    return [replace(variant, name=name) for name in names]


def test_variants_are_asked_in_turns_after_each_was_asked_once(tiny: Variant, fake: type[FakeWorker]) -> None:
    records = in_turns(named(tiny, "a", "b"), rounds=2)
    assert fake.asked == ["a", "b"] * 3
    assert [record["cpu_seconds"] for record in records] == [[3.0, 5.0], [4.0, 6.0]]
    assert records[0] | {"parts": None} == {
        "cpu_seconds": [3.0, 5.0], "seconds": [1.5, 2.5], "memory_mib": 104, "parts": None,
    }  # fmt: skip
    assert records[0]["parts"] == {"backbone": 4.0}


@pytest.mark.parametrize("status", [OUT_OF_MEMORY, -9])
def test_a_process_that_runs_out_of_memory_does_not_end_the_others(
    tiny: Variant, fake: type[FakeWorker], status: int
) -> None:
    fake.fails["a"] = status
    records = in_turns(named(tiny, "a", "b"), rounds=1)
    assert records[0] == {"skipped": "its process ran out of memory"} and "memory_mib" in records[1]


def test_a_process_that_fails_otherwise_is_an_error(tiny: Variant, fake: type[FakeWorker]) -> None:
    fake.fails["a"] = 1
    with pytest.raises(Ended, match="the process of 'a' ended with status 1"):
        in_turns(named(tiny, "a", "b"), rounds=1)


def test_what_needs_more_than_the_limit_is_left_out_and_said(
    tiny: Variant, fake: type[FakeWorker], capsys: pytest.CaptureFixture[str]
) -> None:
    large = replace(tiny, name="large", way="published", kappa=None, classes=100_000)
    records = measured([large, tiny], rounds=1, limit_gib=1.5)
    assert records[0]["skipped"].endswith("the limit is 1.5 GiB") and "cpu_seconds" not in records[0]
    assert records[0]["needed_mib"] > 2000 > records[1]["needed_mib"]
    assert set(fake.asked) == {tiny.name}
    assert "large, K = 100,000: left out, needs about" in capsys.readouterr().err


def test_a_group_holds_what_fits_together() -> None:
    estimates = {0: Needs(2, 5), 1: Needs(2, 1), 2: Needs(2, 3), 4: Needs(1, 8)}
    assert list(fitting(estimates, 11)) == [[0, 1, 2], [4]]  # 6 held and a step of 5; then 1 and 8
    assert list(fitting(estimates, 10)) == [[0, 1], [2], [4]]
    assert list(fitting({}, 10)) == []


def test_the_time_of_a_step_is_the_processors_or_the_gpus() -> None:
    found: dict[str, Any] = {"cpu_seconds": [3.0, 1.0, 2.0], "seconds": [0.3, 0.1, 0.2]}
    assert (seconds(found), seconds(found | {"device": "cuda"})) == (2.0, 0.2)


def test_comparisons_that_were_not_wanted_stay_as_they_were(
    tiny: Variant, fake: type[FakeWorker], tmp_path: Path
) -> None:
    file, both = tmp_path / "new" / "found.json", {"first": [tiny], "second": [tiny]}
    compare(both, ["second"], file, known_in(file), rounds=1, limit_gib=8, floor=True)
    second = known_in(file)["second"]
    compare(both, ["first"], file, known_in(file), rounds=2, limit_gib=8, more="words")
    assert known_in(file) == {"first": known_in(file)["first"], "second": second}
    assert list(known_in(file)) == ["first", "second"] and json.loads(file.read_text())["more"] == "words"
    assert second["variants"][0]["floor_seconds"] > 0 and second["rates"]["bandwidth"] > 0
    assert "rates" not in known_in(file)["first"]


@pytest.mark.slow
def test_a_process_tells_what_its_steps_take(tiny: Variant) -> None:
    with Worker(tiny) as worker:
        first, second = worker.step(), worker.step()
    assert 0 < second.cpu < 60 and second.memory < 2000
    assert sum(second.parts.values()) == pytest.approx(second.cpu, rel=0.1, abs=0.01)
    assert set(first.parts) == set(second.parts) > {"backbone", "decoder", "loss", "optimiser"}


@pytest.mark.slow
def test_a_process_that_cannot_build_its_network_says_so(tiny: Variant, capfd: pytest.CaptureFixture[str]) -> None:
    broken = replace(tiny, config=replace(tiny.config, backbone=replace(tiny.config.backbone, kind="none")))
    with Worker(broken) as worker, pytest.raises(Ended, match="status 1"):
        worker.step()
    assert "backbone.kind = 'none' is unknown" in capfd.readouterr().err
