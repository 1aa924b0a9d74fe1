"""The process of `kappaseg serve`: address, start, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kappaseg_core.errors import UserError
from pipelines.service.app import create_app
from pipelines.service.config import ServeConfig
from pipelines.service.house import House, build_house
from pipelines.service.problems import HEADERS, Problem
from pipelines.service.security import Tokens

_log = logging.getLogger("kappaseg.service")

#: of a request before its body; uvicorn itself would keep all that comes
HEAD_BYTES = 64_000


def serve(config: ServeConfig) -> int:
    """Answer until SIGTERM or SIGINT. Raises UserError for what cannot be served, before anybody is answered."""
    logging.basicConfig(level=logging.INFO, format="kappaseg: %(message)s", stream=sys.stderr)
    tokens = Tokens(config.tokens())
    with closing(bound(config)) as address:  # before the networks are loaded, which takes a while
        house = build_house(config)
        server = Server(house, create_app(house, tokens))
        with telling(config):
            address.listen(2048)
        host, port = address.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        for name, state in house.readiness().items():
            if name != "service":
                print(f"kappaseg: {name}: {state}", file=sys.stderr)
        print(f"kappaseg: http://{shown}:{port}/ {'with tokens' if tokens else 'for this machine only'}", flush=True)
        server.run(sockets=[address])
    return 0


def bound(config: ServeConfig) -> socket.socket:
    """The address, at which nobody is answered yet. Raises UserError where it cannot be had."""
    with telling(config):
        family, kind, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
        return found


@contextmanager
def telling(config: ServeConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{config.host}:{config.port} cannot be listened on: {reason.lower()}; "
            "choose another --port (0 = any free one) or --host"
        ) from None


class Server(uvicorn.Server):
    """uvicorn that first says that it is about to end.

    On SIGTERM or SIGINT readiness says no and every answer closes its connection, so that nobody sends more; after
    `drain_seconds` the address is given up, requests in the house are answered, and the process ends with status 0. A
    second signal ends it at once, with status 128 + its number, as requests may be lost.
    """

    def __init__(self, house: House, app: ASGIApp) -> None:
        self.house, self.ends_at = house, float("inf")
        super().__init__(uvicorn.Config(
            app, http=wire(house.config.limits.seconds), log_level="warning", access_log=False, server_header=False,
            lifespan="on", timeout_keep_alive=30,
            timeout_graceful_shutdown=math.ceil(house.config.limits.seconds) + 1,
        ))  # fmt: skip

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.house.is_draining:
            print(f"kappaseg: {signal.Signals(sig).name} again, ending at once", file=sys.stderr, flush=True)
            os._exit(128 + sig)  # waiting for nothing, also not for the thread that runs networks
        self.house.is_draining = True
        self.house.note_readiness()
        print(f"kappaseg: {signal.Signals(sig).name}, answering what is here and ending", file=sys.stderr)
        self.ends_at = time.monotonic() + self.house.config.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        self.should_exit |= time.monotonic() > self.ends_at
        return await super().on_tick(counter)


class Wire(HttpToolsProtocol):
    """HTTP/1.1 that ends a connection whose head has no end, or none in time, and tells so in the form of every other
    error. (uvicorn itself ends only connections that are idle after an answer.)"""

    #: that a head may take
    seconds = 30.0
    #: bytes since the last that were part of a body
    of_head = 0
    #: ends the connection where no whole head comes
    head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.wait_for_head()

    def connection_lost(self, error: Exception | None) -> None:
        self.head_is_over()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self.of_head += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.of_head > HEAD_BYTES:
            detail = f"head: over {HEAD_BYTES} bytes; send fewer or shorter headers"
            self.refuse(Problem(431, detail, field="head", limit=HEAD_BYTES))
        elif self.head_deadline is None and (self.of_head or self.is_answered):
            self.wait_for_head()

    @property
    def is_answered(self) -> bool:
        """Whether the last request has its answer: what comes now is a body that nobody reads, or the next head."""
        return self.cycle is not None and self.cycle.response_complete

    def on_headers_complete(self) -> None:
        self.head_is_over()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.is_answered:
            self.of_head = 0  # and the time of the next head runs on
        else:
            self.head_is_over()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.of_head = 0
        super().on_message_complete()

    def wait_for_head(self) -> None:
        self.head_deadline = self.loop.call_later(self.seconds, self.head_is_late)

    def head_is_over(self) -> None:
        self.of_head = 0
        if self.head_deadline is not None:
            self.head_deadline.cancel()
            self.head_deadline = None

    def head_is_late(self) -> None:
        if self.transport.is_closing():
            return
        if not self.of_head:  # a connection opened in advance, as browsers do
            self.transport.close()
            return
        detail = f"head: not complete after {self.seconds:g} s; send it faster"
        self.refuse(Problem(408, detail, field="head", limit=self.seconds))

    def send_400_response(self, msg: str) -> None:
        self.refuse(Problem(400, f"head: {msg}", field="head"))

    def refuse(self, problem: Problem) -> None:
        answer = problem.response()
        headers = [*answer.raw_headers, *((name.lower().encode(), value.encode()) for name, value in HEADERS.items())]
        lines = [b"HTTP/1.1 %d %s" % (problem.status_code, problem.to_plain()["title"].encode()), b"connection: close"]
        lines += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()


def wire(seconds: float) -> type[Wire]:
    """The protocol of connections whose heads may take so long; uvicorn wants a class."""
    return type("Wire", (Wire,), {"seconds": seconds})
