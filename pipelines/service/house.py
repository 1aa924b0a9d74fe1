"""What a service serves, from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kappaseg_core.errors import UserError
from label_cache import class_difference, class_hash
from pipelines.service.batching import Gate, MicroBatcher
from pipelines.service.caches import ServedCache
from pipelines.service.config import ServeConfig
from pipelines.service.problems import come_back
from pipelines.service.watch import Watch

if TYPE_CHECKING:
    from torch import Tensor

    from kappaseg_core.ranking import Ranking
    from pipelines.service.classify import ServedClassifier
    from pipelines.service.segment import ServedSegmenter

_log = logging.getLogger("kappaseg.service")
T = TypeVar("T")


@dataclass(eq=False)
class House:
    """The parts that are there, the threads that work for them, and whether requests are welcome.

    decoders: threads that read images.   compute: the one thread that runs networks.
    """

    config: ServeConfig
    class_names: tuple[str, ...]
    caches: dict[str, ServedCache]
    classifier: ServedClassifier | None
    segmenter: ServedSegmenter | None
    watch: Watch = field(default_factory=Watch)
    is_draining: bool = False

    def __post_init__(self) -> None:
        self.vocabulary = class_hash(self.class_names)
        self.gate = Gate(self.config.limits.queue, self.watch.inside.set)
        cores = self.config.batching.cores or max(1, all_cores() - self.config.batching.decoders)
        self.decoders = running_threads(self.config.batching.decoders, "decode", cores=1)
        self.compute = running_threads(1, "compute", cores=cores)  # the last: what MKL is told holds for the process
        self.turns = {
            self.decoders: asyncio.Semaphore(self.config.batching.decoders),
            self.compute: asyncio.Semaphore(1),
        }
        self.batcher: MicroBatcher[Tensor, Ranking] | None = None
        if self.classifier is not None:
            self.batcher = MicroBatcher(
                self.timed_ranking, self.compute, size=self.config.batching.size,
                wait_seconds=self.config.batching.wait_ms / 1000, watch=self.watch.batch_size.observe,
            )  # fmt: skip
            self.watch.info.labels("classifier", self.classifier.version[:12]).set(1)
        if self.segmenter is not None:
            self.watch.info.labels("segmenter", self.segmenter.version[:12]).set(1)
        self.note_readiness()

    def timed_ranking(self, images: Any) -> Any:
        assert self.classifier is not None
        with self.watch.stage("forward"):
            return self.classifier.rank(images)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """The tasks in the background, for as long as the service answers."""
        tasks = [asyncio.create_task(self.follow_caches())] if self.caches else []
        if self.batcher is not None:
            tasks.append(asyncio.create_task(self.batcher.run()))
        try:
            yield
        finally:
            self.is_draining = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.decoders.shutdown(cancel_futures=True)
            self.compute.shutdown(cancel_futures=True)

    async def follow_caches(self) -> None:
        """Look for new generations and damage, for ever."""
        while True:
            await asyncio.sleep(self.config.check_seconds)
            for cache in self.caches.values():
                try:
                    await asyncio.to_thread(cache.refresh, self.class_names)
                except Exception as error:  # the one task that must not end
                    cache.fault = f"it cannot be looked at: {type(error).__name__}"
                    _log.exception("cache %s cannot be looked at", cache.name)
            self.note_readiness()

    def readiness(self) -> dict[str, str]:
        """Part → `ready`, or why not."""
        found = {f"cache {name}": cache.fault or "ready" for name, cache in self.caches.items()}
        found |= {"classifier": "ready"} if self.classifier is not None else {}
        found |= {"segmenter": "ready"} if self.segmenter is not None else {}
        return {"service": "draining" if self.is_draining else "ready", **found}

    def note_readiness(self) -> None:
        for name, state in self.readiness().items():
            self.watch.ready.labels(name).set(state == "ready")

    async def in_thread(self, pool: ThreadPoolExecutor, until: float, work: Callable[..., T], *arguments: Any) -> T:
        """Work of one request, on one of the two pools. Raises Problem (503) where its deadline passes before.

        A pool is given no more than it has threads for, so that a request which is given up while it waits leaves
        nothing behind; work that has begun cannot be stopped, and keeps its turn until it ends.
        """

        def begun() -> T:
            if time.monotonic() > until:
                raise come_back("the deadline passed while the image was waiting; try again")
            return work(*arguments)

        turn = self.turns[pool]
        await turn.acquire()
        running = asyncio.get_running_loop().run_in_executor(pool, begun)

        def ended(done: asyncio.Future[T]) -> None:
            turn.release()
            if not done.cancelled():
                done.exception()  # seen, also where nobody waits for it any more

        running.add_done_callback(ended)
        return await asyncio.shield(running)


def all_cores() -> int:
    """What torch would use; it is loaded only where there are networks."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else 1


def running_threads(threads: int, name: str, *, cores: int) -> ThreadPoolExecutor:
    """Threads that have begun, each of which uses so many cores for one operation of torch.

    Left to torch, each thread that resizes would start as many others as there are cores.
    """

    def begin() -> None:
        if torch := sys.modules.get("torch"):
            torch.get_num_threads()  # else the thread's first operation would take the number that was set last
            torch.set_num_threads(cores)

    pool, all_here = ThreadPoolExecutor(threads, name, initializer=begin), threading.Barrier(threads)
    for here in [pool.submit(all_here.wait) for _ in range(threads)]:
        here.result()
    return pool


def build_house(config: ServeConfig) -> House:
    """Load everything that is to be served. Raises UserError, also where two parts have different classes."""
    if not (config.classifier or config.caches or config.segmenter):
        raise UserError("nothing to serve; give --classifier RUN, --cache DIR or --segmenter RUN")
    caches = {name: ServedCache(name, path) for name, path in config.named_caches().items()}
    for cache in caches.values():
        cache.refresh()
        if cache.now is None:
            raise UserError(f"cache {cache.path} cannot be served: {cache.fault or 'it is being written'}")
    classifier = segmenter = None
    if config.classifier:
        from pipelines.service.classify import ServedClassifier

        classifier = ServedClassifier.load(config, Path(config.classifier))
    if config.segmenter:
        from pipelines.service.segment import ServedSegmenter

        segmenter = ServedSegmenter.load(config, Path(config.segmenter))
    vocabularies = {
        **({f"classifier {config.classifier}": classifier.class_names} if classifier else {}),
        **({f"segmenter {config.segmenter}": segmenter.class_names} if segmenter else {}),
        **{f"cache {cache.path}": cache.now.cache.class_names for cache in caches.values() if cache.now},
    }
    return House(config, one_vocabulary(vocabularies), caches, classifier, segmenter)


def one_vocabulary(found: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The class names that all parts share. Raises UserError naming two that do not."""
    (first, names), *others = found.items()
    for other, theirs in others:
        if theirs != names:
            raise UserError(f"{other} does not fit {first}: {class_difference(theirs, names)}; serve them apart")
    return names
