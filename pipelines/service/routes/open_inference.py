"""Health and metadata of the Open Inference Protocol v2, a thin adapter."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Response

from pipelines.service import records
from pipelines.service.house import House
from pipelines.service.problems import Problem
from pipelines.service.routes.about import readyz
from pipelines.service.routes.shared import Here, by_name, problems

router = APIRouter(prefix="/v2", tags=["Open Inference v2"], generate_unique_id_function=by_name)


@router.get("", summary="Server metadata", responses=problems())
async def v2_server() -> records.ServerMetadata:
    return records.ServerMetadata(name="kappaseg", version=version("kappaseg"), extensions=[])


@router.get("/health/live", summary="Whether the process answers")
async def v2_live() -> records.Live:
    return records.Live(live=True)


@router.get("/health/ready", summary="Whether every part can answer",
        responses={503: {"model": records.Ready, "description": "not now"}})  # fmt: skip
async def v2_ready(house: Here, response: Response) -> records.Ready:
    return records.Ready(ready=(await readyz(house, response)).ready)


def model_of(house: House, name: str) -> tuple[str, records.ModelMetadata]:
    part = {"classifier": house.classifier, "segmenter": house.segmenter}.get(name)
    if part is None:
        raise Problem(404, f"model: no {name[:80]!r} here; wanted classifier or segmenter, where they are served",
                      field="model")  # fmt: skip
    image = records.TensorMetadata(name="image", datatype="BYTES", shape=[1])
    outputs = {
        "classifier": [("ids", "INT64", [-1]), ("scores", "FP32", [-1])],
        "segmenter": [("label_map", "INT64", [-1, -1])],
    }[name]
    return name, records.ModelMetadata(
        name=name, versions=[part.version], platform="pytorch", inputs=[image],
        outputs=[records.TensorMetadata(name=n, datatype=d, shape=s) for n, d, s in outputs],
    )  # fmt: skip


@router.get("/models/{model}", summary="Model metadata; images are sent to /v1", responses=problems(404))
async def v2_model(house: Here, model: str) -> records.ModelMetadata:
    return model_of(house, model)[1]


@router.get("/models/{model}/ready", summary="Whether a model can answer", responses=problems(404))
async def v2_model_ready(house: Here, model: str) -> records.ModelReady:
    return records.ModelReady(name=model_of(house, model)[0], ready=not house.is_draining)
