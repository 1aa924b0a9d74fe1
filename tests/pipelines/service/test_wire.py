"""What the service makes of bytes that no HTTP library would send."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.pipelines.service.conftest import LIMITS, Process, picture, process
from tests.pipelines.service.hostile import (
    ANY,
    FORM,
    KINDS,
    LOOKUPS,
    PART,
    ROUTES,
    body_limits,
    png,
    sent,
    sized,
    told,
)


@pytest.fixture(scope="module")
def served(finished: Any) -> Iterator[Process]:
    out = finished.out
    words = ["--classifier", str(out / "stage1"), "--cache", str(out / "labels"),
             "--segmenter", str(out / "stage2-cache"),
             *(f"--limits.{name}={getattr(LIMITS, name)}" for name in ("image_bytes", "images_per_request", "queue")),
             "--limits.ids_per_request=10", "--limits.seconds=2"]  # fmt: skip
    with process(*words) as found:
        yield found


def raw(served: Process, data: bytes, *, then: bytes = b"", seconds: float = 10) -> bytes:
    """All that comes back for some bytes, until the service ends the connection or has answered once."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), seconds) as wire:
        got = b""
        try:
            wire.sendall(data)
            wire.sendall(then)
        except OSError:
            pass  # refused while it was sent
        try:
            while piece := wire.recv(65536):
                got += piece
                head, end, body = got.partition(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: (\d+)", head)
                if end and found and len(body) >= int(found[1]):
                    break
        except ConnectionResetError:
            pass
        return got


def status(got: bytes) -> int:
    assert got.startswith(b"HTTP/1.1 "), got[:100]
    return int(got[9:12])


def request(method: str, path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([method.encode() + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1", *headers, b"", b""])


def counted(served: Process, name: str) -> int:
    text = httpx2.get(f"{served.url}/v1/metrics").text
    found = re.search(rf"^kappaseg_{re.escape(name)} (\S+)", text, re.M)
    return int(float(found[1])) if found else 0


def images_inside(served: Process) -> int:
    return counted(served, "images_inside")


def hang_ups(served: Process) -> int:
    return counted(served, 'requests_total{method="POST",route="/v1/rank",status="499"}')


def is_well(served: Process) -> bool:
    """Whether it answers, ranks, and has nothing inside."""
    answer = httpx2.post(f"{served.url}/v1/rank", content=picture(), headers=ANY)
    return served.child.poll() is None and answer.status_code == 200 and images_inside(served) == 0


def test_a_body_without_a_length_is_cut_at_the_limit(served: Process) -> None:
    piece = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    for route, most in body_limits().items():
        kind = b"application/json" if route.startswith(LOOKUPS) else FORM.encode()
        head = request("POST", route.encode(), b"Content-Type: " + kind, b"Transfer-Encoding: chunked")
        head += b"%x\r\n" % len(PART) + PART + b"\r\n"
        got = raw(served, head, then=piece * (2 * most // 0x4000 + 20))
        assert status(got) == 413 and b"connection: close" in got and b'"field": "body"' in got
    assert is_well(served)


@pytest.mark.parametrize("headers", [
    [b"Content-Length: -5"], [b"Content-Length: x"], [b"Content-Length: 1", b"Content-Length: 2"],
    [b"Content-Length: 99999999999999999999999999"], [b"Content-Length: 3", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: gzip"], [b"no colon"], [b"X: \x00"], [b": empty name"],
])  # fmt: skip
def test_a_broken_head_is_refused_on_the_wire(served: Process, headers: list[bytes]) -> None:
    got = raw(served, request("POST", b"/v1/rank", b"Content-Type: image/png", *headers), then=b"abc")
    assert status(got) in (400, 413, 415, 422) and b"application/problem+json" in got
    assert is_well(served)


@pytest.mark.parametrize("target", [
    b"/v1/caches/labels/labels/\xff\xfe", b"/v1/caches/\xff/labels/x", b"/v1/caches/labels/images?split=\xff",
    b"/v1/rank?kappa=\xff", b"\xff", b"*", b"http://evil.example/v1/healthz", b"//", b"/v1/healthz\x00",
    b"/" + b"a" * 20_000, b"/v1/caches/labels/labels/" + b"%" * 100, b"/%",
    b"/v1/caches/labels/labels/../../../etc/passwd",
])  # fmt: skip
def test_a_target_that_is_no_path_is_refused_on_the_wire(served: Process, target: bytes) -> None:
    got = raw(served, request("GET", target))
    assert status(got) in (200, 400, 404, 405, 414, 421, 422) and b"root:" not in got
    assert is_well(served)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01" + bytes(500), b"\r\n" * 100, b"GET\r\n\r\n", bytes(1000),
                                  b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])  # fmt: skip
def test_what_is_no_request_is_no_harm(served: Process, data: bytes) -> None:
    got = raw(served, data, seconds=1) if data.strip() else b""
    assert not got or status(got) in (400, 404, 405, 421, 505)
    assert is_well(served)


def memory(served: Process, name: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    text = Path(f"/proc/{served.child.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


def largest_since(served: Process, work: Callable[[], Any]) -> int:
    """Bytes by which the process grew at most while something was done."""
    Path(f"/proc/{served.child.pid}/clear_refs").write_text("5")  # forget the largest so far
    before = memory(served, "VmRSS")
    work()
    return memory(served, "VmHWM") - before


def test_a_small_file_cannot_fill_the_memory(served: Process) -> None:
    """The limits of this service are the usual ones: 40 million pixels. 20000 x 20000 are 1.2 GB of RGB."""

    def bombs() -> None:
        with httpx2.Client(base_url=served.url) as client:
            for route in ROUTES:
                for kind in KINDS:
                    limit = 16_000_000 if route == "/v1/segment" else 40_000_000
                    told(sent(client, route, sized(kind, 20_000)), status=413, field="image", limit=limit)
            line = png(10_000_000, 1, bytes(10_000_001))
            told(sent(client, "/v1/segment", line), status=413, field="image")

    assert is_well(served)
    assert largest_since(served, bombs) < 150_000_000
    assert is_well(served)


@pytest.mark.parametrize(("start", "piece"), [
    (b"GET /v1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"a" * 1000), (b"GET /v1/healthz?", b"a" * 1000),
    (b"GET /v1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X: 1\r\n" * 200),
    (request("POST", b"/v1/rank", b"Content-Type: image/png", b"Transfer-Encoding: chunked") + b"0\r\n",
     b"X: 1\r\n" * 200),
])  # fmt: skip
def test_a_head_without_end_is_not_kept(served: Process, start: bytes, piece: bytes) -> None:
    def flood() -> None:
        got = raw(served, start, then=piece * 50_000)
        assert status(got) == 431 and b"\r\nconnection: close\r\n" in got and b"application/problem+json" in got
        assert b'"field": "head", "limit": 64000' in got and b"\r\nx-content-type-options: nosniff\r\n" in got

    assert is_well(served)
    assert largest_since(served, flood) < 20_000_000
    assert is_well(served)


def test_a_client_that_stops_sending_is_told_so_and_makes_room(served: Process) -> None:
    head = request("POST", b"/v1/rank", b"Content-Type: image/png", b"Content-Length: 1000")
    began = time.monotonic()
    got = raw(served, head, then=b"\x89PNG")
    assert status(got) == 408 and b"connection: close" in got and b'"limit": 2.0' in got
    assert 1 < time.monotonic() - began < 8
    assert is_well(served)


@pytest.mark.parametrize("path", [*ROUTES, f"{LOOKUPS}:batch"])
def test_a_body_that_does_not_end_is_not_waited_for(served: Process, path: str) -> None:
    kind = b"Content-Type: application/json" if path.startswith(LOOKUPS) else b"Content-Type: " + FORM.encode()
    begun = b"{" if path.startswith(LOOKUPS) else PART
    got = raw(served, request("POST", path.encode(), kind, b"Content-Length: 1000"), then=begun)
    assert status(got) == 408 and b'"field": "body"' in got


BEGUN = b"GET /v1/healthz HTTP/1.1\r\nHost: 127.0"


@pytest.mark.parametrize(("before", "start"), [
    (b"", b""), (b"", BEGUN), (request("GET", b"/v1/healthz"), BEGUN),
], ids=["nothing", "a part", "a part of the second"])  # fmt: skip
def test_a_connection_whose_head_does_not_come_is_ended(served: Process, before: bytes, start: bytes) -> None:
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), 10) as wire:
        if before:
            wire.sendall(before)
            answer = b""
            while not answer.endswith(b"}"):
                answer += wire.recv(65536)
            assert status(answer) == 200
        began = time.monotonic()
        wire.sendall(start)
        got = b""
        while piece := wire.recv(65536):
            got += piece
    assert 1 < time.monotonic() - began < 8
    assert (b"HTTP/1.1 408" in got and b'"field": "head", "limit": 2' in got) if start else not got
    assert is_well(served)


@pytest.mark.parametrize("sent", [b"x", bytes(100)], ids=["a part", "the whole"])
@pytest.mark.parametrize("path", ["/v1/healthz", "/nowhere"])
def test_a_body_that_comes_after_the_answer_keeps_no_connection(served: Process, path: str, sent: bytes) -> None:
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), 10) as wire:
        wire.sendall(request("POST", path.encode(), b"Content-Length: 100"))
        answer = b""
        while not answer.endswith(b"}"):
            answer += wire.recv(65536)
        began = time.monotonic()
        wire.sendall(sent)
        while wire.recv(65536):
            pass
    assert time.monotonic() - began < 8
    assert is_well(served)


def test_a_body_that_trickles_after_the_answer_is_cut(served: Process) -> None:
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), 10) as wire:
        wire.sendall(request("POST", b"/nowhere", b"Content-Length: 1000"))
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 8:
                wire.sendall(b"x")
                time.sleep(0.2)
    assert is_well(served)


def test_head_is_answered_like_get_without_a_body(served: Process) -> None:
    for path in ("/", "/v1/healthz", "/v1/readyz", "/v2/health/ready", f"{LOOKUPS}/v0", "/nowhere"):
        whole, head = httpx2.get(served.url + path), httpx2.head(served.url + path)
        assert head.status_code == whole.status_code and not head.content
        assert {name: text for name, text in head.headers.items() if name != "date"} == {
            name: text for name, text in whole.headers.items() if name != "date"
        }
    assert httpx2.head(f"{served.url}/v1/rank").status_code == 405


def test_a_client_that_hangs_up_makes_room(served: Process) -> None:
    address, before = urlsplit(served.url), hang_ups(served)
    lost = counted(served, 'requests_total{method="POST",route="/v1/caches/{name}/labels:batch",status="499"}')
    with socket.create_connection((address.hostname, address.port), 5) as wire:
        head = request("POST", f"{LOOKUPS}:batch".encode(), b"Content-Type: application/json", b"Content-Length: 9")
        wire.sendall(head + b"{")
    for data in (b"", b"\x89PNG", picture()[:-10]):
        head = request("POST", b"/v1/rank", b"Content-Type: image/png", b"Content-Length: %d" % len(picture()))
        with socket.create_connection((address.hostname, address.port), 5) as wire:
            wire.sendall(head + data)
    deadline = time.monotonic() + 1.5  # before the time of a request is over
    while images_inside(served) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_well(served)
    assert hang_ups(served) == before + 3
    assert (
        counted(served, 'requests_total{method="POST",route="/v1/caches/{name}/labels:batch",status="499"}') == lost + 1
    )


def test_nothing_that_was_sent_is_in_the_log_as_a_failure(served: Process) -> None:
    """Last in this file: it reads what the service has printed about all the above."""
    text = "\n".join(served.lines)
    assert "Traceback" not in text and "failed" not in text, text[-3000:]
