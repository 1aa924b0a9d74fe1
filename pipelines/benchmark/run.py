"""`kappaseg benchmark`: the plan, its steps on this machine or on Ray, then the table and the page."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pipelines
from kappaseg_core.errors import UserError
from kappaseg_core.lock import locked
from pipelines.benchmark import child, ledger
from pipelines.benchmark.config import BenchmarkConfig, load_benchmark
from pipelines.benchmark.expand import checked, expand
from pipelines.benchmark.inputs import absolute, read_inputs
from pipelines.benchmark.live import View
from pipelines.benchmark.plan import Plan, Step
from pipelines.benchmark.schedule import Ended, Runner, States, run_steps
from pipelines.tables import show_table

EXIT_FAILED, EXIT_MISTAKE = 1, 2


def benchmark(
    path: str | Path, settings: Sequence[tuple[str, str]] = (), *, local: bool = False, address: str | None = None
) -> int:
    """Do what is missing of the benchmark in `path` and write its results; gives the exit status.

    local: one step after the other, without Ray, as where Ray is not installed.   address: of a Ray cluster.
    Raises UserError for a mistake that is seen before the first step.
    """
    config, files = anywhere(load_benchmark(path, settings)), Path(path).parent
    out = Path(config.out)
    if local and address:
        raise UserError("--local and --ray.address exclude each other; give one of them")
    checked(config, out, files)
    plan = expand(config, read_inputs(config.data, out), out, files)
    with locked(out / "steps" / ".lock"):
        plan.write()
        for note in notes(plan):
            print(f"kappaseg: {note}", file=sys.stderr)
        with runner(plan, local=local, address=address) as steps, View(plan) as view:
            states = run_steps(plan, steps, view)
        report(out)
    return failed(plan, states)


def anywhere(config: BenchmarkConfig) -> BenchmarkConfig:
    """The configuration with paths that mean the same in every process."""
    data = replace(config.data, root=absolute(config.data.root))
    weights = absolute(config.weights) if config.weights else None
    return replace(config, out=absolute(config.out), data=data, weights=weights)


def notes(plan: Plan) -> list[str]:
    """What the user should know before it starts."""
    known = list(plan.notes)
    if plan.config.weights is None:
        known.append("no --backbone.weights: backbones are trained from random numbers")
    return known


def runner(plan: Plan, *, local: bool, address: str | None) -> Runner:
    """Where the steps run: on Ray where it is installed and nobody wants otherwise."""
    settings = environment(plan.config.threads)
    if local or (address is None and find_spec("ray") is None):
        return Local(plan, settings)
    from pipelines.benchmark.ray_runner import OnRay

    return OnRay(plan, settings, address)


def environment(threads: int) -> dict[str, str]:
    """What a step's process is to find in its environment: its threads, and this source tree to import from."""
    home = str(Path(pipelines.__file__).parents[1])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}


class Local:
    """Runs one step at a time, on this machine."""

    def __init__(self, plan: Plan, settings: Mapping[str, str], command: Sequence[str] = child.STEP) -> None:
        self.out, self.settings, self.command = str(plan.out), settings, command
        self.name = ""
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def has_room(self) -> bool:
        return self.process is None

    def start(self, step: Step) -> None:
        self.name, self.process = step.id, child.launch(self.command, self.out, step.id, self.settings)

    def ended(self, wait_seconds: float) -> list[Ended]:
        assert self.process is not None
        try:
            status = self.process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            return []
        self.process = None
        return [Ended(self.name, *child.outcome(status, self.out, self.name))]


def report(out: Path, beside: Sequence[Path] = ()) -> None:
    """Make results.json, results.parquet and report.html of what is there, and print the table.

    beside: benchmarks of other vocabularies, whose cost the page shows beside that of this one.
    """
    from pipelines.benchmark.page import write_page
    from pipelines.benchmark.results import write_results

    results = write_results(out)
    page = write_page(out, others=beside)
    columns = ("map", "recall", "coverage", "miou")
    rows = [
        [str(found["label"]), *(share(found.get(name)) for name in columns), number(found.get("params")),
         number(found.get("train_seconds"))]
        for found in results["schemes"].values()
    ]  # fmt: skip
    show_table("in %, means over seeds", ["scheme", "mAP", "recall", "coverage", "mIoU", "parameters", "seconds"], rows)
    print(f"everything on one page: {page}")


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def failed(plan: Plan, states: States) -> int:
    """One line for every step that failed for good; gives the exit status."""
    failures = {name: state for name, state in states.items() if state.status == "failed"}
    for name, state in failures.items():
        print(f"kappaseg: step {name} failed: {state.reason}; see {ledger.log_file(plan.out, name)}", file=sys.stderr)
    blocked = [name for name, state in states.items() if state.status == "blocked"]
    if blocked:
        print(f"kappaseg: not done, because they stand on it: {', '.join(blocked)}", file=sys.stderr)
    if not failures:
        return 0
    return EXIT_MISTAKE if all(state.mistake for state in failures.values()) else EXIT_FAILED


def submit(address: str, path: str | Path, settings: Sequence[tuple[str, str]]) -> str:
    """Have the cluster at `address` (of its job server) run the same command there; gives how to follow it.

    Raises UserError for a mistake in the settings, without Ray, or where nobody answers.
    """
    config = anywhere(load_benchmark(path, settings))
    checked(config, Path(config.out), Path(path).parent)
    command = job_command(path, settings, config)
    from pipelines.benchmark.ray_runner import submit_job

    job = submit_job(address, command)
    mode = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    return f"job {job}; follow it with: {mode}ray job logs --follow --address {address} {job}"


def job_command(path: str | Path, settings: Sequence[tuple[str, str]], config: BenchmarkConfig) -> str:
    """The shell line of the job: the same settings, and paths that mean the same there."""
    paths = {"out": config.out, "data.root": config.data.root, "backbone.weights": config.weights}
    given = {"weights": "backbone.weights"}
    rest = [(name, text) for name, text in settings if given.get(name, name) not in paths]
    found = [*rest, *((name, text) for name, text in paths.items() if text)]
    words = [word for name, text in found for word in (f"--{name}", text)]
    return shlex.join(["kappaseg", "benchmark", absolute(str(path)), *words, "--ray.address", "auto"])
