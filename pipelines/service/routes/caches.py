"""Label caches: single rows, many rows, and what there is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from pipelines.service import records
from pipelines.service.caches import ServedCache
from pipelines.service.house import House
from pipelines.service.problems import Problem
from pipelines.service.routes.shared import Exact, Here, by_name, house_of, problems
from pipelines.service.security import header

router = APIRouter(tags=["caches"], route_class=Exact, generate_unique_id_function=by_name)
CacheName = Annotated[str, Path(description="name of a cache, see /v1/caches", examples=["labels"])]


def cache_of(house: House, name: str, *, field: str = "name") -> ServedCache:
    if name not in house.caches:
        known = ", ".join(house.caches) or "none"
        raise Problem(404, f"{field}: no cache {name[:80]!r}; served here: {known}", field=field)
    return house.caches[name]


#: of the route below, in the order of its path
LABELS_PARAMETERS = [
    {"name": "name", "in": "path", "required": True, "schema": {"type": "string"},
     "description": "name of a cache, see /v1/caches", "example": "labels"},
    {"name": "image_id", "in": "path", "required": True, "schema": {"type": "string"},
     "description": "may contain slashes", "example": "000000000139"},
    {"name": "kappa", "in": "query", "required": False, "schema": {"type": "integer", "minimum": 1},
     "description": "labels wanted; left out = all that are stored", "example": 10},
]  # fmt: skip


@router.get("/v1/caches/{name}/labels/{image_id:path}", summary="The ranked labels of an image",
            response_model=records.CachedLabels, openapi_extra={"parameters": LABELS_PARAMETERS},
            responses={304: {"description": "as If-None-Match says"}, **problems(404, 422, 503)})  # fmt: skip
async def cached_labels(request: Request) -> Response:
    # The parameters are read by hand: letting FastAPI do it doubles the cost of the whole route.
    house, scope = house_of(request), request.scope
    name, image_id = scope["path_params"]["name"], scope["path_params"]["image_id"]
    cache = cache_of(house, name)
    now = cache.current()
    kappa = now.kappa(asked_kappa(request) if scope["query_string"] else None)
    row = now.index.row(image_id)
    cache.count(house.watch, found=row >= 0, missing=row < 0)
    if row < 0:
        raise Problem(404, f"image_id: {image_id[:200]!r} is not among the {len(now.cache)} of cache {name}",
                      field="image_id")  # fmt: skip
    tag = f'"{now.version[:32]}-{row}-{kappa}"'
    if tag in header(scope, b"if-none-match"):
        return Response(status_code=304, headers={"ETag": tag})
    return Response(now.row_json(name, image_id, row, kappa), media_type="application/json", headers={"ETag": tag})


def asked_kappa(request: Request) -> int | None:
    """κ of the query. Raises Problem."""
    text = request.query_params.get("kappa")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:20]) >= 1):
        raise Problem(422, f"kappa: {text[:40]!r}, wanted a whole number from 1", field="kappa")
    return int(text[:20])


@router.get("/v1/caches", summary="The label caches", responses=problems(422))
async def caches(house: Here) -> records.CacheList:
    return records.CacheList(caches=[records.CacheInfo(**cache.describe()) for cache in house.caches.values()])


@router.get("/v1/caches/{name}", summary="A label cache", responses=problems(404, 422))
async def cache_info(house: Here, name: CacheName) -> records.CacheInfo:
    return records.CacheInfo(**cache_of(house, name).describe())


@router.get("/v1/caches/{name}/images", summary="Image ids of a split, page by page",
            responses=problems(404, 422, 503))  # fmt: skip
async def cached_images(
    house: Here,
    name: CacheName,
    split: Annotated[str | None, Query(description="left out = the first")] = None,
    start: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> records.ImageIds:
    now = cache_of(house, name).current()
    split = split or now.cache.splits[0]
    if split not in now.cache.splits:
        raise Problem(
            404, f"split: {split[:80]!r} is not in cache {name}, which holds {', '.join(now.cache.splits)}",
            field="split",
        )  # fmt: skip
    rows = now.cache.rows(split)
    chosen = rows[start : start + limit]
    more = start + limit if start + limit < len(rows) else None
    return records.ImageIds(
        cache=name, version=now.version, split=split, image_ids=[now.index.image_id(row) for row in chosen], next=more
    )


@router.post("/v1/caches/{name}/labels:batch", summary="The ranked labels of many images",
             response_model=records.CachedBatch, responses=problems(404, 413, 422, 503))  # fmt: skip
async def cached_batch(house: Here, name: CacheName, wanted: records.LookupRequest) -> Response:
    cache = cache_of(house, name)
    now = cache.current()
    kappa, most = now.kappa(wanted.kappa), house.config.limits.ids_per_request
    if len(wanted.image_ids) > most:
        raise Problem(422, f"image_ids: {len(wanted.image_ids)}, the limit is {most}; ask in pieces",
                      field="image_ids", limit=most)  # fmt: skip
    try:
        "".join(wanted.image_ids).encode()
    except UnicodeEncodeError:
        raise Problem(422, "image_ids: half of a surrogate pair is no text", field="image_ids") from None
    content, missing = now.rows_json(name, wanted.image_ids, kappa)
    cache.count(house.watch, found=len(wanted.image_ids) - missing, missing=missing)
    return Response(content, media_type="application/json")
