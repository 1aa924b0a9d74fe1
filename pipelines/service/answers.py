"""What every answer has, whoever gives it: headers, a place in the counters, an end."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.service.house import House
from pipelines.service.problems import HEADERS, HUNG_UP

METHODS = frozenset(("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"))


class Answers:
    """ASGI middleware, the outermost: HEADERS on every answer, and while the process drains the end of its connection;
    counts it by the pattern of its route, never by its path. HEAD is answered like GET, and the server leaves out the
    body. (One class for all: each costs a look-up 2 %.)"""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self.app, self.house = app, house
        self.always = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, method = time.perf_counter(), 0, scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                closing = [(b"connection", b"close")] if self.house.is_draining else []
                message["headers"] = [*message.get("headers", ()), *self.always, *closing]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except Exception:
            status = status or 500  # the answer is made outside
            raise
        finally:
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.perf_counter() - started
            self.house.watch.answered(route, method if method in METHODS else "other", status or HUNG_UP, seconds)
