"""One step, in a process of its own, so that its time and memory are its own and its end is nobody else's.

    python -m pipelines.benchmark.steps OUT ID [PID]     exit status 0 done, 2 a user's mistake, else a fault

PID: process without which this one is to end. What it prints goes where the caller sends it: OUT/steps/ID.log.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kappaseg_core.errors import UserError
from kappaseg_core.lock import locked
from label_cache.errors import CacheError
from pipelines.benchmark import child, ledger
from pipelines.benchmark.plan import Step, read_step

ORPHAN = 3  # exit status
WAIT_SECONDS = 60.0  # for an earlier process of the same step to notice that its parent is gone
SHOW_SECONDS = 2.0  # between lines of progress in the log, from which the live view reads them

#: does a step's work; gives the files that it made below OUT, or None = those that its kind leaves in its folder
Work = Callable[[Step, Path], "tuple[str, ...] | None"]


def main(words: Sequence[str] | None = None, work: Mapping[str, Work] | None = None) -> int:
    """Do one step; gives the exit status."""
    out, name, *parent = sys.argv[1:] if words is None else words
    if parent:
        end_with(int(parent[0]))
    try:
        execute(Path(out), name, WORK if work is None else work)
    except (UserError, CacheError) as error:
        print(f"kappaseg: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return child.MISTAKE
    return 0


def execute(out: Path, name: str, work: Mapping[str, Work]) -> ledger.Record:
    """Do a step of the plan in OUT, going on where an earlier start of it stopped; gives its record."""
    step = read_step(out, name)
    with locked(out / "steps" / f"{name}.lock", wait_seconds=WAIT_SECONDS):
        begun = ledger.begin(out, step)
        started = time.perf_counter()
        files = work[step.kind](step, out)
        return ledger.finish(out, step, begun, spent_since(started), files)


def spent_since(started: float) -> dict[str, Any]:
    """What this process took; memory on the GPU where one was in use."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = own.ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
    if "torch" in sys.modules:
        from kappaseg_core.progress import memory_mib

        memory = memory_mib()
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 2),
        "peak_memory_mib": memory,
    }


def end_with(parent: int) -> None:
    """End this process soon after its parent did: nobody would hear of its work, and another may start on it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        print("kappaseg: the process that started this step is gone", file=sys.stderr, flush=True)
        os._exit(ORPHAN)

    threading.Thread(target=watch, daemon=True).start()


def show_often() -> None:
    from kappaseg_core import progress

    progress.PLAIN_SECONDS = SHOW_SECONDS


def fill_bank(step: Step, out: Path) -> tuple[str, ...]:
    from pipelines.benchmark.features import compute_features

    show_often()
    settings = {name: value for name, value in step.settings.items() if name != "target"}
    folder = compute_features(settings, target=step.settings["target"])
    return (str((folder / "bank.json").relative_to(out)),)


def train_ranker(step: Step, out: Path) -> None:
    from kappaseg_core.config import build
    from stage1_multilabel.config import Stage1Config
    from stage1_multilabel.train import train_classifier

    show_often()
    train_classifier(build(Stage1Config, step.settings, source=step.id), out / step.folder)


def rank(step: Step, out: Path) -> None:
    from kappaseg_core.config import build
    from stage1_multilabel.config import RankConfig
    from stage1_multilabel.rank import rank_images

    show_often()
    rank_images(build(RankConfig, step.settings, source=step.id))


def train_network(step: Step, out: Path) -> None:
    from kappaseg_core.config import build
    from stage2_segmentation.config import Stage2Config
    from stage2_segmentation.train import train_segmentation

    show_often()
    train_segmentation(build(Stage2Config, step.settings, source=step.id), out / step.folder)


def measure(step: Step, out: Path) -> None:
    from pipelines.benchmark.measure import measure_run

    show_often()
    settings = [(name, text) for name, text in step.settings["settings"]]
    measure_run(out / step.settings["run"], out / step.folder, settings=settings, gallery=step.settings["gallery"])


def time_all(step: Step, out: Path, *, seconds: float = 60.0) -> None:
    from pipelines.benchmark.timing import time_networks

    show_often()
    runs, classifiers = (
        {name: out / folder for name, folder in step.settings[kind].items()} for kind in ("runs", "classifiers")
    )
    baseline = step.settings["baseline"]
    time_networks(runs, out / step.folder, classifiers=classifiers, baseline=baseline, seconds=seconds)


WORK: Mapping[str, Work] = {
    "features": fill_bank, "stage1": train_ranker, "rank": rank, "train": train_network, "measure": measure,
    "cost": time_all,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
