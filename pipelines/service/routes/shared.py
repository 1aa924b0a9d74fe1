"""What routes have in common: the house behind them, and the problems that they may answer with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from pipelines.service import records
from pipelines.service.house import House
from pipelines.service.problems import Problem


def house_of(request: Request) -> House:
    house: House = request.app.state.house
    return house


async def _here(request: Request) -> House:
    """A coroutine, because FastAPI sends plain functions to another thread."""
    return house_of(request)


Here = Annotated[House, Depends(_here)]
#: statuses that any route may give
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": records.ProblemDetails, "description": text}
    for code, text in {
        401: "no token, or a wrong one", 403: "a page of another machine, and no tokens",
        404: "not there, or not served here", 408: "the body came too slowly",
        413: "larger than the limits", 415: "no image, or of another format", 421: "another host name, and no tokens",
        422: "not as described here",
        503: "full, draining or not ready; Retry-After says when to come back",
    }.items()
}  # fmt: skip


class Exact(APIRoute):
    """A route that refuses parameters of the query which it does not have: a misspelt one would count for nothing."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        read_by_hand = (self.openapi_extra or {}).get("parameters", ())
        known = {parameter.alias for parameter in self.dependant.query_params}
        known |= {parameter["name"] for parameter in read_by_hand if parameter["in"] == "query"}

        async def checked(request: Request) -> Response:
            if request.scope["query_string"] and (unknown := request.query_params.keys() - known):
                name, wanted = min(unknown)[:80], ", ".join(sorted(known)) or "none"
                raise Problem(422, f"{name}: no parameter of this route; wanted {wanted}", field=name)
            return await answer(request)

        return checked


def by_name(route: APIRoute) -> str:
    """The operation's id in the OpenAPI description, and so the name of a generated client's function."""
    return route.name


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: PROBLEMS[code] for code in (401, 403, 421, *codes)}


def image_body(*kinds: str, several: bool = False) -> dict[str, Any]:
    """OpenAPI's description of a request whose body is an image, or a form with the part `image`."""
    file: dict[str, Any] = {"type": "string", "format": "binary"}
    part = {"type": "array", "minItems": 1, "items": file} if several else file
    form = {"type": "object", "required": ["image"], "properties": {"image": part}}
    content = {kind: {"schema": file} for kind in kinds} | {"multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


IMAGE_BODY = image_body("image/jpeg", "image/png", "image/webp", "application/octet-stream")


def refuse_without(part: object, what: str, flag: str) -> None:
    """Raises Problem where a part is not served."""
    if part is None:
        raise Problem(404, f"this service {what}; start it with {flag}")


def kept(house: House, asked: int | None, otherwise: int) -> int:
    """κ. Raises Problem for more labels than there are."""
    classes = len(house.class_names)
    if asked is not None and asked > classes:
        seen = str(asked) if asked < 10**12 else "over 10^12"
        raise Problem(422, f"kappa: {seen}, there are {classes} labels", field="kappa", limit=classes)
    return min(otherwise, classes) if asked is None else asked
