"""Images of a request: admitted, received within limits, and given up when the client is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipelines.service.house import House
from pipelines.service.problems import Problem, come_back

T = TypeVar("T")


@asynccontextmanager
async def worked_on(house: House, images: int) -> AsyncIterator[tuple[float, Callable[[int], None]]]:
    """Room for so many images: when they have to be answered, on the monotonic clock, and a function that keeps room
    for fewer. Raises Problem (503)."""
    with house.gate.admit(images) as keep:
        yield time.monotonic() + house.config.limits.seconds, keep


async def images_of(request: Request, house: House, *, most: int) -> list[bytes]:
    """The image files of a request: its body, or the parts called `image` of a form. Raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await files_of(request, house, most)
    if most == 1 and (kind.startswith("image/") or kind == "application/octet-stream"):
        return [checked(await request.body(), house)]
    wanted = "an image (image/jpeg, image/png, image/webp)" if most == 1 else "several"
    raise Problem(415, f"Content-Type: {kind[:80] or 'none'}, wanted {wanted} or multipart/form-data with parts called "
                  "image, as from curl -F image=@FILE", field="Content-Type")  # fmt: skip


async def files_of(request: Request, house: House, most: int) -> list[bytes]:
    try:
        form = await request.form(max_files=most, max_fields=8)
    except Problem:
        raise  # over the limit of the body
    except HTTPException as error:  # Starlette's, for whatever is wrong with a form
        limit = most if "Too many files" in error.detail else None
        raise Problem(422, f"image: {error.detail}", field="image", limit=limit) from None
    except ValueError as error:  # a charset with a NUL, for example
        raise Problem(422, f"Content-Type: {error}", field="Content-Type") from None
    async with form_closed(form):
        files = form.getlist("image")
        if not files or len(files) > most or len(form.multi_items()) != len(files):
            names = ", ".join(sorted({name[:40] for name in form})) or "no parts"
            raise Problem(422, f"image: {len(files)} files ({names}), wanted 1 to {most} called image", field="image",
                          limit=most)  # fmt: skip
        return [checked(await contents(file), house) for file in files]


@asynccontextmanager
async def form_closed(form: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await form.close()


async def contents(file: UploadFile | str) -> bytes:
    if isinstance(file, str):
        raise Problem(422, "image: text, wanted a file; send it as from curl -F image=@FILE", field="image")
    return await file.read()


def checked(data: bytes, house: House) -> bytes:
    limit = house.config.limits.image_bytes
    if len(data) > limit:
        raise Problem(413, f"image: {len(data)} bytes, the limit is {limit}; shrink it", field="image", limit=limit)
    return data


async def while_there(request: Request, work: Awaitable[T], until: float) -> T:
    """The result of some work, given up as soon as the client is gone, and with Problem (503) when its time is over."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        left = until - time.monotonic()
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED, timeout=max(0.0, left))
        if not task.done():
            if gone.done():
                raise ClientDisconnect
            raise come_back("the deadline passed before the answer was there; try again")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def all_of(works: Sequence[Awaitable[T]]) -> list[T]:
    """Their results, in order; where one raises, the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
