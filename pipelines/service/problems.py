"""Every error as `application/problem+json` (RFC 9457): what was seen, what is wanted, in which field."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

_log = logging.getLogger("kappaseg.service")

#: status that is counted where the client hung up: nobody reads it
HUNG_UP = 499
#: of every answer
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Problem(HTTPException):
    """An error that a client is told. field: of the request; limit: the largest value that it may have."""

    def __init__(
        self, status: int, detail: str, *, field: str | None = None, limit: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, " ".join(detail.split()), dict(headers) if headers else None)
        self.field, self.limit = field, limit

    def to_plain(self) -> dict[str, Any]:
        extra = {"field": self.field, "limit": self.limit}
        return {
            "type": "about:blank", "title": HTTPStatus(self.status_code).phrase, "status": self.status_code,
            "detail": self.detail, **{name: value for name, value in extra.items() if value is not None},
        }  # fmt: skip

    def response(self) -> Response:
        return Response(
            json.dumps(self.to_plain()), self.status_code, headers=self.headers, media_type="application/problem+json"
        )


def come_back(detail: str, *, seconds: int = 1) -> Problem:
    """503 with Retry-After: nothing is wrong with the request."""
    return Problem(503, detail, headers={"Retry-After": str(seconds)})


def add_handlers(app: FastAPI) -> None:
    """All errors of the application, also FastAPI's own, in the one form."""

    @app.exception_handler(HTTPException)
    async def told(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Problem):
            return error.response()
        if isinstance(error.__cause__, ClientDisconnect):
            return Response(status_code=HUNG_UP)
        if error.status_code == 400:  # FastAPI's, where a body is no text, or its nesting or a number has no end
            return Problem(422, "body: cannot be read, wanted JSON in UTF-8", field="body").response()
        return Problem(error.status_code, f"{error.detail}: {request.method} {path_of(request)}",
                       headers=error.headers).response()  # fmt: skip

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return described(error.errors()).response()

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=HUNG_UP)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "the service failed at this request; its log says why", headers=HEADERS).response()


def path_of(request: Request) -> str:
    path = request.url.path
    return path if len(path) <= 200 else path[:199] + "…"


def described(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The first of pydantic's complaints, in words."""
    first = errors[0]
    place, *inner = first["loc"] or ("body",)
    where = str(place) if first["type"] == "json_invalid" else ".".join(map(str, inner)) or str(place)
    limits = [value for name in ("le", "lt", "max_length")
              if (value := (first.get("ctx") or {}).get(name)) is not None]  # fmt: skip
    seen = "" if first["type"] in ("missing", "json_invalid") else f"; got {shortened(first.get('input'))}"
    return Problem(422, f"{where}: {first['msg']}{seen}", field=where, limit=limits[0] if limits else None)


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
