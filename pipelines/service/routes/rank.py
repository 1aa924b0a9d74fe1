"""Ranking new images."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from pipelines.service import records
from pipelines.service.caches import decimals
from pipelines.service.house import House
from pipelines.service.pictures import decoded
from pipelines.service.problems import Problem
from pipelines.service.routes.shared import IMAGE_BODY, Exact, Here, by_name, image_body, kept, problems, refuse_without
from pipelines.service.uploads import all_of, images_of, while_there, worked_on
from pipelines.service.watch import milliseconds

router = APIRouter(tags=["ranking"], route_class=Exact, generate_unique_id_function=by_name)


Threshold = Annotated[float, Query(ge=0, le=1, description="leave out labels with a lower score", examples=[0.5])]
RankedKappa = Annotated[int | None, Query(ge=1, description="labels wanted; left out = 10, or all there are")]
SHOWN = 10


@router.post("/v1/rank", summary="Rank the labels of an image", openapi_extra=IMAGE_BODY,
             response_model=records.Ranked, responses=problems(404, 408, 413, 415, 422, 503))  # fmt: skip
async def rank(request: Request, house: Here, kappa: RankedKappa = None, threshold: Threshold = 0.0) -> Response:
    kappa = kept(house, kappa, SHOWN)
    refuse_without(house.classifier, "ranks no new images", "--classifier RUN")
    async with worked_on(house, 1) as (until, _):
        (data,) = await images_of(request, house, most=1)
        answer = await while_there(request, ranked(house, data, kappa, threshold, until), until)
    return Response(answer.model_dump_json(), media_type="application/json")  # FastAPI would check it once more


@router.post("/v1/rank:batch", summary="Rank the labels of several images", openapi_extra=image_body(several=True),
             responses=problems(404, 408, 413, 415, 422, 503))  # fmt: skip
async def rank_batch(
    request: Request, house: Here, kappa: RankedKappa = None, threshold: Threshold = 0.0
) -> records.RankedBatch:
    """One result per image, in the order sent; where an image cannot be read, a problem in the place of its ranking."""
    kappa = kept(house, kappa, SHOWN)
    refuse_without(house.classifier, "ranks no new images", "--classifier RUN")

    async def one(data: bytes, until: float) -> records.Ranked | records.Refused:
        try:
            return await ranked(house, data, kappa, threshold, until)
        except Problem as problem:
            if problem.status_code == 503:
                raise  # the whole request may come back
            return records.Refused(problem=records.ProblemDetails(**problem.to_plain()))

    most = house.config.limits.images_per_request
    async with worked_on(house, most) as (until, keep):
        images = await images_of(request, house, most=most)
        keep(len(images))
        every = all_of([one(data, until) for data in images])
        return records.RankedBatch(results=await while_there(request, every, until))


async def ranked(house: House, data: bytes, kappa: int, threshold: float, until: float) -> records.Ranked:
    """The ranking of one image file."""
    started = time.perf_counter()
    classifier, batcher = house.classifier, house.batcher
    assert classifier is not None and batcher is not None

    def prepared() -> Any:
        with house.watch.stage("decode"):
            return classifier.prepare(decoded(data, max_pixels=house.config.limits.pixels))

    tensor = await house.in_thread(house.decoders, until, prepared)
    decode = time.perf_counter() - started
    found, size, queue = await batcher(tensor, until)
    total = time.perf_counter() - started
    house.watch.stage_seconds.labels("queue").observe(queue)
    house.watch.images.labels("rank").inc()
    scores = [score for score in decimals(found.scores[0, :kappa].numpy()) if score >= threshold]
    ids = found.labels[0, : len(scores)].tolist()
    return records.Ranked(
        kappa=len(ids), ids=ids, names=[house.class_names[label] for label in ids], scores=scores,
        model=classifier.version, vocabulary=house.vocabulary, batch=size,
        timings_ms=records.Timings(
            decode=milliseconds(decode), queue=milliseconds(queue), forward=milliseconds(total - decode - queue),
            total=milliseconds(total),
        ),
    )  # fmt: skip
