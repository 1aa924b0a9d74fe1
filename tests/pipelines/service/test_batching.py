"""Several images in one forward pass, and who does not get into one."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipelines.service.app import create_app
from pipelines.service.batching import Gate, MicroBatcher
from pipelines.service.config import BatchingConfig, ServeConfig
from pipelines.service.house import House, build_house
from pipelines.service.problems import Problem, come_back
from pipelines.service.uploads import all_of
from tests.pipelines.service.conftest import LIMITS, picture

NEVER = 60.0


def later(seconds: float = NEVER) -> float:
    return time.monotonic() + seconds


class Work:
    """Ten times each item, noting the batches. While `busy` is clear, work does not end."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.busy, self.begun = threading.Event(), threading.Event()
        self.busy.set()

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.batches.append(list(items))
        self.begun.set()
        assert self.busy.wait(10)
        if "bad" in items:
            raise ValueError("bad")
        return [10 * item for item in items]

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.begun.wait, 10)


@asynccontextmanager
async def batching(size: int = 3, wait: float = 0.02) -> AsyncIterator[tuple[MicroBatcher[Any, Any], Work]]:
    work, pool = Work(), ThreadPoolExecutor(1)
    batcher = MicroBatcher[Any, Any](work, pool, size=size, wait_seconds=wait)
    task = asyncio.create_task(batcher.run())
    try:
        yield batcher, work
    finally:
        work.busy.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        pool.shutdown()


async def several(batcher: MicroBatcher[Any, Any], items: Sequence[Any], until: float | None = None) -> list[Any]:
    """Results or exceptions."""
    until = later() if until is None else until
    return await asyncio.gather(*(batcher(item, until) for item in items), return_exceptions=True)


# --------------------------------------------------------------------------------------------------------- MicroBatcher


def test_a_full_batch_does_not_wait() -> None:
    async def check() -> None:
        async with batching(size=3, wait=NEVER) as (batcher, work):
            found = await asyncio.wait_for(several(batcher, [1, 2, 3]), 10)
            assert [(result, size) for result, size, _ in found] == [(10, 3), (20, 3), (30, 3)]
            assert work.batches == [[1, 2, 3]]

    asyncio.run(check())


def test_a_batch_that_does_not_fill_goes_after_the_wait() -> None:
    async def check() -> None:
        async with batching(size=3, wait=0.1) as (batcher, work):
            found = await several(batcher, [1, 2])
            assert work.batches == [[1, 2]]
            assert all(0.09 < waited < 5 for _, _, waited in found)

    asyncio.run(check())


def test_the_wait_is_that_of_the_first_item() -> None:
    async def check() -> None:
        async with batching(size=3, wait=0.4) as (batcher, work):
            first = asyncio.create_task(batcher(1, later()))
            await asyncio.sleep(0.2)
            found = await asyncio.gather(first, batcher(2, later()))
            assert work.batches == [[1, 2]]
            assert found[1][2] < found[0][2] - 0.1  # the second waited for what was left

    asyncio.run(check())


def test_while_one_batch_is_computed_the_next_collects() -> None:
    async def check() -> None:
        async with batching(size=3, wait=0) as (batcher, work):
            work.busy.clear()
            first = asyncio.create_task(batcher(0, later()))
            await work.has_begun()
            others = asyncio.create_task(several(batcher, [1, 2, 3, 4]))
            await asyncio.sleep(0.05)
            work.busy.set()
            assert (await first)[:2] == (0, 1)
            assert [result for result, _, _ in await others] == [10, 20, 30, 40]
            assert work.batches == [[0], [1, 2, 3], [4]]

    asyncio.run(check())


def test_everybody_gets_the_result_of_their_own_item() -> None:
    async def check() -> None:
        async with batching(size=4, wait=0) as (batcher, work):
            items = list(range(50))
            assert [result for result, _, _ in await several(batcher, items)] == [10 * item for item in items]
            assert [item for batch in work.batches for item in batch] == items and max(map(len, work.batches)) == 4

    asyncio.run(check())


def test_an_item_that_nobody_waits_for_is_not_computed() -> None:
    async def check() -> None:
        async with batching(wait=0) as (batcher, work):
            work.busy.clear()
            first = asyncio.create_task(batcher(0, later()))
            await work.has_begun()
            gone, here = (asyncio.create_task(batcher(item, later())) for item in (1, 2))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            work.busy.set()
            assert (await here)[0] == 20 and (await first)[0] == 0
            assert work.batches == [[0], [2]] and gone.cancelled()

    asyncio.run(check())


def test_an_item_past_its_deadline_is_told_so_and_not_computed() -> None:
    async def check() -> None:
        async with batching(size=2) as (batcher, work):
            found: list[Any] = await asyncio.gather(
                batcher("late", later(-0.001)), batcher(1, later()), return_exceptions=True
            )
            late, fine = found
            assert isinstance(late, Problem) and isinstance(fine, tuple)
            assert late.status_code == 503 and late.headers is not None and int(late.headers["Retry-After"]) >= 1
            assert work.batches == [[1]]

    asyncio.run(check())


def test_an_item_that_fails_fails_alone() -> None:
    async def check() -> None:
        async with batching(size=3, wait=NEVER) as (batcher, work):
            one, bad, two = await asyncio.wait_for(several(batcher, [1, "bad", 2]), 10)
            assert (one[0], two[0]) == (10, 20) and isinstance(bad, ValueError)
            assert work.batches == [[1, "bad", 2], [1], ["bad"], [2]]
            assert (await asyncio.wait_for(several(batcher, [4, 5, 6]), 10))[2][0] == 60  # and it goes on

    asyncio.run(check())


def test_after_a_failure_those_who_have_gone_are_left_out() -> None:
    async def check() -> None:
        async with batching(size=3, wait=NEVER) as (batcher, work):
            work.busy.clear()
            one, bad, gone = (asyncio.create_task(batcher(item, later())) for item in (1, "bad", 2))
            await work.has_begun()
            gone.cancel()
            await asyncio.sleep(0)
            work.busy.set()
            assert (await one)[0] == 10
            with pytest.raises(ValueError, match="bad"):
                await bad
            await asyncio.sleep(0.05)
            assert work.batches == [[1, "bad", 2], [1], ["bad"]]

    asyncio.run(check())


def test_work_that_gives_too_few_results_fails_its_requests_and_no_others() -> None:
    async def check() -> None:
        async with batching(size=2, wait=0) as (batcher, _):
            whole = batcher.work
            batcher.work = lambda items: [*whole(items)][:-1]
            assert [type(found) for found in await several(batcher, [1, 2])] == [RuntimeError] * 2
            batcher.work = whole
            assert (await asyncio.wait_for(several(batcher, [4]), 10))[0][0] == 40

    asyncio.run(check())


# ----------------------------------------------------------------------------------------------------------------- Gate


def test_a_gate_lets_in_as_many_as_it_has_room_for() -> None:
    noted: list[int] = []
    gate = Gate(3, noted.append)
    with gate.admit(2):
        with pytest.raises(Problem) as full, gate.admit(2):
            raise AssertionError("let in")
        assert full.value.status_code == 503 and full.value.headers == {"Retry-After": "1"}
        with gate.admit():
            assert gate.inside == 3
    with gate.admit(3):
        pass
    assert noted == [2, 3, 2, 0, 3, 0]


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, KeyboardInterrupt])
def test_a_gate_makes_room_whatever_happens_inside(error: type[BaseException]) -> None:
    gate = Gate(1, lambda inside: None)
    with pytest.raises(error), gate.admit():
        raise error
    with gate.admit():
        assert gate.inside == 1


# ------------------------------------------------------------------------------------------------ in the service itself


class Request:
    """A request to an application. `await it` → (status, headers, body). leave(): the client hangs up."""

    def __init__(self, app: Any, path: str, body: bytes, kind: str = "image/png") -> None:
        self.status, self.headers, self.body = 0, dict[bytes, bytes](), b""
        self.unsent, self.gone = [body], asyncio.Event()
        headers = [(b"host", b"127.0.0.1"), (b"content-type", kind.encode())]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
                 "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
                 "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}  # fmt: skip
        self.task = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if self.unsent:
            return {"type": "http.request", "body": self.unsent.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message.get("body", b"")

    async def answer(self) -> tuple[int, dict[bytes, bytes], Any]:
        await asyncio.wait_for(self.task, 20)
        return self.status, self.headers, json.loads(self.body)

    async def leave(self) -> None:
        self.gone.set()
        await asyncio.wait_for(self.task, 20)


@asynccontextmanager
async def occupied(config: ServeConfig) -> AsyncIterator[tuple[Any, House, threading.Event, list[int]]]:
    """An application whose compute thread is busy until the event is set; how many images each forward pass had."""
    house, free, passes = build_house(config), threading.Event(), list[int]()
    assert house.batcher is not None
    work = house.batcher.work

    def noted(images: Sequence[Any]) -> Any:
        passes.append(len(images))
        return work(images)

    house.batcher.work = noted
    app = create_app(house)
    async with app.router.lifespan_context(app):
        house.compute.submit(free.wait, 20)
        try:
            yield app, house, free, passes
        finally:
            free.set()


async def until_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def form(images: int) -> tuple[bytes, str]:
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + picture() + b"\r\n"
    return part * images + b"--x--\r\n", "multipart/form-data; boundary=x"


def test_a_full_house_says_when_to_come_back(settings: Callable[..., ServeConfig]) -> None:
    async def check() -> None:
        config = settings(caches=(), segmenter=None)
        async with occupied(config) as (app, house, free, passes):
            inside = [Request(app, "/v1/rank", picture(seed=seed)) for seed in range(LIMITS.queue)]
            await until_true(lambda: house.gate.inside == LIMITS.queue)
            for path, (body, kind) in {"/v1/rank": (picture(), "image/png"), "/v1/rank:batch": form(2)}.items():
                status, headers, problem = await Request(app, path, body, kind).answer()
                assert status == 503 and int(headers[b"retry-after"]) >= 1
                assert headers[b"content-type"] == b"application/problem+json" and "8 images" in problem["detail"]
            assert house.gate.inside == LIMITS.queue
            free.set()
            answers = [await request.answer() for request in inside]
            assert [status for status, _, _ in answers] == [200] * LIMITS.queue
            assert sum(passes) == LIMITS.queue and len(passes) < LIMITS.queue
            assert (await Request(app, "/v1/rank", picture()).answer())[0] == 200 and house.gate.inside == 0

    asyncio.run(check())


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/segment", "/v1/rank:batch"])
def test_the_image_of_a_client_that_hangs_up_is_not_computed(settings: Callable[..., ServeConfig], path: str) -> None:
    async def check() -> None:
        async with occupied(settings(caches=())) as (app, house, free, passes):
            here = Request(app, "/v1/rank", picture())
            await until_true(lambda: batches_begun(house) == 1)  # alone in its batch
            body, kind = form(3) if path.endswith("batch") else (picture(seed=1), "image/png")
            gone = Request(app, path, body, kind)
            await until_true(lambda: queued(house) == (3 if path.endswith("batch") else 1))
            await gone.leave()
            assert house.gate.inside == 1  # there is room, although the thread is still busy
            free.set()
            assert (await here.answer())[0] == 200
            assert (await Request(app, "/v1/rank", picture(seed=2)).answer())[0] == 200
            assert passes == [1, 1] and count(house, "stage_seconds_count", stage="segment") == 0

    asyncio.run(check())


def queued(house: House) -> int:
    assert house.batcher is not None
    return len(house.batcher.queue)


def batches_begun(house: House) -> int:
    return count(house, "batch_images_count")


def count(house: House, name: str, **labels: str) -> int:
    return int(house.watch.registry.get_sample_value(f"kappaseg_{name}", labels) or 0)


def test_where_one_image_of_a_request_is_told_to_come_back_the_others_are_given_up() -> None:
    async def check() -> None:
        given_up = []

        async def waits() -> None:
            try:
                await asyncio.sleep(NEVER)
            except asyncio.CancelledError:
                given_up.append(True)
                raise

        async def is_told() -> None:
            await asyncio.sleep(0)
            raise come_back("the deadline passed")

        with pytest.raises(Problem):
            await all_of([waits(), is_told(), waits()])
        await asyncio.sleep(0)
        assert given_up == [True, True]

    asyncio.run(check())


def test_at_its_deadline_a_request_is_told_so_also_while_the_network_runs(settings: Callable[..., ServeConfig]) -> None:
    async def check() -> None:
        config = settings(caches=(), segmenter=None, limits=replace(LIMITS, seconds=0.5))
        async with occupied(config) as (app, house, free, _):
            first = Request(app, "/v1/rank", picture())
            await until_true(lambda: batches_begun(house) == 1)  # before its deadline
            body, kind = form(3)
            waiting = [Request(app, "/v1/rank", picture()), Request(app, "/v1/rank:batch", body, kind)]
            for request in (first, *waiting):
                status, headers, problem = await request.answer()
                assert status == 503 and int(headers[b"retry-after"]) >= 1 and "deadline" in problem["detail"]
            assert house.gate.inside == 0 and not house.batcher.queue  # while the first is still computed
            free.set()
            assert (await Request(app, "/v1/rank", picture()).answer())[0] == 200

    asyncio.run(check())


@pytest.mark.parametrize(("cores", "wanted"), [(None, 3), (2, 2)])
def test_forward_passes_use_the_cores_that_decoders_leave(
    settings: Callable[..., ServeConfig], monkeypatch: pytest.MonkeyPatch, cores: int | None, wanted: int
) -> None:
    monkeypatch.setattr("pipelines.service.house.all_cores", lambda: 5)
    config = settings(caches=(), segmenter=None, batching=BatchingConfig(decoders=2, cores=cores))
    before = torch.get_num_threads()
    house = build_house(config)
    try:
        assert house.compute.submit(torch.get_num_threads).result() == wanted
        assert {house.decoders.submit(torch.get_num_threads).result() for _ in range(20)} == {1}
        assert torch.get_num_threads() == before
    finally:
        house.compute.shutdown()
        house.decoders.shutdown()
        torch.set_num_threads(before)
