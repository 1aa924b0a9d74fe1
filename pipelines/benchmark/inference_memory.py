"""Largest memory of a process that segments one image with a finished run, and does nothing else.

    python -m pipelines.benchmark.inference_memory '[["RUN", "CLASSIFIER or null", IMAGE], …]'

prints one [peak, idle] for each in MiB: with all libraries, the networks and the image (number IMAGE of the validation
split); and with the libraries alone. The difference is the scheme's own. Libraries are loaded once, by a process that
does nothing else and then divides for each of the runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from kappaseg_core.progress import memory_mib
from pipelines.benchmark.deployed import Deployed

#: run, classifier before it, row of the image in the validation split
Use = tuple[Path, Path | None, int]

Found = TypeVar("Found")


def inference_memory(uses: Sequence[Use]) -> list[dict[str, int]]:
    """peak_memory_mib and idle_memory_mib of each. Raises RuntimeError with the last words of a process that fails."""
    plain = [[str(run), None if classifier is None else str(classifier), row] for run, classifier, row in uses]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", __spec__.name, json.dumps(plain)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {len(uses)} runs failed: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return [{"peak_memory_mib": peak, "idle_memory_mib": idle} for peak, idle in found]


def main(arguments: Sequence[str]) -> None:
    uses = [(Path(run), classifier and Path(classifier), row) for run, classifier, row in json.loads(arguments[0])]
    print(json.dumps([apart(memory_of, *use) for use in uses]))


def memory_of(run: Path, classifier: Path | None, row: int) -> tuple[int, int]:
    """Peak and idle memory of this process, which has done nothing before."""
    idle = memory_mib()
    Deployed.load(run, classifier, [row]).use(0)
    return memory_mib(), idle


def apart(function: Callable[..., Found], *arguments: Any) -> Found:
    """What the function gives in a process of its own, divided from this one. EOFError where it fails."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=lambda: writer.send(function(*arguments)))
    process.start()
    writer.close()
    found: Found = reader.recv()
    process.join()
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
