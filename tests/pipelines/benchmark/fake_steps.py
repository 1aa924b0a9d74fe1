"""A step's process without torch: it writes the files that its kind is to leave, or does as ../orders.json says.

kill        dies every time                          kill once    dies the first time
half        dies half way, the first time            crash        ends with an exception
mistake     ends with a user's mistake               slow         takes seconds
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from kappaseg_core.errors import UserError
from pipelines.benchmark import steps
from pipelines.benchmark.ledger import PRODUCTS, read_begun
from pipelines.benchmark.plan import Step

NAMES = {"**/*.parquet": "val/0.parquet"}
FEATURES = ("bank.json",)


def work(step: Step, out: Path) -> tuple[str, ...] | None:
    with (out.parent / "calls.txt").open("a") as calls:
        calls.write(f"{step.id}\n")
    folder = out / step.folder / (step.id if step.kind == "features" else "")
    folder.mkdir(parents=True, exist_ok=True)
    obey(step, out, folder)
    for pattern in PRODUCTS.get(step.kind, FEATURES):
        file = folder / NAMES.get(pattern, pattern)
        file.parent.mkdir(exist_ok=True)
        file.write_text(step.fingerprint)  # the same whenever it is made, as training on a CPU is
    return (str((folder / "bank.json").relative_to(out)),) if step.kind == "features" else None


def obey(step: Step, out: Path, folder: Path) -> None:
    file = out.parent / "orders.json"
    order = json.loads(file.read_text()).get(step.id, "") if file.exists() else ""
    begun = read_begun(out, step.id)
    assert begun is not None
    if order == "half" and begun.attempts > 1:
        assert (folder / "half").exists(), "the second start did not find what the first one left"
    if order == "half":
        (folder / "half").touch()
    if order == "kill" or (order in ("kill once", "half") and begun.attempts == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "slow" and begun.attempts == 1:
        time.sleep(60)
    if order == "crash":
        raise RuntimeError("the disk of this test is round")
    if order == "mistake":
        raise UserError("loop.device = cuda, but there is no GPU; use loop.device cpu")


FAKES: dict[str, steps.Work] = dict.fromkeys(("features", "stage1", "rank", "train", "measure", "cost"), work)

if __name__ == "__main__":
    sys.exit(steps.main(work=FAKES))
