"""Processor time of each step of feeding, image after image in this process, as a loader worker takes them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kappaseg_core.feeding import one_thread
from kappaseg_core.handover import collate
from kappaseg_core.scenes.images import photo
from kappaseg_core.seeding import seed_of, seeded
from kappaseg_core.structures import Scene, SceneSet

FEWEST = 4  # images, however short the time


class Laps:
    """Seconds of each step by name, one entry for each time that it was done, in the order of the first image."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.since = time.process_time()

    def start(self) -> None:
        self.since = time.process_time()

    def __call__(self, step: str) -> None:
        """The step is done that began with the last call, or with `start`."""
        now = time.process_time()
        self.seconds.setdefault(step, []).append(now - self.since)
        self.since = time.process_time()

    def means(self) -> dict[str, float]:
        return {step: statistics.fmean(times) for step, times in self.seconds.items()}


def step_seconds(
    examples: Any, scenes: SceneSet, target: str, *, batch: int, seed: int, limit: float
) -> dict[str, Any]:
    """Mean processor seconds per image of each step, of the images of as many batches as `limit` seconds allow.

    examples: those of a stage, which have `view(scene, lap)`. Gives {images, steps: {name: seconds}}; reading the bytes
    stands apart from decoding where the scenes can do so, and collating is shared among the images of a batch.
    """
    laps, images, samples = Laps(), 0, list[Any]()
    until = time.monotonic() + limit
    with one_thread():
        for index, place in order(len(scenes), seed):
            if images >= FEWEST and time.monotonic() > until:
                break
            laps.start()
            scene = read(scenes, index, laps)
            with seeded(seed_of(seed, "sample", place)):
                laps.start()
                view, goal = examples.view(scene, laps)
            images += 1
            samples.append((view, goal, scene.image_id))
            if len(samples) == batch:
                together(samples, target, laps)
                samples = []
        if images < batch:  # too few in that time
            together(samples, target, laps)
    return {"images": images, "steps": laps.means()}


def read(scenes: Any, index: int, laps: Laps) -> Scene:
    """The scene; photo and label map apart, and bytes apart from decoding, where the set can read them so."""
    if not all(hasattr(scenes, part) for part in ("image_bytes", "mask")):
        scene: Scene = scenes[index]
        laps("read, decode")
        return scene
    data = scenes.image_bytes(index)
    laps("photo: read")
    image = photo(data, f"image {scenes.image_ids[index]}")
    laps("photo: decode")
    mask = scenes.mask(index)
    instances = None if getattr(scenes, "things", None) is None else scenes.instances(index)
    laps("labels: read, decode")
    return Scene(image, mask, scenes.image_ids[index], instances)


def together(samples: Sequence[Any], target: str, laps: Laps) -> None:
    """Collate; its time is that of an image."""
    started = time.process_time()
    collate(samples, target=target)
    laps.seconds.setdefault("collate", []).append((time.process_time() - started) / len(samples))


def order(samples: int, seed: int) -> Iterator[tuple[int, int]]:
    """Rows of the split, drawn, and again; with the number of the draw."""
    generator = torch.Generator().manual_seed(seed_of(seed, "bench"))
    place = 0
    while True:
        for index in torch.randperm(samples, generator=generator).tolist():
            yield index, place
            place += 1
