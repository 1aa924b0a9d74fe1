"""Images of different requests in one forward pass."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipelines.service.problems import come_back

#: in the place of a result that nobody waits for
GONE = LookupError()
Item = TypeVar("Item")
Result = TypeVar("Result")


class Gate:
    """How many images are in the house: `with gate.admit(n):`. Raises Problem (503, Retry-After) where it is full."""

    def __init__(self, limit: int, gauge: Callable[[int], Any]) -> None:
        self.limit, self.inside, self._gauge = limit, 0, gauge

    @contextmanager
    def admit(self, images: int = 1) -> Iterator[Callable[[int], None]]:
        """Room for so many images; gives a function that keeps room for fewer."""
        if self.inside + images > self.limit:
            raise come_back(f"{self.inside} images are being worked on, of at most {self.limit}; try again")
        held = 0

        def keep(wanted: int) -> None:
            nonlocal held
            self._move(wanted - held)
            held = wanted

        keep(images)
        try:
            yield keep
        finally:
            keep(0)

    def _move(self, images: int) -> None:
        self.inside += images
        self._gauge(self.inside)


@dataclass(eq=False)
class Waiting(Generic[Item, Result]):
    """One item in the queue. since, until: seconds on the monotonic clock."""

    item: Item
    until: float
    done: asyncio.Future[tuple[Result, int, float]]
    since: float = field(default_factory=time.monotonic)


class MicroBatcher(Generic[Item, Result]):
    """`await batcher(item, until)` → (result, size of its batch, seconds that it waited).

    A batch is flushed when it is full, or when its first item has waited long enough; while one is computed the next
    collects. An item whose request is gone, or past its deadline (then Problem 503), is not computed. Where the work
    raises, the items of the batch are done one by one, so that only the culprit fails.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        pool: Executor,
        *,
        size: int,
        wait_seconds: float,
        watch: Callable[[int], Any] = lambda size: None,
    ) -> None:
        self.work, self.pool, self.size, self.wait_seconds, self.watch = work, pool, size, wait_seconds, watch
        self.queue: deque[Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()

    async def __call__(self, item: Item, until: float) -> tuple[Result, int, float]:
        waiting = Waiting[Item, Result](item, until, asyncio.get_running_loop().create_future())
        self.queue.append(waiting)
        self._arrived.set()
        try:
            return await waiting.done
        finally:
            if waiting in self.queue:  # given up
                self.queue.remove(waiting)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            batch = self.due(await self.collected())
            if not batch:
                continue
            self.watch(len(batch))
            started = time.monotonic()
            for waiting, result in zip(batch, await self.results(batch), strict=True):
                if waiting.done.done():
                    continue
                if isinstance(result, Exception):
                    waiting.done.set_exception(result)
                else:
                    waiting.done.set_result((result, len(batch), started - waiting.since))

    async def collected(self) -> list[Waiting[Item, Result]]:
        """The next batch: full, or after the wait of its first item."""
        while not self.queue:
            self._arrived.clear()
            await self._arrived.wait()
        flush_at = self.queue[0].since + self.wait_seconds
        while len(self.queue) < self.size and (left := flush_at - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        return [self.queue.popleft() for _ in range(min(self.size, len(self.queue)))]

    def due(self, batch: Sequence[Waiting[Item, Result]]) -> list[Waiting[Item, Result]]:
        """Those that somebody still waits for, in time."""
        now, kept = time.monotonic(), []
        for waiting in batch:
            if waiting.done.done():
                continue
            if now > waiting.until:
                waiting.done.set_exception(come_back("the deadline passed while the image was waiting; try again"))
            else:
                kept.append(waiting)
        return kept

    async def results(self, batch: Sequence[Waiting[Item, Result]]) -> Sequence[Result | Exception]:
        run = asyncio.get_running_loop().run_in_executor
        try:
            results = await run(self.pool, self.work, [waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
            return results
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [(await self.results(one))[0] if (one := self.due([waiting])) else GONE for waiting in batch]
