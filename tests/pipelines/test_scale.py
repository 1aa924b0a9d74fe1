"""Training in this process, or in several workers through Ray: the same run, also where a worker is killed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from kappaseg_core.checkpoint import Summary
from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig, OptimConfig
from kappaseg_core.errors import UserError
from kappaseg_core.loop import Trainer
from label_cache.errors import CacheError
from pipelines import scale
from pipelines.cli import main
from pipelines.scale import connected, following, launch, reason_to_restart, refuse_mistake
from pipelines.scale_config import ScaleConfig, add_flags, scale_of
from stage2_segmentation.config import (
    AugmentConfig,
    HostConfig,
    InferenceConfig,
    LabelsConfig,
    SourceConfig,
    Stage2Config,
)
from stage2_segmentation.train import train_segmentation
from tests.pipelines.conftest import Chain, Refused

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")  # Ray warns of what Ray itself does

STEPS, SAVE_EVERY = 5, 2
VIT = {"img_size": 32, "depth": 2, "embed_dim": 8, "num_heads": 2}
TWO = ScaleConfig(workers=2)


def config_for(out: Path) -> Stage2Config:
    """A joint network on four images. Without dropout, whose masks are drawn in each worker; without batch statistics,
    which are those of a worker's share; and without AdamW, which makes whole steps of gradients that are 0 but for
    rounding: these three part two workers from one.
    """
    return Stage2Config(
        data=DataConfig(kind="synthetic", options={"classes": 6, "train": 4, "val": 2, "size": 32}),
        backbone=BackboneConfig(name="vit_tiny_patch16_224", frozen=False, options=VIT),
        host=HostConfig(options={"width": 8, "heads": 2, "depth": 1, "dropout": 0.0}),
        source=SourceConfig("joint", kappa=3),
        labels=LabelsConfig("encoder", {"pooled": 2, "heads": 2, "dropout": 0.0}, warm_up=0.4),
        augment=AugmentConfig(short_side=32, crop=24), inference=InferenceConfig(short_side=None),
        optim=OptimConfig("sgd", lr=1e-2),
        loop=LoopConfig(steps=STEPS, batch_size=4, save_every=SAVE_EVERY, log_every=1, device="cpu"), out=str(out),
    )  # fmt: skip


def weights_of(summary: Summary) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_file(Path(summary.run) / "weights.safetensors")
    return weights


def never(config: Any) -> Summary:
    raise AssertionError("must not be called")


@pytest.mark.parametrize("words", [[], ["--scale.workers", "1", "--scale.restarts", "9"]])
def test_one_worker_trains_in_this_process_without_ray(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    parser, seen = ArgumentParser(), list[Stage2Config]()
    add_flags(parser)
    launch(seen.append, config_for(Path("unused")), scale_of(parser.parse_args(words)))  # type: ignore[arg-type]
    assert seen == [config_for(Path("unused"))]


def test_two_workers_without_ray_name_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    with pytest.raises(UserError, match=r"needs Ray .*pip install 'kappaseg\[ray\]'"):
        launch(never, config_for(tmp_path / "out"), TWO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale.workers", "0"], "--scale.workers = 0, wanted at least 1"),
        (["--scale.gpus", "-1"], "--scale.gpus = -1, wanted at least 0"),
        (["--scale.restarts", "-1"], "--scale.restarts = -1, wanted at least 0"),
        (["--scale.cpus_per_worker", "0"], "--scale.cpus_per_worker = 0, wanted more than 0"),
        (["--scale.workers", "2", "--scale.gpus", "4"], "each GPU has one worker, give --scale.gpus alone"),
        (["--scale.workers", "many"], "argument --scale.workers: invalid int value: 'many'"),
        (["--scale.workers", "3"], "loop.batch_size = 2 is no multiple of 3 workers × 1 micro-batches"),
        (
            ["--scale.gpus", "2", "--loop.device", "cpu"],
            "loop.device = cpu with --scale.gpus = 2; use loop.device auto",
        ),
        (["--scale.workers", "2", "--loop.device", "cuda"], "loop.device = cuda on CPU workers; give --scale.gpus N"),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_starts(
    words: list[str], message: str, fresh: Chain, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    assert message in refused(fresh, fresh.words("run-stage1", *words))


def test_where_a_run_trained_is_no_part_of_its_record(chain: Chain) -> None:
    """A finished run is taken for the same one, and stays as it is."""
    before = chain.files()
    assert main(chain.words("run-stage2", "--scale.restarts", "7", "--scale.cpus_per_worker", "0.5")) == 0
    assert chain.files() == before


def test_lines_of_a_worker_are_shown_once_and_to_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with following(tmp_path / "lines"):
        for line in ("first", "second"):
            with (tmp_path / "lines").open("a") as file:
                file.write(f"{line}\n")
            time.sleep(1.5 * scale.POLL_SECONDS)
        with (tmp_path / "lines").open("a") as file:
            file.write("last\n")
    assert capsys.readouterr().err == "first\nsecond\nlast\n"


class Dead(Exception):
    """Stands for what Ray raises for a process that is gone."""


RAY = SimpleNamespace(exceptions=SimpleNamespace(RayError=Dead))


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ({0: RuntimeError("Connection closed by peer"), 1: Dead("connection error code 2. End of file")},
         "worker 1 was killed, most often for want of memory"),
        ({0: Dead("the node\nwas drained")}, "worker 0 is lost: the node was drained"),
        ({1: RuntimeError("Connection closed by peer")}, "worker 1 failed: Connection closed by peer"),
        ({0: ConnectionResetError()}, "worker 0 failed: ConnectionResetError"),
        ({0: KeyError("a slip in the program")}, ""),
    ],
)  # fmt: skip
def test_a_lost_worker_is_told_from_a_fault_of_the_program(failures: dict[int, Exception], reason: str) -> None:
    found = reason_to_restart(RAY, failures)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_a_death_that_ray_wraps_is_seen() -> None:
    wrapped = RuntimeError("health check failed: connection error code 2")
    wrapped.health_check_failure = Dead()  # type: ignore[attr-defined]
    assert reason_to_restart(RAY, {1: wrapped}).startswith("worker 1 was killed")


@pytest.mark.parametrize("mistake", [UserError("no such folder"), CacheError("of another classifier")])
def test_a_mistake_wins_over_what_it_did_to_the_other_workers(mistake: Exception) -> None:
    with pytest.raises(type(mistake)) as found:
        refuse_mistake({0: RuntimeError("Connection closed by peer"), 1: mistake})
    assert found.value is mistake


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray on this machine for the whole module; `launch` finds it and leaves it."""
    pytest.importorskip("ray.train.torch")
    home = Path.home() / ".ray"
    before = home.exists()
    with connected(cpus=2) as ray:
        yield ray
    assert not ray.is_initialized()
    assert home.exists() == before, "a token was written into the home folder"


@pytest.mark.ray
@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "somewhere", "127.0.0.1:0"])
def test_an_address_without_a_cluster_is_one_line_at_once(address: str) -> None:
    pytest.importorskip("ray")
    if address.endswith(":0"):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{closed.getsockname()[1]}"
    with (
        pytest.raises(UserError, match=f"no Ray cluster to join at {address} .*HOST:PORT") as found,
        connected(address),
    ):
        raise AssertionError("nobody is there")
    assert "\n" not in str(found.value)


@pytest.fixture(scope="module")
def together(ray: Any, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """What two workers that nothing happens to end with; started from a relative path."""
    home = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("together"))
    try:
        summary = launch(train_segmentation, config_for(Path("out")), TWO)
        return replace(summary, run=str(Path(summary.run).resolve()))
    finally:
        os.chdir(home)


@pytest.mark.ray
@pytest.mark.slow
def test_connecting_again_uses_what_is_there_and_leaves_it(ray: Any) -> None:
    with connected() as again:
        assert again is ray
    assert ray.is_initialized()
    assert "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_MODE" in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_end_with_the_weights_of_one(together: Summary, tmp_path: Path) -> None:
    alone = launch(train_segmentation, config_for(tmp_path / "out"), ScaleConfig())
    ours, theirs = weights_of(together), weights_of(alone)
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-5
    assert together.metrics == pytest.approx(alone.metrics, abs=1e-5)
    assert together.steps == STEPS


@pytest.mark.ray
@pytest.mark.slow
def test_workers_leave_the_files_of_a_run_and_no_others(together: Summary) -> None:
    run = Path(together.run)
    assert sorted(p.name for p in run.parent.iterdir()) == [run.name]
    assert {p.name for p in run.iterdir()} == {
        "run.yaml", "metrics.jsonl", "log.txt", "weights.safetensors", "summary.json",
    }  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_changes_nothing_but_the_time(
    together: Summary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second worker is killed in step 4, after two were saved: all go on from there and end with the same bytes."""
    mark = tmp_path / "killed"

    def train(config: Stage2Config) -> Summary:
        step = Trainer.train_step

        def deadly(self: Trainer, stream: Any) -> None:
            if self.step == SAVE_EVERY + 1 and self.place.worker == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            step(self, stream)

        Trainer.train_step = deadly  # type: ignore[method-assign]
        return train_segmentation(config)

    summary = launch(train, config_for(tmp_path / "out"), replace(TWO, restarts=1))
    printed = capsys.readouterr()
    shown = printed.err
    assert mark.exists()
    assert not printed.out
    assert "worker 1 was killed, most often for want of memory" in shown
    assert shown.count("all workers start again from the last saved step") == 1
    for name in ("weights.safetensors", "metrics.jsonl"):
        assert (Path(summary.run) / name).read_bytes() == (Path(together.run) / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [Path(summary.run).name]


@pytest.mark.ray
@pytest.mark.slow
def test_a_mistake_that_a_worker_finds_is_one_line_and_no_second_attempt(
    ray: Any, fresh: Chain, refused: Refused
) -> None:
    """One worker only reads what is wrong; nothing is left of the run, and Ray goes on."""
    (fresh.data / "splits" / "val.txt").write_text("absent\n")
    line = refused(fresh, fresh.words("run-stage1", "--scale.workers", "2"), "absent")
    assert "start again" not in line
    assert ray.is_initialized()


@pytest.mark.parametrize(("mode", "given"), [(None, True), ("token", True), ("disabled", False)])
def test_a_ray_of_our_own_gets_a_token_unless_tokens_are_off(
    mode: str | None, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the mode alone is set: Ray's server would end at once for want of a token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    scale.start(SimpleNamespace(init=lambda **settings: None), None)
    assert ("RAY_AUTH_TOKEN" in os.environ) is given
