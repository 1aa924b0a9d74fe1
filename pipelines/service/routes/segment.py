"""Segmenting images among the best labels of a ranking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from pipelines.service import records
from pipelines.service.house import House
from pipelines.service.problems import Problem
from pipelines.service.routes.caches import cache_of
from pipelines.service.routes.shared import IMAGE_BODY, Exact, Here, by_name, kept, problems, refuse_without
from pipelines.service.uploads import images_of, while_there, worked_on

if TYPE_CHECKING:
    from kappaseg_core.ranking import Ranking

router = APIRouter(tags=["segmentation"], route_class=Exact, generate_unique_id_function=by_name)


@router.post("/v1/segment", summary="Segment an image among its best κ labels",
             openapi_extra=IMAGE_BODY,
             response_model=records.Segmentation,
             responses={200: {"content": {"image/png": {}}, "description": "JSON, or with Accept: image/png the label "
                              "map alone"}, **problems(404, 408, 413, 415, 422, 503)})  # fmt: skip
async def segment(
    request: Request,
    house: Here,
    kappa: Annotated[int | None, Query(ge=1, description="labels kept; left out = as the network was made for")] = None,
    ranking: Annotated[
        records.Source | None,
        Query(description="who ranks; left out = what the network was made for, or the classifier"),
    ] = None,
    cache: Annotated[str | None, Query(description="with ranking=cache: its name")] = None,
    image_id: Annotated[str | None, Query(description="with ranking=cache: the row")] = None,
    without: Annotated[list[int], Query(max_length=1000, description="labels switched off: they stay empty")] = [],  # noqa: B006 (FastAPI copies it)
    encoding: Annotated[Literal["grey", "rgb"], Query(description="of the label map, see LabelMap")] = "grey",
) -> Response:
    refuse_without(house.segmenter, "segments nothing", "--segmenter RUN")
    from pipelines.service.segmenting import Wish, segmented

    assert house.segmenter is not None
    source = ranking or default_source(house) or "cache"
    if source != "cache" and (cache is not None or image_id is not None):
        field = "cache" if cache is not None else "image_id"
        raise Problem(422, f"{field}: given, and the ranking is that of {source}; add ranking=cache", field=field)
    known = cached_ranking(house, cache, image_id) if source == "cache" else None
    refuse_source(house, source)
    everything = len(house.class_names) if source == "complete" else house.segmenter.kappa
    kappa = kept(house, kappa, everything)
    if known is not None and kappa > known.kappa:
        raise Problem(422, f"kappa: {kappa}, the cache stores {known.kappa} ranks per image", field="kappa",
                      limit=known.kappa)  # fmt: skip
    if unknown := [label for label in without if not 0 <= label < len(house.class_names)]:
        raise Problem(422, f"without: {unknown[0]}, wanted label ids up to {len(house.class_names) - 1}",
                      field="without", limit=len(house.class_names) - 1)  # fmt: skip
    async with worked_on(house, 1) as (until, _):
        (data,) = await images_of(request, house, most=1)
        form: Literal["png", "json"] = "png" if "image/png" in request.headers.get("accept", "") else "json"
        wish = Wish(source, known, kappa, frozenset(without), encoding, form)
        answer = await while_there(request, segmented(house, data, wish, until), until)
    return Response(answer, media_type="image/png" if form == "png" else "application/json")


def rankings_here(house: House) -> list[records.Source]:
    """The sources that the network can be given in this service."""
    assert house.segmenter is not None
    there: dict[records.Source, object] = {
        "classifier": house.classifier, "own": house.segmenter.ranks_itself, "complete": True, "cache": house.caches,
    }  # fmt: skip
    return [name for name, given in there.items() if given]


def default_source(house: House) -> Literal["classifier", "own", "complete"] | None:
    """What the network was made for; None where that is not here."""
    assert house.segmenter is not None
    if house.segmenter.wants == "joint":
        return "own"
    if house.segmenter.wants == "complete":
        return "complete"
    return "classifier" if house.classifier is not None else None


def refuse_source(house: House, source: records.Source) -> None:
    if source not in rankings_here(house):
        there = ", ".join(rankings_here(house))
        raise Problem(422, f"ranking: {source} is not served here, wanted one of {there}", field="ranking")


def cached_ranking(house: House, name: str | None, image_id: str | None) -> Ranking:
    """A whole row of a cache. Raises Problem."""
    from stage2_segmentation.sources import ranking_of

    if name is None or image_id is None:
        here = "" if house.classifier else " (no classifier is served that could rank the image)"
        raise Problem(422, f"ranking=cache needs cache and image_id{here}",
                      field="cache" if name is None else "image_id")  # fmt: skip
    now = cache_of(house, name, field="cache").current()
    row = now.index.row(image_id)
    if row < 0:
        raise Problem(404, f"image_id: {image_id[:200]!r} is not in cache {name}", field="image_id")
    return ranking_of(*(rows[row : row + 1].copy() for rows in (now.index.labels, now.index.scores)))
