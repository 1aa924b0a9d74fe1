"""Faults on a Ray cluster of several machines (on this one): a lost worker, a lost machine, a lost driver."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kappaseg_core.errors import UserError
from pipelines.benchmark import ledger, run
from pipelines.benchmark.config import load_benchmark
from pipelines.benchmark.ray_runner import OnRay
from pipelines.benchmark.schedule import States, run_steps
from pipelines.cli import main
from tests.pipelines.benchmark.conftest import FAKE, SCHEMES, Bench, InProcess
from tests.pipelines.conftest import Chain

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."),  # Ray warns of what Ray itself does
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # and leaves the processes that it starts to themselves
]

WORDS = ["--data.root", "data", "--stage2.loop.steps", "120", "--stage2.loop.save_every", "5"]
STORE = 100 * 2**20  # bytes, of Ray's object store on each machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with one core each, and one for Ray itself."""
    pytest.importorskip("ray")
    os.environ.setdefault("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)  # stays: Ray keeps a process's first token for good
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 would have them starve beside other work
        from ray.cluster_utils import Cluster

        size = {"include_dashboard": False, "object_store_memory": STORE}
        found = patiently(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **size}))
        for _ in range(2):
            patiently(lambda: found.add_node(num_cpus=1, object_store_memory=STORE))
        yield found
        found.shutdown()
        wait_for_the_killed()


def wait_for_the_killed() -> None:
    """Take note of the end of Ray's processes. Ray itself does not of all, which is a warning when it is collected."""
    for found in gc.get_objects():
        if issubclass(type(found), subprocess.Popen):  # isinstance would wake lazy objects
            found.wait(30)


def patiently(start: Callable[[], Any]) -> Any:
    """What `start` gives. Ray waits 30 s for a machine, which are not enough beside much other work."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:  # Ray raises no kind of its own
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture(scope="module")
def undisturbed(finished: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """mIoU by scheme where nothing goes wrong, without Ray."""
    home = tmp_path_factory.mktemp("undisturbed")
    prepare(finished, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return locally(patch)


def prepare(finished: Chain, home: Path) -> None:
    for name in ("stage1.yaml", "rank.yaml", "stage2.yaml"):
        shutil.copy(finished.home / name, home)
    shutil.copytree(finished.data, home / "data")
    schemes = {name: SCHEMES[name] for name in ("baseline", "independent")}
    (home / "benchmark.yaml").write_text(yaml.safe_dump({"rankers": {"q2l": {}}, "schemes": schemes}))


def locally(patch: pytest.MonkeyPatch) -> dict[str, float]:
    """Run, or finish, the benchmark of the working directory without Ray and its processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patch.setattr(run, "Local", lambda plan, settings: InProcess(plan))
    assert main(["benchmark", "benchmark.yaml", *WORDS, "--out", "out", "--local"]) == 0
    torch.set_num_threads(threads)
    return accuracy()


def accuracy() -> dict[str, float]:
    import json

    found = json.loads(Path("out/results.json").read_text())["schemes"]
    return {name: values["miou"] for name, values in found.items()}


def until(happened: Callable[[], Any], seconds: float = 600) -> Any:
    """What `happened` gives, once that is something."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        if time.monotonic() > end:
            raise TimeoutError("what the test waits for has not happened")
        time.sleep(0.02)
    return found


def pid_of(out: Path, name: str) -> int:
    """The process of a step in progress; 0 before there is one."""
    begun = ledger.read_begun(out, name)
    return begun.pid if begun else 0


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def machine_of(cluster: Any, pid: int) -> Any:
    """The machine of the cluster that a step's process is on: step, worker, raylet."""
    raylet = parent(parent(pid))
    return next(node for node in cluster.worker_nodes if node.all_processes["raylet"][0].process.pid == raylet)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_workers_and_a_lost_machine_change_no_result(
    cluster: Any, undisturbed: dict[str, float], finished: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(finished, tmp_path)
    monkeypatch.chdir(tmp_path)
    out, done = tmp_path / "out", list[str]()

    def sabotage() -> None:
        until((out / "seed-0/baseline/state.safetensors").exists)
        os.kill(pid_of(out, "train-baseline-seed-0"), signal.SIGKILL)
        done.append("step")
        pid = until(lambda: pid_of(out, "rank-q2l-seed-0"))
        cluster.remove_node(machine_of(cluster, pid), allow_graceful=False)
        done.append("machine")
        until((out / "seed-0/independent/state.safetensors").exists)
        os.kill(parent(pid_of(out, "train-independent-seed-0")), signal.SIGKILL)
        done.append("worker")

    saboteur = threading.Thread(target=sabotage, daemon=True)
    saboteur.start()
    words = ["benchmark", "benchmark.yaml", *WORDS, "--out", "out", "--ray.address", cluster.address]
    assert main(words) == 0
    saboteur.join()
    assert done == ["step", "machine", "worker"]
    for name in ("train-baseline-seed-0", "rank-q2l-seed-0", "train-independent-seed-0"):
        record = ledger.read_record(out, name)
        assert record is not None and record.attempts >= 2, name
        assert "continuing at step" in ledger.log_file(out, name).read_text() or "rank" in name
    assert accuracy() == undisturbed


def test_a_driver_that_is_killed_and_started_again_ends_with_the_same_table(
    cluster: Any, undisturbed: dict[str, float], finished: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(finished, tmp_path)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.cli", "benchmark", "benchmark.yaml", *WORDS, "--out", "out"]
    environment = {**os.environ, **run.environment(1)}
    with subprocess.Popen([*command, "--ray.address", cluster.address], env=environment) as driver:
        until((out / "seed-0/baseline/state.safetensors").exists)
        twice = subprocess.run([*command, "--local"], env=environment, capture_output=True, text=True, check=False)
        pid = pid_of(out, "train-baseline-seed-0")
        driver.kill()
    assert twice.returncode == 2 and f"in use by process {driver.pid}" in twice.stderr.splitlines()[-1]
    until(lambda: not alive(pid), 30)
    assert locally(monkeypatch) == undisturbed


def run_on(cluster: Any, bench: Bench, *settings: tuple[str, str]) -> States:
    plan = bench.plan(*settings)
    bench.prepare(plan)
    with OnRay(plan, run.environment(1), cluster.address, FAKE) as runner:
        return run_steps(plan, runner, lambda states: None)


def test_a_step_that_fails_for_good_is_named_after_all_others_are_done(
    cluster: Any, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write(schemes={name: SCHEMES[name] for name in ("baseline", "independent")})
    bench.order(rank_q2l_seed_0="crash")
    states = run_on(cluster, bench)
    assert states["rank-q2l-seed-0"].status == "failed" and states["measure-baseline-seed-0"].status == "done"
    assert run.failed(bench.plan(), states) == 1
    line = capsys.readouterr().err.splitlines()[0]
    assert "rank-q2l-seed-0 failed: RuntimeError: the disk of this test is round" in line
    assert line.endswith(f"see {bench.out}/steps/rank-q2l-seed-0.log")


def test_what_no_machine_has_is_refused(cluster: Any, bench: Bench) -> None:
    with pytest.raises(UserError, match="no machine of the Ray cluster has 64 CPU cores, which a step asks for"):
        run_on(cluster, bench, ("threads", "64"))


def test_an_address_where_nobody_answers_is_one_line(bench: Bench) -> None:
    plan = bench.plan()
    bench.prepare(plan)
    with OnRay(plan, {}, "127.0.0.1:1", FAKE) as runner, pytest.raises(UserError, match=r"127\.0\.0\.1:1"):
        run_steps(plan, runner, lambda states: None)


def test_a_job_server_where_nobody_answers_is_one_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as submit sets it; here it must not outlive the test
    load_benchmark(bench.file)
    with pytest.raises(UserError, match=r"cannot submit to http://127\.0\.0\.1:1 \(.*\); give the job server"):
        run.submit("http://127.0.0.1:1", bench.file, [])
