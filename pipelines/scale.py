"""Training on several processes or machines, with Ray: `launch`; and `connected`, which other work on Ray uses too.

The same training function runs in this process or, where workers, GPUs or a cluster are asked for, in each worker of a
process group. Ray is imported only then.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import kappaseg_core
from kappaseg_core.config import LoopConfig
from kappaseg_core.errors import UserError
from kappaseg_core.files import no_empty_folders, writing
from label_cache.errors import CacheError
from pipelines.scale_config import ScaleConfig

if TYPE_CHECKING:
    from kappaseg_core.checkpoint import Summary

ROOT = str(Path(kappaseg_core.__file__).parents[1])  # where our packages are found
OBJECT_STORE = 256 * 2**20  # bytes; what passes between our processes is small, and Ray would take 30 % of the memory
POLL_SECONDS = 0.2
KNOCK_SECONDS = 5.0
PROGRESS, SUMMARY = "progress.txt", "summary.json"

#: for Ray in every process; what the user has set stays
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers share this environment; under `uv run` Ray would build another
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_SECONDS),  # Ray's 2 s is how long a dead worker goes unseen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a busy machine needs more than Ray's 60 s, which it repeats
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # Ray would show every line of progress twice
}
KILLED_WORDS = "connection error code 2"  # Ray's of a killed process, whatever killed it
KILLED = (
    "most often for want of memory: use a smaller loop.batch_size, fewer loop.loader_workers or fewer workers "
    "(Ray kills above RAY_memory_usage_threshold = 0.95 of the machine's memory; RAY_memory_monitor_refresh_ms=0 "
    "turns that off)"
)


class Trained(Protocol):
    """What launch needs of a training configuration."""

    @property
    def loop(self) -> LoopConfig: ...

    @property
    def out(self) -> str: ...


C = TypeVar("C", bound=Trained)


def launch(train: Callable[[C], Summary], config: C, scale: ScaleConfig) -> Summary:
    """`train(config)` in this process, or in each of `scale.world` workers that share its batches; the Summary of the
    first.

    Where a worker dies, all start again, up to `scale.restarts` times: `train` goes on from the last saved step of its
    run directory, as it does in one process, and ends with the weights of a run that nothing happened to. Ray's own
    checkpoints are not used: a report that it has accepted is lost when the worker dies before the next poll.
    Raises UserError for a mistake (never tried again) and where workers were killed too often.
    """
    if scale.in_process:
        return train(config)
    scale.refuse_unfit(config.loop)
    import_ray("ray.train.torch")
    cpus = max(os.cpu_count() or 1, scale.world * scale.cpus_per_worker)
    with connected(scale.address, cpus=cpus) as ray, shared_folder(Path(config.out)) as folder:
        check_resources(ray, scale)
        # Ray prints a paragraph about each dead process on standard output, where results belong; ours is a line
        with following(folder / PROGRESS), redirect_stdout(io.StringIO()):
            return train_together(ray, train, config, scale, folder)


@contextmanager
def connected(address: str | None = None, *, cpus: float | None = None) -> Iterator[Any]:
    """The `ray` module, connected to the cluster at `address` (default: RAY_ADDRESS, else processes of our own here).

    cpus: cores that processes of our own may use (default: all). What was started here ends with the block; a
    connection that was there before is used and left. Raises UserError without Ray, or where no cluster answers.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        start(ray, cpus)
    else:
        join(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def import_ray(*parts: str) -> Any:
    """The `ray` module, with parts of it that are not imported by itself. Raises UserError where one is missing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        for part in parts:
            import_module(part)
        return import_module("ray")
    except ImportError as error:
        raise UserError(f"this needs Ray ({one_line(error)}); pip install 'kappaseg[ray]'") from None


def start(ray: Any, cpus: float | None) -> None:
    """A Ray of our own on this machine. It asks for a token, which lives in the environment of its processes; without
    one given, Ray would write its own, readable by everybody, into the home folder.
    """
    wanted = os.environ.get("RAY_AUTH_MODE") != "disabled"
    if wanted and not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    paths = [ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        ray.init(
            address="local", num_cpus=None if cpus is None else math.ceil(cpus), object_store_memory=OBJECT_STORE,
            include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
        )  # fmt: skip
    except Exception as error:  # Ray has no name of its own for it
        raise UserError(
            f"Ray does not start on this machine ({one_line(error)}); it gives itself 30 s, so try again when the "
            "machine is less busy"
        ) from None


def join(ray: Any, address: str) -> None:
    """Become part of a cluster. Ray itself would wait without end, and without a word, for one that is not there."""
    try:
        knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"no Ray cluster to join at {address} ({one_line(error)}); run this on a machine of the cluster, with "
            "HOST:PORT of its head, and with RAY_AUTH_TOKEN where it wants a token"
        ) from None


def knock(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT, ValueError for what is no such address."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ValueError("wanted HOST:PORT or auto")
    socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


@contextmanager
def shared_folder(out: Path) -> Iterator[Path]:
    """A temporary folder in OUT, which all workers reach. It goes again, with what was made of OUT for nothing."""
    with no_empty_folders(out):
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=".scale-", dir=out, ignore_cleanup_errors=True)
        with folder as path:
            yield Path(path).resolve()


def check_resources(ray: Any, scale: ScaleConfig) -> None:
    """Raise UserError where this machine lacks what was asked for; a cluster may be growing, so there it is awaited."""
    wanted = {"CPU": scale.world * scale.cpus_per_worker, "GPU": float(scale.gpus)}
    there = {name: ray.cluster_resources().get(name, 0.0) for name in wanted}
    short = [f"{need:g} {name}s (has {there[name]:g})" for name, need in wanted.items() if there[name] < need]
    if short and not (scale.address or os.environ.get("RAY_ADDRESS")):
        raise UserError(f"this machine lacks {', '.join(short)}; lower --scale.gpus or --scale.workers")
    if short:
        print(f"waiting until the cluster has {', '.join(short)}", file=sys.stderr)


@contextmanager
def following(file: Path) -> Iterator[None]:
    """Until the block ends, show on standard error what is added to a file."""
    file.touch()
    done = threading.Event()

    def show() -> None:
        with file.open(encoding="utf-8") as lines:
            ended = False
            while not ended:
                ended = done.wait(POLL_SECONDS)
                sys.stderr.write(lines.read())
                sys.stderr.flush()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def train_together(ray: Any, train: Callable[[C], Summary], config: C, scale: ScaleConfig, folder: Path) -> Summary:
    """The group of workers, started again while `scale.restarts` allows it."""
    from kappaseg_core.checkpoint import Summary

    for attempt in range(scale.restarts + 1):
        try:
            trainer(ray, partial(train, config), scale, folder, attempt=attempt).fit()
            return Summary(**json.loads((folder / SUMMARY).read_text("utf-8")))
        except ray.train.WorkerGroupError as error:
            refuse_mistake(error.worker_failures)
            reason = reason_to_restart(ray, error.worker_failures)
            if not reason:
                raise
            if attempt == scale.restarts:
                raise UserError(f"{reason}; the same command goes on from the last saved step") from None
            print(f"{reason}; all workers start again from the last saved step", file=sys.stderr)
    raise AssertionError("the last attempt returns or raises")


def trainer(ray: Any, train: Callable[[], Summary], scale: ScaleConfig, folder: Path, *, attempt: int) -> Any:
    """Ray's trainer: makes the process group (gloo, or nccl on GPUs) and calls `train` in every worker."""

    class Trainer(ray.train.torch.TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ctrl-C stays ours; Ray's handler would outlive the training, and end the program with status 1."""

    home = os.getcwd()

    def work() -> None:
        os.chdir(home)  # Ray puts each worker elsewhere, and paths in a configuration may be relative
        if os.environ["RANK"] != "0":
            train()
            return
        with (folder / PROGRESS).open("a", encoding="utf-8", buffering=1) as progress, redirect_stderr(progress):
            summary = train()
        (folder / SUMMARY).write_text(json.dumps(asdict(summary)), "utf-8")

    hidden = {} if scale.gpus else {"CUDA_VISIBLE_DEVICES": ""}  # so that loop.device auto is the CPU
    resources = {"CPU": scale.cpus_per_worker, **({"GPU": 1.0} if scale.gpus else {})}
    # a name of its own for each attempt: under an old one Ray would go on with what it finds
    storage = ray.train.RunConfig(name=str(attempt), storage_path=str(folder), worker_runtime_env={"env_vars": hidden})
    size = ray.train.ScalingConfig(num_workers=scale.world, use_gpu=scale.gpus > 0, resources_per_worker=resources)
    return Trainer(work, scaling_config=size, run_config=storage)


def refuse_mistake(failures: Mapping[int, Exception]) -> None:
    """Raise the mistake that a worker found; it would be there at every attempt."""
    for failure in failures.values():
        if isinstance(failure, UserError | CacheError):
            raise failure from None


def reason_to_restart(ray: Any, failures: Mapping[int, Exception]) -> str:
    """Which worker died, in one line; empty where none did and the program itself is at fault.

    RuntimeError is what torch raises in workers that lost a companion.
    """
    for worker, failure in failures.items():
        if isinstance(getattr(failure, "health_check_failure", failure), ray.exceptions.RayError):
            known = KILLED_WORDS in str(failure)
            return f"worker {worker} was killed, {KILLED}" if known else f"worker {worker} is lost: {one_line(failure)}"
    for worker, failure in failures.items():
        if isinstance(failure, RuntimeError | OSError):
            return f"worker {worker} failed: {one_line(failure)}"
    return ""


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
