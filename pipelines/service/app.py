"""The application: `create_app(house)`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from pipelines.service.answers import Answers
from pipelines.service.house import House
from pipelines.service.page import router as page
from pipelines.service.problems import add_handlers
from pipelines.service.routes import ROUTERS
from pipelines.service.security import BodyLimit, Door, Tokens


def create_app(house: House, tokens: Tokens | None = None) -> FastAPI:
    """An ASGI application for parts that are loaded. Without tokens it answers requests that name this machine only."""
    config = house.config

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with house.open():
            yield

    middleware = [Middleware(Answers, house=house)]
    if config.cors:
        middleware.append(Middleware(
            CORSMiddleware, allow_origins=list(config.cors), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match"], expose_headers=["ETag", "Retry-After"],
        ))  # fmt: skip
    middleware += [
        Middleware(Door, tokens=tokens or Tokens(()), cors=config.cors),
        Middleware(BodyLimit, limits=config.limits),
    ]
    app = FastAPI(
        title="kappaseg", version=version("kappaseg"), lifespan=lifespan, middleware=middleware,
        openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None,  # their pages load scripts from elsewhere
        summary="Ranked labels of images, live and cached, and segmentation among the best κ of them",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )  # fmt: skip
    app.state.house = house
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    add_handlers(app)
    for part in (*ROUTERS, page):
        app.router.routes.extend(part.routes)  # include_router would try them one router inside another: 10 µs more
    return app


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, where FastAPI would call problems plain JSON and give validation errors another form."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, summary=app.summary, license_info=app.license_info, routes=app.routes
        )
        problem = {"$ref": "#/components/schemas/ProblemDetails"}
        for route in (route for methods in found["paths"].values() for route in methods.values()):
            for status, answer in route["responses"].items():
                schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
                if schema == problem or status == "422":
                    answer["content"] = {"application/problem+json": {"schema": problem}}
        for unused in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(unused, None)
        app.openapi_schema = found
    return app.openapi_schema
