"""What goes in and out of the service, as OpenAPI has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Score = Annotated[float, Field(ge=0, le=1)]
#: who ranks the labels that an image is segmented among
Source = Literal["classifier", "own", "complete", "cache"]
#: how a label map is a PNG
Encoding = Literal["grey", "rgb"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


def example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [values]})


class ProblemDetails(BaseModel):
    """RFC 9457. `field`: the part of the request that is meant; `limit`: the largest value that it may have."""

    model_config = example(
        type="about:blank",
        title="Unprocessable Entity",
        status=422,
        field="kappa",
        limit=171,
        detail="kappa: 200, there are 171 labels",
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = None
    limit: float | None = None


class Timings(Record):
    """Milliseconds. queue: waiting for other images; forward: of the whole batch; total: from request to answer."""

    decode: float
    queue: float
    forward: float
    total: float


class Ranked(Record):
    """The labels of an image, most probable first, equal scores in order of label id."""

    model_config = example(
        kappa=2,
        ids=[0, 41],
        names=["person", "sky"],
        scores=[0.998, 0.9473],
        model="9c2f5452…",
        vocabulary="9c2f5452…",
        batch=1,
        timings_ms={"decode": 12.3, "queue": 4.3, "forward": 21.3, "total": 38.0},
    )

    kappa: int = Field(description="labels given: those asked for, less those below the threshold")
    ids: list[int]
    names: list[str]
    scores: list[Score] = Field(description="independent probabilities, in half precision, as in a label cache")
    model: str = Field(description="fingerprint of the classifier")
    vocabulary: str = Field(description="sha256 of the class names joined by line feeds")
    batch: int = Field(description="images that shared the forward pass")
    timings_ms: Timings


class Refused(Record):
    """In the place of the ranking of an image that cannot be read."""

    problem: ProblemDetails


class RankedBatch(Record):
    results: list[Ranked | Refused] = Field(description="one per image, in the order sent")


class CachedLabels(Record):
    """A row of a label cache."""

    model_config = example(
        image_id="000000000139",
        cache="labels",
        version="9c2f5452…",
        source="held-out",
        kappa=2,
        ids=[0, 41],
        names=["person", "sky"],
        scores=[0.998, 0.9473],
    )

    image_id: str
    cache: str
    version: str = Field(description="generation of the cache: sha256 of its manifest")
    source: Literal["held-out", "in-sample", "out-of-fold"] = Field(
        description="how the classifier that ranked the image relates to it"
    )
    kappa: int
    ids: list[int]
    names: list[str]
    scores: list[Score]


class LookupRequest(Record):
    image_ids: list[str] = Field(examples=[["000000000139", "000000000285"]])
    kappa: int | None = Field(None, ge=1, description="ranks wanted; null = all that are stored")


class CachedBatch(Record):
    """Rows of a label cache, in the order asked for. All are of one generation."""

    model_config = example(
        cache="labels",
        version="9c2f5452…",
        kappa=2,
        image_ids=["000000000139"],
        missing=["000000000285"],
        source=["held-out"],
        ids=[[0, 41]],
        scores=[[0.998, 0.9473]],
    )

    cache: str
    version: str
    kappa: int
    image_ids: list[str] = Field(description="those that are there")
    missing: list[str] = Field(description="those that are not")
    source: list[Literal["held-out", "in-sample", "out-of-fold"]]
    ids: list[list[int]]
    scores: list[list[Score]]


class CacheInfo(Record):
    model_config = example(
        name="labels",
        ready=True,
        version="9c2f5452…",
        images=5000,
        splits=["train", "val"],
        kappa=171,
        num_classes=171,
        model="9c2f5452…",
        folds=0,
    )
    name: str
    ready: bool
    reason: str | None = Field(None, description="why it is not ready")
    version: str | None = None
    images: int | None = None
    splits: list[str] | None = None
    kappa: int | None = Field(None, description="ranks stored per image")
    num_classes: int | None = None
    model: str | None = Field(None, description="fingerprint of the classifier that made it")
    folds: int | None = Field(None, description="N of N-fold out-of-fold ranking; 0 = none")


class CacheList(Record):
    caches: list[CacheInfo]


class ImageIds(Record):
    cache: str
    version: str
    split: str
    image_ids: list[str]
    next: int | None = Field(description="`start` of the page after this one; null at the end")


class Vocabulary(Record):
    model_config = example(
        num_classes=2,
        hash="9c2f5452…",
        names=["person", "sky"],
        colours=["#1f77b4", "#ff7f0e"],
    )
    num_classes: int
    hash: str = Field(description="sha256 of the class names joined by line feeds")
    names: list[str] = Field(description="in order of label id")
    colours: list[str] = Field(description="of each label, in every picture of the project", examples=[["#1f77b4"]])


class ClassifierInfo(Record):
    version: str
    run: str
    backbone: str
    head: str
    image_size: int
    device: str
    precision: str


class SegmenterInfo(Record):
    version: str
    run: str
    backbone: str
    host: str
    branch: str = Field(description="label branch, `none` for a network that does not rank")
    kappa: int = Field(description="labels kept where a request does not say")
    rankings: list[Source] = Field(description="those it can be given here")
    default: Literal["classifier", "own", "complete"] | None
    device: str
    precision: str


class Limits(Record):
    image_bytes: int
    pixels: int
    segment_pixels: int
    images_per_request: int
    ids_per_request: int
    queue: int
    seconds: float


class Models(Record):
    service: str
    num_classes: int
    vocabulary: str
    classifier: ClassifierInfo | None
    segmenter: SegmenterInfo | None
    caches: list[str]
    limits: Limits


class LabelMap(Record):
    height: int
    width: int
    encoding: Encoding = Field(
        description="grey: ids in 8 bits for up to 256 labels, else 16; rgb: id = R + 256 G + 65536 B"
    )
    png: str = Field(description="base64")


class FoundLabel(Record):
    id: int
    name: str
    colour: str
    share: Score = Field(description="of the pixels")
    rank: int = Field(ge=1, description="place in ranking.ids, from 1")


class UsedRanking(Record):
    source: Source
    kappa: int
    ids: list[int]
    names: list[str]
    scores: list[Score]
    without: list[int] = Field(description="labels switched off: among the best κ, and not used")


class Segmentation(Record):
    model_config = example(
        label_map={"height": 480, "width": 640, "encoding": "grey", "png": "iVBORw0KGgo…"},
        legend=[{"id": 41, "name": "sky", "colour": "#1f77b4", "share": 1.0, "rank": 2}],
        not_found=[0],
        ranking={
            "source": "classifier",
            "kappa": 2,
            "ids": [0, 41],
            "names": ["person", "sky"],
            "scores": [0.998, 0.9473],
            "without": [],
        },
        model="9c2f5452…",
        milliseconds=55.1,
    )
    label_map: LabelMap
    legend: list[FoundLabel] = Field(description="labels found, largest first")
    not_found: list[int] = Field(description="labels kept, and given no pixel")
    ranking: UsedRanking
    model: str
    milliseconds: float


class Alive(Record):
    status: Literal["ok"] = "ok"


class Readiness(Record):
    model_config = example(
        ready=False,
        parts={"service": "ready", "cache labels": "part val-00000.parquet is damaged"},
    )
    ready: bool
    parts: dict[str, str] = Field(description="`ready`, or why not")


class ServerMetadata(Record):
    """Open Inference Protocol v2."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Record):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Record):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(Record):
    live: bool


class Ready(Record):
    ready: bool


class ModelReady(Record):
    name: str
    ready: bool
