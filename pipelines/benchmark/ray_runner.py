"""The steps as Ray tasks. Ray decides where and when; each task starts the same process as without Ray.

A worker or a machine that is lost takes its step along. Ray starts the step elsewhere, where it goes on from its last
saved moment, because OUT is on a disk that all machines share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from pipelines import scale
from pipelines.benchmark import child
from pipelines.benchmark.plan import Plan, Step
from pipelines.benchmark.schedule import Ended


class OnRay:
    """Runs steps on the Ray cluster at `address`, or on one of its own, to which it connects at the first step."""

    def __init__(
        self, plan: Plan, settings: Mapping[str, str], address: str | None, command: Sequence[str] = child.STEP
    ) -> None:
        self.plan, self.address, self.settings, self.command = plan, address, dict(settings), tuple(command)
        self.stack = ExitStack()
        self.ray: Any = None
        self.task: Any = None
        self.running: dict[Any, str] = {}

    def __enter__(self) -> OnRay:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def has_room(self) -> bool:
        return True  # what does not fit waits in Ray's queue

    def start(self, step: Step) -> None:
        if self.task is None:
            self.connect()
        work = self.task.options(name=step.id)
        self.running[work.remote(self.command, str(self.plan.out), step.id, self.settings)] = step.id

    def ended(self, wait_seconds: float) -> list[Ended]:
        found, _ = self.ray.wait(list(self.running), num_returns=1, timeout=wait_seconds)
        return [self.outcome(task, self.running.pop(task)) for task in found]

    def outcome(self, task: Any, name: str) -> Ended:
        try:
            return Ended(name, *self.ray.get(task))
        except self.ray.exceptions.RayError as error:
            return Ended(name, 1, why_lost(error))

    def connect(self) -> None:
        ray = self.ray = self.stack.enter_context(scale.connected(self.address))
        config = self.plan.config
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = config.gpus if config.gpus is not None else float(any(found.get("GPU") for found in machines))
        if not any(found.get("CPU", 0) >= config.threads and found.get("GPU", 0) >= gpus for found in machines):
            wanted = f"{config.threads} CPU cores" + (f" and {gpus:g} GPUs" if gpus else "")
            raise UserError(
                f"no machine of the Ray cluster has {wanted}, which a step asks for; lower --threads or --gpus"
            )
        ray.cloudpickle.register_pickle_by_value(child)  # its workers need not know where this source tree is
        self.task = ray.remote(num_cpus=config.threads, num_gpus=gpus, max_retries=config.attempts)(child.run_to_end)


def why_lost(error: Exception) -> str:
    """Why Ray gave a step up, in one line; of a process that was killed, Ray knows no reason."""
    text = " ".join(str(error).split())
    if "connection error code 2" in text or "Worker unexpectedly exits" in text:
        return "its worker was killed, perhaps for want of memory (RAY_memory_usage_threshold sets when Ray does so)"
    return f"{type(error).__name__}: {text[:200]}"


def submit_job(address: str, command: str) -> str:
    """Hand a shell line to the job server of a cluster; gives the job's id.

    Job servers ask for a token by default, clients send none by default, not even the one that they are given.
    Raises UserError where it fails.
    """
    if has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    ray = scale.import_ray("ray.job_submission")
    try:
        job = ray.job_submission.JobSubmissionClient(address).submit_job(entrypoint=command)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot submit to {address} ({reason}); give the job server, for example http://HEAD:8265, and where it "
            "asks for a token set RAY_AUTH_TOKEN"
        ) from None
    return str(job)


def has_token() -> bool:
    """Whether a cluster's token is where Ray looks for one."""
    given = os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    return bool(given) or (Path.home() / ".ray" / "auth_token").exists()
