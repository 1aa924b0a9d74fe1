"""Who may ask, and from where."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.service.config import LimitsConfig, is_loopback
from pipelines.service.problems import Problem

#: for whoever has no token: is it alive, and the empty page
OPEN = frozenset(("/", "/v1/healthz", "/v1/readyz", "/v2/health/live", "/v2/health/ready"))
#: what a form adds around its files
FORM_BYTES = 64_000
#: of an image id in JSON, on average
ID_BYTES = 1_000


class Tokens:
    """Bearer tokens, kept as hashes only. An empty set lets everybody in."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str) -> bool:
        """Whether the header holds one of them. Takes the same time for every wrong one."""
        kind, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found and kind.lower() == "bearer"


class Door:
    """ASGI middleware: tokens where there are any; without them only requests that name this machine, from no page of
    another one.

    That stops a page that has its own host name resolve to 127.0.0.1 in order to read a service without tokens, and
    one that sends it images whose answers it could not read. cors: origins that may ask all the same.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, cors: Iterable[str] = ()) -> None:
        self.app, self.tokens, self.cors = app, tokens, frozenset(cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self.refusal(scope) if scope["type"] == "http" else None
        await (self.app if problem is None else problem.response())(scope, receive, send)

    def refusal(self, scope: Scope) -> Problem | None:
        if self.tokens:
            if scope["path"] in OPEN or self.tokens.admit(header(scope, b"authorization")):
                return None
            return Problem(
                401, "Authorization: wanted `Bearer TOKEN` with a token of this service", field="Authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        host, origin = host_of(header(scope, b"host")), header(scope, b"origin")
        if not is_loopback(host):
            return Problem(
                421, f"Host: {host[:80]!r} is not this machine, and a service without tokens answers nobody else",
                field="Host",
            )  # fmt: skip
        if origin and origin not in self.cors and not is_here(origin):
            return Problem(
                403, f"Origin: {origin[:80]!r} is not this machine, and a service without tokens answers its own pages "
                "and those listed with --cors", field="Origin",
            )  # fmt: skip
        return None


def header(scope: Scope, name: bytes, otherwise: str = "") -> str:
    """The first header of that name (in lower case); half the cost of Starlette's Headers, twice in every request."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return otherwise


def host_of(header: str) -> str:
    """The host of a Host header in lower case, without its port and the brackets of an IPv6 address."""
    header = header.lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_here(origin: str) -> bool:
    """Whether a page with this origin came from this machine; `null` has no origin that could be known."""
    try:
        return is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False


class BodyLimit:
    """ASGI middleware: no body above the limit of its route is read, with or without a Content-Length, and none that
    takes longer than a request may.

    Starlette's own answers in plain text; this one is a problem like every other, raised where the body is read.
    """

    def __init__(self, app: ASGIApp, limits: LimitsConfig) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = header(scope, b"content-length", "0")
        if length == "0" and not header(scope, b"transfer-encoding"):
            await self.app(scope, receive, send)
            return
        read, limit, in_time = 0, body_limit(scope["path"], self.limits), asyncio.timeout(self.limits.seconds)

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    raise too_long(f"over {limit}", limit)
                if not message.get("more_body", False):
                    in_time.reschedule(None)
            return message

        if not length.isdecimal():
            problem = Problem(422, f"Content-Length: {length[:20]!r}, wanted a number of bytes", field="Content-Length")
            await problem.response()(scope, receive, send)
        elif len(length) > 20 or int(length) > limit:
            await too_long(length[:20], limit).response()(scope, receive, send)
        else:
            try:
                async with in_time:
                    await self.app(scope, limited, send)
            except TimeoutError:
                if not in_time.expired():
                    raise
                await too_slow(self.limits.seconds).response()(scope, receive, send)


def body_limit(path: str, limits: LimitsConfig) -> int:
    """Bytes that the body of a request to a route may have: its images, or a list of ids, and what is around them."""
    images = {"/v1/rank": 1, "/v1/segment": 1, "/v1/rank:batch": limits.images_per_request}.get(path)
    inside = limits.ids_per_request * ID_BYTES if images is None else images * limits.image_bytes
    return inside + FORM_BYTES


def too_long(seen: str, limit: int) -> Problem:
    return Problem(413, f"body: {seen} bytes, the limit is {limit}; send fewer or smaller images", field="body",
                   limit=limit, headers={"Connection": "close"})  # fmt: skip


def too_slow(seconds: float) -> Problem:
    return Problem(408, f"body: not complete after {seconds:g} s; send it faster", field="body", limit=seconds,
                   headers={"Connection": "close"})  # fmt: skip
