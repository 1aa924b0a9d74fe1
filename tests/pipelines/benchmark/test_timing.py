from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from kappaseg_core.cost import Cost
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import OwnRanking, Ranking
from pipelines.benchmark import timing
from pipelines.benchmark.deployed import Deployed, spread
from pipelines.benchmark.inference_memory import inference_memory
from pipelines.benchmark.timing import numbers, rounds_within, taken_in_turns, time_networks
from pipelines.cli import main
from tests.pipelines.conftest import CLASSES, IMAGES, Chain


@pytest.fixture(scope="module")
def runs(finished: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network on all labels, one on a cache and one that ranks for itself; the cache is that of the shared chain."""
    out = tmp_path_factory.mktemp("timing")
    words = ["--source.cache", str(finished.out / "labels"), "--out", str(out)]
    assert main(finished.words("run-stage2", *words, "--source.train", "complete")) == 0
    joint = ["--source.train", "joint", "--labels.head", "encoder", "--labels.options.heads", "2"]
    assert main(finished.words("run-stage2", *words, *joint)) == 0
    found = {"baseline": out / "stage2-complete", "joint": out / "stage2-joint"}
    return {"baseline": found["baseline"], "independent": finished.out / "stage2-cache", "joint": found["joint"]}


def test_every_scheme_is_measured_whole_and_in_parts(
    runs: dict[str, Path], finished: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = {"peak_memory_mib": 9, "idle_memory_mib": 5}
    monkeypatch.setattr(timing, "inference_memory", lambda uses: [memory] * len(uses))
    classifiers = {"independent": finished.out / "stage1", "joint": None}
    time_networks(runs, tmp_path / "cost", classifiers=classifiers, repeats=4)
    found = json.loads((tmp_path / "cost" / "cost.json").read_text())
    assert found["baseline"] == "baseline"
    assert (found["images"], found["rounds"]) == (len(IMAGES["val"]), 4)
    schemes = found["schemes"]
    assert list(schemes) == list(runs)
    for values in schemes.values():
        parts = [part for part in (values["network"], values["classifier"]) if part]
        for name in ("parameters", "macs", "macs_paper"):
            assert values[name] == sum(part[name] for part in parts) > 0
        assert 0 < values["latency_p50_ms"] <= values["latency_p95_ms"]
        assert values["images_per_second"] > 0
        assert values["peak_memory_mib"] == 9
    assert schemes["baseline"]["latency_ratio"] == 1.0
    assert [bool(values["classifier"]) for values in schemes.values()] == [False, True, False]
    assert schemes["independent"]["latency_p50_ms"] > schemes["independent"]["network"]["latency_p50_ms"]
    for name, run in runs.items():
        assert schemes[name]["network"]["parameters"] == json.loads((run / "summary.json").read_text())["parameters"]
    assert not list((tmp_path / "cost").glob(".*"))


def test_memory_is_that_of_a_process_of_its_own_however_large_this_one_is(
    runs: dict[str, Path], finished: Chain
) -> None:
    """What the operating system says of a new process may start with the memory of its parent."""
    ballast = torch.zeros(2**30, dtype=torch.uint8)
    found = inference_memory([(runs["independent"], finished.out / "stage1", 1), (runs["baseline"], None, 0)])
    for memory in found:
        assert 0 < memory["idle_memory_mib"] < memory["peak_memory_mib"] < ballast.numel() / 2**20
    assert len(found) == 2


def test_a_failed_memory_measurement_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        inference_memory([(tmp_path / "nowhere", None, 0)])


def test_a_new_image_is_ranked_as_the_cache_has_it(runs: dict[str, Path], finished: Chain) -> None:
    network = Deployed.load(runs["independent"], finished.out / "stage1")
    assert network.classifier is not None
    for image, stored in zip(network.images, network.rankings, strict=True):
        live = network.classifier(image.numpy())
        assert isinstance(stored, Ranking)
        assert torch.equal(live.labels, stored.labels)
        assert torch.allclose(live.scores, stored.scores, atol=1e-3)


def test_each_network_gets_the_ranking_of_its_own_source(runs: dict[str, Path]) -> None:
    kinds = {name: Deployed.load(run, None).rankings[0] for name, run in runs.items()}
    assert isinstance(kinds["joint"], OwnRanking)
    assert [cast(Ranking, kinds[name]).kappa for name in ("baseline", "independent")] == [len(CLASSES), 2]


def test_networks_take_turns_and_nobody_is_always_first() -> None:
    calls: list[tuple[str, int]] = []

    class Watched:
        images = (0, 1)

        def __init__(self, name: str) -> None:
            self.name = name

        def use(self, index: int) -> tuple[float, float]:
            calls.append((self.name, index))
            return 0.0, 0.001 * (1 + index)

    networks: Any = {name: Watched(name) for name in "ABC"}
    times = taken_in_turns(networks, repeats=3, seconds=10.0)
    assert "".join(name for name, _ in calls[6:15]) == "ABCBCABCA"  # two uses each come before
    assert [index for _, index in calls[6:15]] == [0] * 3 + [1] * 3 + [0] * 3
    assert times["B"].shape == (2, 3, 2)
    assert times["B"][1].tolist() == [[0.001, 0.002]] * 3


@pytest.mark.parametrize(
    ("seconds", "per_image", "wanted"),
    [
        (60.0, 0.1, (8, 30)),  # 600 uses: as many rounds as asked for
        (60.0, 1.0, (8, 7)),  # 60 uses
        (60.0, 5.0, (4, 3)),  # 12 uses: three rounds of fewer images
        (60.0, 100.0, (1, 3)),  # never fewer than three
    ],
)
def test_rounds_fit_into_the_time(seconds: float, per_image: float, wanted: tuple[int, int]) -> None:
    assert rounds_within(seconds, per_image=per_image, images=8, repeats=30) == wanted


def test_numbers_of_times_worked_by_hand() -> None:
    times = np.array([[0.1, 0.3], [0.2, 0.2], [0.1, 0.1]])
    found = numbers(Cost(1, 2, 3), times, np.array([[0.1, 0.1], [0.1, 0.1], [0.2, 0.2]]))
    assert found["images_per_second"] == 5.0  # rounds: 2 / .4, 2 / .4, 2 / .2
    assert found["latency_p50_ms"] == 150.0
    assert found["latency_p95_ms"] == 275.0  # between .2 and .3, at place .95 · 5 = 4.75 of 0..5
    assert found["latency_ratio"] == 1.5  # of 1, 3, 2, 2, .5, .5


def test_sampled_images_are_spread_over_the_split_and_no_image_comes_twice() -> None:
    assert spread(80) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert spread(3) == [0, 1, 2]


def test_a_baseline_that_is_not_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are: joint"):
        time_networks({"joint": tmp_path}, tmp_path, classifiers={}, baseline="plain")
