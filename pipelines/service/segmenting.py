"""From an image file to its label map, as /v1/segment gives it."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kappaseg_core.ranking import OwnRanking, Ranking, complete_ranking
from pipelines.palette import hex_colours
from pipelines.service import records
from pipelines.service.caches import decimals
from pipelines.service.house import House
from pipelines.service.pictures import decoded
from pipelines.service.problems import Problem
from pipelines.service.segment import label_map_png, narrow, without
from pipelines.service.watch import milliseconds

#: pixels that a network is always shown: 2048 x 2048
SMALL_VIEW = 2**22
#: largest product of κ and the pixels that have scores: 4 GB of them
SCORES = 10**9
#: labels that a grey PNG of 16 bits can tell
GREY_LABELS = 2**16


@dataclass(frozen=True)
class Wish:
    """How an image is to be segmented. known: the ranking of `cache`; off: labels that get no pixel; form: of the
    answer, the label map alone or all that is known."""

    source: records.Source
    known: Ranking | None
    kappa: int
    off: frozenset[int]
    encoding: records.Encoding
    form: Literal["png", "json"]


async def segmented(house: House, data: bytes, wish: Wish, until: float) -> bytes:
    """One image file, ranked and segmented, as it is answered. until: on the monotonic clock. Raises Problem."""
    started = time.perf_counter()
    segmenter, limits = house.segmenter, house.config.limits
    assert segmenter is not None
    refuse_unwritable(wish.encoding, len(house.class_names))
    image = await house.in_thread(
        house.decoders, until, lambda: decoded(data, max_pixels=min(limits.pixels, limits.segment_pixels))
    )
    refuse_costly(house, image.shape[1], image.shape[2], wish.kappa)
    before = await ranking_before(house, image, wish, until)
    best: list[Ranking] = []

    def keep(ranking: Ranking) -> Ranking:
        best.append(ranking)
        rest = without(ranking, wish.off)
        if rest.kappa == 0:
            raise Problem(422, f"without: all {ranking.kappa} kept labels are switched off; leave one", field="without")
        return rest

    chosen: Ranking | OwnRanking = OwnRanking(wish.kappa, keep) if before is None else keep(before.top(wish.kappa))

    def work() -> tuple[NDArray[Any], Ranking]:
        with house.watch.stage("segment"):
            found = segmenter.segment(image, chosen)
        return narrow(found.label_map, len(house.class_names)), found.ranking

    def answer(label_map: NDArray[Any], used: Ranking) -> bytes:
        png = label_map_png(label_map, wish.encoding)
        if wish.form == "png":
            return png
        told = record_of(house, label_map, used, best[0], wish, png)
        told.milliseconds = milliseconds(time.perf_counter() - started)
        return told.model_dump_json().encode()

    label_map, used = await house.in_thread(house.compute, until, work)
    house.watch.images.labels("segment").inc()
    return await house.in_thread(house.decoders, until, answer, label_map, used)


async def ranking_before(house: House, image: NDArray[np.uint8], wish: Wish, until: float) -> Ranking | None:
    """The ranking of all labels that is known before the network runs; None where the network is to rank."""
    if wish.source == "classifier":
        assert house.classifier is not None and house.batcher is not None
        tensor = await house.in_thread(house.decoders, until, house.classifier.prepare, image)
        return (await house.batcher(tensor, until))[0]
    return complete_ranking(1, len(house.class_names)) if wish.source == "complete" else wish.known


def record_of(
    house: House, label_map: NDArray[Any], used: Ranking, best: Ranking, wish: Wish, png: bytes
) -> records.Segmentation:
    """The answer, but for its time. best: the κ best labels; used: those of them that were not switched off."""
    assert house.segmenter is not None
    names, colours = house.class_names, hex_colours(len(house.class_names))
    shares, labels = areas(label_map), best.labels[0].tolist()
    rank_of = {label: rank for rank, label in enumerate(labels, 1)}
    return records.Segmentation(
        label_map=records.LabelMap(
            height=label_map.shape[0], width=label_map.shape[1], encoding=wish.encoding,
            png=base64.b64encode(png).decode(),
        ),
        legend=[
            records.FoundLabel(id=label, name=names[label], colour=colours[label], share=share, rank=rank_of[label])
            for label, share in shares.items()
        ],
        not_found=[label for label in used.labels[0].tolist() if label not in shares],
        ranking=records.UsedRanking(
            source=wish.source, kappa=len(labels), ids=labels, names=[names[label] for label in labels],
            scores=decimals(best.scores[0].numpy()), without=[label for label in labels if label in wish.off],
        ),
        model=house.segmenter.version, milliseconds=0,
    )  # fmt: skip


def refuse_unwritable(encoding: records.Encoding, num_classes: int) -> None:
    """Raises Problem for a label map that has more labels than its PNG can tell."""
    if encoding == "grey" and num_classes > GREY_LABELS:
        raise Problem(
            422, f"encoding: grey tells {GREY_LABELS} labels, the network has {num_classes}; ask for rgb",
            field="encoding", limit=GREY_LABELS,
        )  # fmt: skip


def refuse_costly(house: House, height: int, width: int, kappa: int) -> None:
    """Raises Problem for an image that its own size lets in and the network would make too large: a line of pixels,
    brought to a shorter side of 512, is the millionfold; and each label that is kept has a score at each pixel of the
    view, or with several views at each of the image."""
    assert house.segmenter is not None
    plan, limit = house.segmenter.config.inference, house.config.limits.segment_pixels
    scale = max(plan.scales) * (1 if plan.short_side is None else plan.short_side / min(height, width))
    seen = round(height * scale * width * scale)
    if seen > max(limit, SMALL_VIEW):
        raise Problem(
            413, f"image: {height}x{width} becomes {seen} pixels when its shorter side is brought to "
            f"{round(min(height, width) * scale)}, the limit is {limit}; cut it", field="image", limit=limit,
        )  # fmt: skip
    scored = seen if len(plan.scales) == 1 and not plan.flip else max(seen, height * width)
    if kappa * scored > SCORES:
        raise Problem(
            413, f"kappa: {kappa} labels at {scored} pixels, the limit is {SCORES // scored}; keep fewer or shrink the "
            "image", field="kappa", limit=SCORES // scored,
        )  # fmt: skip


def areas(label_map: NDArray[Any]) -> dict[int, float]:
    """The labels of a map with their share of its pixels, largest first."""
    pixels = np.bincount(label_map.ravel())
    order = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
    return {int(label): float(pixels[label] / label_map.size) for label in order}
