"""Whether the service can answer, what it counts, and what it serves."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Response

from pipelines.palette import hex_colours
from pipelines.service import records
from pipelines.service.routes.segment import default_source, rankings_here
from pipelines.service.routes.shared import Here, by_name, problems

router = APIRouter(generate_unique_id_function=by_name)


@router.get("/v1/healthz", tags=["health"], summary="Whether the process answers")
async def healthz() -> records.Alive:
    return records.Alive()


@router.get("/v1/readyz", tags=["health"], summary="Whether every part can answer",
            responses={503: {"model": records.Readiness, "description": "a part is not ready, or the process is "
                             "about to end"}})  # fmt: skip
async def readyz(house: Here, response: Response) -> records.Readiness:
    parts = house.readiness()
    ready = all(state == "ready" for state in parts.values())
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return records.Readiness(ready=ready, parts=parts)


@router.get("/v1/metrics", tags=["health"], summary="Counters, for Prometheus", responses=problems(),
            response_class=Response)  # fmt: skip
async def metrics(house: Here) -> Response:
    return Response(house.watch.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/vocabulary", tags=["about"], summary="All labels, in order of id", responses=problems())
async def vocabulary(house: Here) -> records.Vocabulary:
    names = house.class_names
    return records.Vocabulary(
        num_classes=len(names), hash=house.vocabulary, names=list(names), colours=list(hex_colours(len(names)))
    )


@router.get("/v1/models", tags=["about"], summary="Networks, caches and limits", responses=problems())
async def models(house: Here) -> records.Models:
    classifier, segmenter = house.classifier, house.segmenter
    return records.Models(
        service=f"kappaseg {version('kappaseg')}", num_classes=len(house.class_names), vocabulary=house.vocabulary,
        classifier=records.ClassifierInfo(version=classifier.version, **classifier.about) if classifier else None,
        segmenter=records.SegmenterInfo(
            version=segmenter.version, rankings=rankings_here(house), default=default_source(house), **segmenter.about
        ) if segmenter else None,
        caches=list(house.caches),
        limits=records.Limits(**{name: getattr(house.config.limits, name) for name in records.Limits.model_fields}),
    )  # fmt: skip
