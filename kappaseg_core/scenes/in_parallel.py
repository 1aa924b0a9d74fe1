"""A function over many things, in several processes, whose results come one by one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from kappaseg_core.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 8  # things a process is handed at once


def in_parallel(function: Callable[[T], R], things: Sequence[T], workers: int) -> Iterator[R]:
    """function(thing) in the order of the things; one worker = in this process. function and things are pickled.

    What a worker raises is raised here and stops the others; so does closing the iterator. Raises UserError where a
    worker process is killed.
    """
    if workers == 1 or len(things) < 2:
        yield from map(function, things)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function_module(function)])  # imported once, not by each worker
    pool = ProcessPoolExecutor(min(workers, len(things)), context, start_worker)
    try:
        yield from pool.map(function, things, chunksize=CHUNK)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was ended from outside, which systems do where memory runs out; "
            "the same command goes on, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def function_module(function: Callable[..., object]) -> str:
    """Where a function is defined; of a functools.partial, where the function inside is."""
    return getattr(function, "func", function).__module__


def start_worker() -> None:
    """Ctrl-C is the parent's to handle, and no worker outlives a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
