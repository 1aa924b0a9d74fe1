"""Steps in their order: reuse, retries, failures, deletions. Most steps here only pretend."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kappaseg_core.errors import UserError
from kappaseg_core.lock import locked
from pipelines.benchmark import child, ledger, live, run, steps
from pipelines.benchmark.plan import Plan, Step
from pipelines.benchmark.schedule import Ended, State, States, run_steps
from pipelines.cli import main
from tests.pipelines.benchmark.conftest import FAKE, SCHEMES, Bench, InProcess, ids
from tests.pipelines.benchmark.test_plan import standing_on
from tests.pipelines.conftest import Chain

TWO = {name: SCHEMES[name] for name in ("baseline", "independent")}


@pytest.fixture
def two(bench: Bench) -> Bench:
    bench.write(schemes=TWO)
    return bench


def statuses(states: States) -> dict[str, str]:
    return {name: state.status for name, state in states.items()}


def all_are(status: str, states: States) -> bool:
    return set(statuses(states).values()) == {status}


# What is done, and what is done again


def test_a_second_run_starts_nothing(two: Bench) -> None:
    plan = two.plan()
    assert all_are("done", two.run(plan))
    assert two.calls() == ids(plan)
    assert all_are("reused", two.run(two.plan()))
    assert two.calls() == []


@pytest.mark.parametrize("deleted", ["train-independent-seed-0", "stage1-q2l-seed-0", "measure-baseline-seed-0"])
def test_a_deleted_product_is_made_again_with_all_that_stands_on_it(two: Bench, deleted: str) -> None:
    plan = two.plan()
    two.run(plan)
    two.calls()
    shutil.rmtree(two.out / plan.steps[deleted].folder)
    two.run(plan)
    assert set(two.calls()) == standing_on(plan, deleted)
    assert all_are("reused", two.run(plan))


def test_a_single_missing_file_counts_as_deleted(two: Bench) -> None:
    plan = two.plan()
    two.run(plan)
    (two.out / "seed-0/q2l/labels/val/0.parquet").unlink()
    assert {name for name, state in two.run(plan).items() if state.status == "done"} == standing_on(
        plan, "rank-q2l-seed-0"
    )


def test_a_changed_setting_replaces_what_was_made_with_the_old_one(two: Bench) -> None:
    two.run(two.plan())
    two.calls()
    (two.out / "seed-0/baseline/old").touch()
    (two.out / "seed-0/independent/kept").touch()
    plan = two.plan(("schemes.baseline.stage2.optim.lr", "0.5"))
    two.run(plan)
    assert set(two.calls()) == {"train-baseline-seed-0", "measure-baseline-seed-0", "cost"}
    assert not (two.out / "seed-0/baseline/old").exists()
    assert (two.out / "seed-0/independent/kept").exists()


def test_features_that_nobody_waits_for_may_be_deleted(bench: Bench) -> None:
    bench.write(schemes=TWO, stage2={"backbone.frozen": True, "loop.cached_views": 2})
    plan = bench.plan()
    (features,) = ids(plan, "features")
    bench.run(plan)
    bench.calls()
    shutil.rmtree(bench.out / "seed-0/features")
    assert all_are("reused", bench.run(plan))
    shutil.rmtree(bench.out / "seed-0/baseline")
    bench.run(plan)
    assert set(bench.calls()) == {features, "train-baseline-seed-0", "measure-baseline-seed-0", "cost"}


def test_a_folder_that_no_step_has_begun_is_left_to_the_step(two: Bench) -> None:
    """It may be the user's own; training itself refuses a folder that is not its run."""
    (two.out / "seed-0/baseline").mkdir(parents=True)
    (two.out / "seed-0/baseline/mine").touch()
    two.run(two.plan())
    assert (two.out / "seed-0/baseline/mine").exists()


def test_what_an_interrupted_step_of_other_settings_left_is_removed(two: Bench) -> None:
    two.order(train_baseline_seed_0="kill")
    two.run_apart(two.plan(("attempts", "1")))
    (two.out / "seed-0/baseline/half").touch()
    two.order()
    two.run_apart(two.plan(("schemes.baseline.stage2.optim.lr", "0.5")))
    assert not (two.out / "seed-0/baseline/half").exists()


# Faults


def test_a_killed_step_is_started_again_and_finds_what_it_left(two: Bench) -> None:
    two.order(train_baseline_seed_0="half", rank_q2l_seed_0="kill once")
    states = two.run_apart(two.plan())
    assert all_are("done", states)
    assert states["train-baseline-seed-0"].attempts == states["rank-q2l-seed-0"].attempts == 2
    record = ledger.read_record(two.out, "train-baseline-seed-0")
    assert record is not None and record.attempts == 2


@pytest.mark.parametrize(
    ("order", "attempts", "mistake", "reason"),
    [
        ("kill", 3, False, "killed by SIGKILL, perhaps for want of memory"),
        ("crash", 3, False, "RuntimeError: the disk of this test is round"),
        ("mistake", 1, True, "loop.device = cuda, but there is no GPU; use loop.device cpu"),
    ],
)
def test_a_step_that_fails_for_good_stops_what_stands_on_it_and_nothing_else(
    two: Bench, order: str, attempts: int, mistake: bool, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    two.order(stage1_q2l_seed_0=order)
    plan = two.plan()
    states = two.run_apart(plan)
    found = states["stage1-q2l-seed-0"]
    assert (found.status, found.attempts, found.mistake, found.reason) == ("failed", attempts, mistake, reason)
    blocked = standing_on(plan, "stage1-q2l-seed-0") - {"stage1-q2l-seed-0"}
    assert {name for name, status in statuses(states).items() if status == "blocked"} == blocked
    assert {name for name, status in statuses(states).items() if status == "done"} == {
        "train-baseline-seed-0", "measure-baseline-seed-0"
    }  # fmt: skip
    assert run.failed(plan, states) == (2 if mistake else 1)
    log = two.out / "steps/stage1-q2l-seed-0.log"
    assert f"kappaseg: step stage1-q2l-seed-0 failed: {reason}; see {log}" in capsys.readouterr().err
    assert log.read_text().count("== ") == attempts
    two.order()
    assert all_are("done", {name: state for name, state in two.run_apart(plan).items() if state.status != "reused"})


def test_a_step_without_its_parent_ends(two: Bench) -> None:
    """So that nobody goes on writing into a folder in which the next process has begun."""
    two.order(train_baseline_seed_0="slow")
    plan = two.plan()
    two.out.mkdir()
    plan.write()
    (two.out / "steps").mkdir()
    name = "train-baseline-seed-0"
    parent = (
        "import time, pathlib; from pipelines.benchmark import child\n"
        f"child.launch({FAKE!r}, {str(two.out)!r}, {name!r}, {{}})\n"
        f"while not pathlib.Path({str(ledger.begun_file(two.out, name))!r}).exists(): time.sleep(0.05)"
    )
    subprocess.run([sys.executable, "-c", parent], check=True, env={**os.environ, **run.environment(1)})
    with locked(two.out / "steps/train-baseline-seed-0.lock", wait_seconds=10):
        log = (two.out / "steps/train-baseline-seed-0.log").read_text()
    assert "the process that started this step is gone" in log


def test_a_step_that_leaves_no_product_has_failed(two: Bench) -> None:
    plan = two.plan()
    two.out.mkdir()
    plan.write()
    nothing = dict.fromkeys(("train",), lambda step, out: None)
    assert steps.main([str(two.out), "train-baseline-seed-0"], nothing) == child.MISTAKE
    assert ledger.read_record(two.out, "train-baseline-seed-0") is None


# Order


class Noted:
    """A runner in which a step takes as many rounds as asked for, and which notes what runs beside what."""

    def __init__(self, plan: Plan, room: int) -> None:
        self.plan, self.room = plan, room
        self.running: list[str] = []
        self.beside: dict[str, set[str]] = {}

    def __enter__(self) -> Noted:
        return self

    def __exit__(self, *error: object) -> None: ...

    def has_room(self) -> bool:
        return len(self.running) < self.room

    def start(self, step: Step) -> None:
        self.running.append(step.id)
        for name in self.running:
            self.beside.setdefault(name, set()).update(set(self.running) - {name})

    def ended(self, wait_seconds: float) -> list[Ended]:
        return [Ended(self.running.pop(0), 0)]


@pytest.mark.parametrize("room", [1, 2, 99])
def test_steps_run_side_by_side_but_times_are_taken_alone(bench: Bench, room: int) -> None:
    plan = bench.plan(("seeds", "0,1"))
    runner = Noted(plan, room)
    assert all_are("done", run_steps(plan, runner, lambda states: None))
    order = list(runner.beside)
    assert all(order.index(need) < order.index(step.id) for step in plan.steps.values() for need in step.needs)
    assert order[-1] == "cost" and not runner.beside["cost"]
    assert (max(map(len, runner.beside.values())) > 0) == (room > 1)


def test_a_step_is_queued_until_its_process_prints_and_its_time_counts_from_then(bench: Bench) -> None:
    bench.write(schemes={"baseline": SCHEMES["baseline"]})
    plan = bench.plan()
    bench.prepare(plan)
    first, seen = ids(plan)[0], list[str]()

    class Queue(Noted):
        """The first step's process begins before the second look, and ends with the third."""

        looks = 0

        def ended(self, wait_seconds: float) -> list[Ended]:
            self.looks += 1
            if self.looks == 1:
                time.sleep(0.2)
            if self.looks == 2:
                ledger.log_file(plan.out, self.running[0]).write_text("== begun\n")
            return super().ended(wait_seconds) if self.looks > 2 else []

    states = run_steps(plan, Queue(plan, 1), lambda states: seen.append(states[first].status))
    assert seen[:4] == ["queued", "queued", "running", "done"]
    assert states[first].took < 0.2


# One benchmark at a time in a folder


def test_a_second_process_is_told_who_is_at_work(tmp_path: Path) -> None:
    named = rf"in use by process {os.getpid()} on .* since .*; wait for it to end"
    with locked(tmp_path / "lock"), pytest.raises(UserError, match=named), locked(tmp_path / "lock"):
        raise AssertionError("the lock was given twice")
    with locked(tmp_path / "lock"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = (
        "import os, signal, pathlib; from kappaseg_core.lock import locked\n"
        f"with locked(pathlib.Path({str(tmp_path)!r}) / 'lock'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, **run.environment(1)}, check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "lock").read_text()
    with locked(tmp_path / "lock"):
        pass


# The view


def test_the_view_has_one_line_for_every_change_where_there_is_no_terminal(
    two: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with live.View(two.plan()) as view:
        states: States = {
            "a": State(),
            "b": State("running", began=time.monotonic(), attempts=1),
            "c": State("blocked"),
        }
        view(states)
        view(states)
        states["b"] = State("running", "killed by SIGKILL", 2)
        states["a"] = State("reused")
        view(states)
        states["b"] = State("failed", "RuntimeError: no", 2)
        view(states)
    assert capsys.readouterr().err.splitlines() == [
        "b: running", "c: not done: what it stands on failed", "a: reused",
        "b: running, attempt 2, after: killed by SIGKILL", "b: failed: RuntimeError: no",
    ]  # fmt: skip


def test_the_view_shows_rate_and_remaining_time_of_this_start(two: Bench) -> None:
    log = two.out / "steps/train-baseline-seed-0.log"
    log.parent.mkdir(parents=True)
    old = "== 10:00  train-baseline-seed-0\ntraining baseline  90/400  9 step/s  512 MiB  1 s left  loss 1.2\n"
    log.write_text(old)
    name, out = "train-baseline-seed-0", str(two.out)
    assert live.progress(out, name) == "90/400  9 step/s  1 s left"
    log.write_text(f"{old}== 10:01  train-baseline-seed-0\n")
    assert live.progress(out, name) == ""
    new = "feature bank  8/1104  30.1 view/s  612 MiB  36 s left\nwords\n"
    log.write_text(f"{old}== 10:01  train-baseline-seed-0\n{new}")
    assert live.progress(out, name) == "8/1104  30.1 view/s  36 s left"
    assert live.progress(out, "rank-q2l-seed-0") == ""


def test_the_live_table_shows_what_runs_where_not_all_fits(two: Bench) -> None:
    view = live.View(two.plan())
    states = {f"step {index}": State("done") for index in range(200)} | {
        "last": State("running", began=time.monotonic())
    }
    table = view.table(states)
    assert table.row_count == 2
    assert view.table({"a": State()}).row_count == 2


# The command line


def test_a_job_gets_the_same_settings_with_paths_that_hold_everywhere(
    two: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two.home)
    settings = [("data.root", "data"), ("stage2.loop.steps", "20"), ("out", "here")]
    config = run.anywhere(run.load_benchmark(two.file, settings))
    assert run.job_command("benchmark.yaml", settings, config) == (
        f"kappaseg benchmark {two.home}/benchmark.yaml --stage2.loop.steps 20 --out {two.home}/here "
        f"--data.root {two.home}/data --ray.address auto"
    )


@pytest.mark.parametrize(("mode", "prefix"), [("token", "RAY_AUTH_MODE=token "), ("disabled", ""), (None, "")])
def test_a_submitted_benchmark_is_a_job_that_can_be_followed(
    two: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str | None, prefix: str
) -> None:
    sent: list[str] = []
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)

    def submit_job(address: str, command: str) -> str:
        sent.append(f"{address} {command}")
        return "raysubmit_1"

    monkeypatch.setattr("pipelines.benchmark.ray_runner.submit_job", submit_job)
    assert main(["benchmark", str(two.file), "--submit", "http://head:8265", "--only", "baseline"]) == 0
    assert capsys.readouterr().out == (
        f"job raysubmit_1; follow it with: {prefix}ray job logs --follow --address http://head:8265 raysubmit_1\n"
    )
    wanted = f"kappaseg benchmark {two.file} --only baseline --out {two.out} --ray.address auto"
    assert sent == [f"http://head:8265 {wanted}"]


@pytest.mark.slow
def test_a_benchmark_of_a_folder_data_set_ends_with_results_and_a_page(
    fresh: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "Local", lambda plan, settings: InProcess(plan))
    schemes = {name: SCHEMES[name] for name in ("baseline", "independent", "joint")}
    schemes["oracle"] = {"stage2": {"source.train": "oracle"}}
    (fresh.home / "benchmark.yaml").write_text(yaml.safe_dump({"rankers": {"q2l": {}}, "schemes": schemes}))
    words = ["benchmark", "benchmark.yaml", "--data.root", str(fresh.data), "--out", "out", "--local"]
    words += ["--test_kappas", "1"]
    assert main(words) == 0
    results = json.loads(Path("out/results.json").read_text())
    wanted = ("params", "macs", "map", "coverage", "miou", "train_seconds", "peak_memory", "images_per_second")
    for name in schemes:
        assert all(isinstance(results["schemes"][name][key], int | float) for key in wanted), name
    assert Path("out/results.parquet").exists() and "<html" in Path("out/report.html").read_text()
    assert "mIoU" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in Path("out/steps").glob("*.json")}
    assert main(words) == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("out/steps").glob("*.json")}
    shutil.rmtree("out/seed-0/joint")
    assert main(words) == 0
    again = {path.stem for path in before if path.stat().st_mtime_ns != before[path]}
    assert again == {
        "train-joint-seed-0", "measure-joint-seed-0", "measure-joint-seed-0-kappa-1", "cost",
    }  # fmt: skip
