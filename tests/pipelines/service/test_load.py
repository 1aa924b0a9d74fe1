"""A process under load, and its end: nothing that was accepted is lost."""

from __future__ import annotations

import http.client
import io
import json
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.conftest import IMAGES
from tests.pipelines.service.conftest import Process, picture, process

#: how long the slow test keeps 64 clients busy
LOAD_SECONDS = 60.0
BAD_SHARE = 0.05
GOOD = [picture((80, 60), kind=kind, seed=seed) for seed in range(4) for kind in ("JPEG", "PNG")]
BAD = [b"", b"no picture", GOOD[0][:500], GOOD[1][:500], picture(kind="GIF")]
JPEG, JSON = {"Content-Type": "image/jpeg"}, {"Content-Type": "application/json"}
IDS = [*IMAGES["train"], *IMAGES["val"]]


@dataclass
class Client(threading.Thread):
    """Sends requests, one after the other, over one connection, until told to stop or to close.

    What is accepted: a client sends nothing after an answer that closes its connection. So each request that it sent
    has a right to an answer, and `lost` names those that got none.
    """

    url: str
    seed: int
    stopped: threading.Event
    ranks: bool = True
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    was_closed: bool = False

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        address, dice = urlsplit(self.url), random.Random(self.seed)
        wire = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        while not self.stopped.is_set() and not self.was_closed:
            kind, method, path, body, headers = self.request(dice)
            began = time.perf_counter()
            try:
                wire.request(method, path, body, headers)
                answer = wire.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{kind}: {error!r}")
                break
            self.seconds.append(time.perf_counter() - began)
            self.statuses[kind, answer.status] += 1
            self.was_closed = answer.will_close
            self.wrong += complaints(kind, answer, content)
            if answer.status == 503:
                time.sleep(dice.uniform(0.02, 0.1))
        wire.close()

    def request(self, dice: random.Random) -> tuple[str, str, str, bytes | None, dict[str, str]]:
        if self.ranks and dice.random() < BAD_SHARE:
            return "bad", "POST", "/v1/rank", dice.choice(BAD), JPEG
        match dice.randrange(4 if self.ranks else 2):
            case 0:
                return "row", "GET", f"/v1/caches/labels/labels/{dice.choice(IDS)}", None, {}
            case 1:
                body = json.dumps({"image_ids": dice.choices(IDS, k=5)}).encode()
                return "rows", "POST", "/v1/caches/labels/labels:batch", body, JSON
        return "rank", "POST", "/v1/rank", dice.choice(GOOD), JPEG


def complaints(kind: str, answer: http.client.HTTPResponse, content: bytes) -> list[str]:
    """What is wrong with an answer."""
    wanted = {"bad": (415, 422)}.get(kind, (200,))
    if answer.status == 503:
        return [] if int(answer.getheader("Retry-After") or 0) >= 1 else ["503 without Retry-After"]
    if answer.status not in wanted:
        return [f"{kind}: {answer.status} {content[:200]!r}"]
    return [] if json.loads(content).get("detail" if kind == "bad" else "ids") else [f"{kind}: {content[:200]!r}"]


@contextmanager
def load(served: Process, clients: int, *, ranks: bool = True) -> Iterator[list[Client]]:
    """Clients that run until the end of the block, or until they are told to close."""
    stopped = threading.Event()
    found = [Client(served.url, seed, stopped, ranks) for seed in range(clients)]
    for client in found:
        client.start()
    try:
        yield found
    finally:
        stopped.set()
        for client in found:
            client.join(60)


def answered(clients: Sequence[Client]) -> int:
    return sum(len(client.seconds) for client in clients)


def nothing_is_wrong(clients: Sequence[Client]) -> Counter[tuple[str, int]]:
    """How often each kind of request got each status."""
    assert not any(client.is_alive() for client in clients)
    assert [text for client in clients for text in client.wrong] == []
    assert [text for client in clients for text in client.lost] == []
    return sum((client.statuses for client in clients), Counter[tuple[str, int]]())


def percentiles(clients: Sequence[Client], kinds: Counter[tuple[str, int]], seconds: float) -> str:
    times = 1000 * np.array([value for client in clients for value in client.seconds])
    low, high = np.percentile(times, [50, 99])
    shares = ", ".join(f"{kind} {status}: {number}" for (kind, status), number in sorted(kinds.items()))
    return (
        f"{len(clients)} clients, {seconds:.0f} s: {len(times)} answers ({len(times) / seconds:.0f}/s), "
        f"p50 {low:.0f} ms, p99 {high:.0f} ms; {shares}"
    )


def resident(pid: int) -> int:
    """RSS, in bytes."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def children(pid: int) -> set[int]:
    """Processes whose parent this is, and theirs."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found, before = {pid}, set[int]()
    while found != before:
        before = found
        found = found | {child for child, parent in parents.items() if parent in found}
    return found - {pid}


#: (more words of the command line) → a service
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def started(finished: Any) -> Start:
    """A classifier and a cache, with a small queue, so that some are told to come back."""
    words = ["--classifier", str(finished.out / "stage1"), "--cache", str(finished.out / "labels"), "--limits.queue=40"]
    return lambda *more: process(*words, *more)


@pytest.fixture(scope="module")
def light(finished: Any) -> Start:
    """A cache alone, which starts in a second."""
    return lambda *more: process("--cache", str(finished.out / "labels"), *more)


def under_load(served: Process, clients: int, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    samples: list[tuple[float, int]] = []
    with load(served, clients) as crowd:
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            samples.append((now, resident(served.child.pid)))
            time.sleep(min(0.2, seconds / 20))
    kinds = nothing_is_wrong(crowd)
    assert kinds["rank", 200] and kinds["row", 200] and kinds["rows", 200]
    assert kinds["bad", 415] + kinds["bad", 422]
    warm = [(now, size) for now, size in samples if now > seconds / 5]
    first = max(size for now, size in warm if now < 0.6 * seconds)
    last = max(size for now, size in warm if now >= 0.6 * seconds)
    with capsys.disabled():
        print(f"\n{percentiles(crowd, kinds, seconds)}; RSS {first >> 20} → {last >> 20} MiB")
    assert last <= 1.15 * first + 8 * 2**20
    inside = re.search(r"^kappaseg_images_inside (\S+)", text_of(served, "/v1/metrics")[1], re.M)
    assert inside is not None and float(inside[1]) == 0
    assert served.end() == 0 and not any("Traceback" in line for line in served.lines)


def text_of(served: Process, path: str) -> tuple[int, str]:
    address = urlsplit(served.url)
    wire = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    try:
        wire.request("GET", path)
        answer = wire.getresponse()
        return answer.status, answer.read().decode()
    finally:
        wire.close()


@pytest.mark.slow
def test_many_clients_are_all_answered_and_the_memory_stays(started: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with started() as served:
        under_load(served, 64, LOAD_SECONDS, capsys)


# -------------------------------------------------------------------------------------------------------------- the end


class Doorbell(threading.Thread):
    """Asks for readiness over a new connection each time, until no connection is to be had. seen: in order."""

    def __init__(self, served: Process) -> None:
        super().__init__(daemon=True)
        self.served, self.seen = served, list[str]()

    def run(self) -> None:
        while True:
            try:
                status, text = text_of(self.served, "/v1/readyz")
            except ConnectionRefusedError:
                self.seen.append("no address")
                return
            except (OSError, http.client.HTTPException):
                continue  # connected at the moment at which the address was given up
            self.seen.append("ready" if status == 200 else json.loads(text)["parts"]["service"])
            time.sleep(0.01)


def ends_without_loss(
    served: Process, clients: int, number: int, capsys: pytest.CaptureFixture[str], *, ranks: bool = True
) -> None:
    """The signal comes in the middle of the load."""
    offspring = children(served.child.pid)
    doorbell = Doorbell(served)
    with load(served, clients, ranks=ranks) as crowd:
        began = time.monotonic()
        while time.monotonic() - began < 2 or answered(crowd) < 20 * clients:
            time.sleep(0.01)
        doorbell.start()
        while not doorbell.seen:
            time.sleep(0.01)
        began = time.monotonic()
        assert served.end(number) == 0
        took = time.monotonic() - began
        doorbell.join(10)
        for client in crowd:
            client.join(10)
        kinds = nothing_is_wrong(crowd)
    assert all(client.was_closed for client in crowd)  # each was told, none met a closed door
    order = [seen for place, seen in enumerate(doorbell.seen) if place == 0 or doorbell.seen[place - 1] != seen]
    assert order == ["ready", "draining", "no address"]
    assert 0.4 < took < 15
    assert not children(served.child.pid) and not any(Path(f"/proc/{pid}").exists() for pid in offspring)
    assert not any("Traceback" in line for line in served.lines), served.lines
    with capsys.disabled():
        print(f"\nended {took:.1f} s after {signal.Signals(number).name}: {sum(kinds.values())} requests, none lost")


def test_a_few_clients_are_all_answered_and_at_the_end_nothing_is_lost(
    started: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with started("--drain_seconds=0.5") as served:
        ends_without_loss(served, 4, signal.SIGTERM, capsys)


def test_an_interrupt_ends_it_in_the_same_way(light: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with light("--drain_seconds=0.5") as served:
        ends_without_loss(served, 4, signal.SIGINT, capsys, ranks=False)


@pytest.mark.slow
def test_at_the_end_of_a_crowd_no_accepted_request_is_lost(started: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with started("--drain_seconds=3") as served:
        ends_without_loss(served, 64, signal.SIGTERM, capsys)


@contextmanager
def half_sent(served: Process) -> Iterator[tuple[socket.socket, bytes]]:
    """A look-up whose body has begun, and the rest of it."""
    address, body = urlsplit(served.url), json.dumps({"image_ids": IDS}).encode()
    with socket.create_connection((address.hostname, address.port), 10) as wire:
        wire.sendall(b"POST /v1/caches/labels/labels:batch HTTP/1.1\r\nHost: localhost\r\n")
        wire.sendall(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5])
        assert text_of(served, "/v1/readyz")[0] == 200  # a round trip, by which the head is read
        yield wire, body[5:]


def test_a_request_that_is_half_sent_at_the_end_is_still_answered(light: Start) -> None:
    with light("--drain_seconds=0.3") as served, half_sent(served) as (wire, rest):
        served.child.send_signal(signal.SIGTERM)
        until(lambda: is_closed(served))
        wire.sendall(rest)
        got = b""
        while piece := wire.recv(65536):
            got += piece
        assert got.startswith(b"HTTP/1.1 200 ") and b'"ids":' in got and b"connection: close" in got
        assert served.child.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(light: Start, number: int) -> None:
    with light("--drain_seconds=60") as served, half_sent(served):
        served.child.send_signal(number)
        until(lambda: text_of(served, "/v1/readyz")[0] == 503)
        began = time.monotonic()
        assert served.end(number, seconds=5) == 128 + number  # not 0: a request was lost
        assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_what_is_computed(finished: Any) -> None:
    """16 million pixels take a segmentation some seconds."""
    out = finished.out
    with process("--segmenter", str(out / "stage2-cache"), "--drain_seconds=60") as served:
        crowd = [threading.Thread(target=abandoned, args=(served, zeros(4000)), daemon=True) for _ in range(4)]
        for thread in crowd:
            thread.start()
        until(lambda: "kappaseg_images_inside 4.0" in text_of(served, "/v1/metrics")[1])
        served.child.send_signal(signal.SIGTERM)
        until(lambda: text_of(served, "/v1/readyz")[0] == 503)
        began = time.monotonic()
        assert served.end(seconds=30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 1
        for thread in crowd:
            thread.join(10)


def zeros(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def abandoned(served: Process, body: bytes) -> None:
    address = urlsplit(served.url)
    wire = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        wire.request("POST", "/v1/segment?ranking=complete", body, {"Content-Type": "image/png"})
        wire.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass
    finally:
        wire.close()


def is_closed(served: Process) -> bool:
    try:
        text_of(served, "/v1/healthz")
    except (OSError, http.client.HTTPException):
        return True
    return False


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
