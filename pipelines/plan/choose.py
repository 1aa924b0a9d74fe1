"""The choices of a plan, each with its reason. Legend: K labels, κ kept labels.

crop      The recipe's, no larger than the median image: the least multiple of UNIT that holds its shorter side.
κ         Twice the labels that hold 99.9 % of the pixels in the best of all rankings, since rankings make mistakes, at
          least as many as any image has, up to the next multiple of STEP. (It gives the published κ of 50 for the
          photographs of COCO-Stuff, of which 15 labels hold as much.) No more than K, and than a ranking needs that
          looks at no image.
precision bf16 where products of matrices are at least FASTER times as fast in it here, else that of the recipe. On a
          CPU not for backbones with convolutions by channel, which are slower in it (steps of MobileNetV2 took half as
          long again).
batch     The recipe's, in as few micro-batches as fit into the memory. Where not even one image fits, blocks of the
          backbone are computed again in the backward pass, and the micro-batches begin anew.
labels    From MANY labels on, Query2Label scores CHUNK at a time, with the same result, and a step learns from the
          labels of its images and NEGATIVES others; in the joint scheme labels look at pooled cells of the image alone,
          which is linear in K.
memory    What is free, or --memory, less the share MARGIN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from kappaseg_core.config import build
from kappaseg_core.errors import UserError
from pipelines.plan.estimate import Memory, memory_of
from pipelines.plan.fingerprint import Fingerprint
from pipelines.plan.machine import Machine
from pipelines.plan.start import Part, Start
from pipelines.plan.step import Config, empty_task
from pipelines.published.recipe import Settings
from stage1_multilabel.config import Stage1Config
from stage2_segmentation.config import Stage2Config

UNIT = 32
STEP = 25
FASTER = 1.5
MANY, CHUNK, NEGATIVES, POOLED = 2_000, 1_024, 1_024, 8
MARGIN = 0.15

KINDS: dict[Part, type[Stage1Config | Stage2Config]] = {
    "stage1": Stage1Config, "stage2": Stage2Config, "joint": Stage2Config,
}  # fmt: skip


@dataclass
class Choice:
    """Settings of one part, and what is said beside each that was chosen: dotted name → reason."""

    part: Part
    settings: Settings
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: Any, reason: str) -> None:
        """Set one setting, `group.name`."""
        group, key = name.split(".")
        self.settings.setdefault(group, {})[key] = value
        self.reasons[name] = reason

    def config(self) -> Config:
        return build(KINDS[self.part], self.settings, source=f"plan of {self.part}")


def choose(
    part: Part, start: Start, data: Fingerprint, machine: Machine, crop: int | None = None
) -> tuple[Choice, Memory]:
    """Everything that is chosen for one part, and the memory it takes.

    crop: pixels a side, where somebody has decided. Raises UserError where the memory is too small.
    """
    choice = Choice(part, deepcopy(start.settings[part]))
    choose_size(choice, start, data, crop)
    choose_labels(choice, data)
    choose_precision(choice, machine)
    return choice, fit(choice, data, machine)


def choose_size(choice: Choice, start: Start, data: Fingerprint, crop: int | None) -> None:
    short = min(data.median_size)
    if choice.part == "stage1":
        published = choice.settings["augment"]["image_size"]
        side = crop or min(published, up_to(short, UNIT))
        choice.put("augment.image_size", side, size_reason(side, published, short, crop))
        return
    side = crop or min(start.crop, up_to(short, UNIT))
    choice.put("augment.crop", side, size_reason(side, start.crop, short, crop))
    choice.put("augment.short_side", side, "as the crop")
    choice.put("inference.short_side", side, "as the crop")
    if choice.settings["inference"].get("mode") == "slide":
        choice.put("inference.window", side, "as the crop")
        choice.put("inference.stride", side, "windows side by side")


def size_reason(side: int, published: int, short: int, crop: int | None) -> str:
    if crop:
        return "as told"
    return "the recipe's" if side == published else f"the median image's shorter side is {short} pixels"


def up_to(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def choose_labels(choice: Choice, data: Fingerprint) -> None:
    if choice.part == "stage1":
        if data.classes >= MANY and choice.settings["head"]["preset"] in ("rankseg", "official", "fast"):
            choice.put("head.chunk", CHUNK, "labels scored at a time: the same result for less memory")
            choice.put("loss.negatives", NEGATIVES, "absent labels that a step learns from, drawn anew and weighted")
        return
    kappa, reason = choose_kappa(data)
    choice.put("source.kappa", kappa, reason)
    labels = choice.settings.get("labels", {})
    if data.classes >= MANY and labels.get("head") == "encoder":
        options = {**labels.get("options", {}), "attend": "patches", "pooled": POOLED}
        choice.put("labels.options", options, f"linear in the {data.classes:,} labels")


def choose_kappa(data: Fingerprint) -> tuple[int, str]:
    best, blind = data.kappa_oracle[1], data.kappa_frequency[1]
    kappa = up_to(max(2 * best, data.labels_most), STEP)
    if data.classes <= min(kappa, blind):
        return data.classes, "all labels: there are no more"
    if blind < kappa:
        return blind, "the most frequent labels hold 99.9 % of the pixels"
    if 2 * best >= data.labels_most:
        return kappa, f"twice the {best} that hold 99.9 % of the pixels at best, to a multiple of {STEP}"
    return kappa, f"an image has {data.labels_most} labels; to a multiple of {STEP}"


def choose_precision(choice: Choice, machine: Machine) -> None:
    times = machine.tflops["bf16"] / machine.tflops["fp32"]
    if times >= FASTER and (machine.gpu or not by_channel(choice)):
        choice.put("loop.precision", "bf16", f"products of matrices are {times:.1f} times as fast in it here")


def by_channel(choice: Choice) -> bool:
    """Whether the backbone has convolutions that look at a few channels each, which are no products of matrices."""
    layers = empty_task(choice.config(), classes=2).model.backbone.modules()
    return any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in layers)


def fit(choice: Choice, data: Fingerprint, machine: Machine) -> Memory:
    """Choose micro-batches, and whether blocks are computed again. Raises UserError where nothing fits."""
    room = (1 - MARGIN) * machine.memory_mib
    batch = choice.settings["loop"]["batch_size"]
    found: Memory | None = None
    for again in (False, True):
        if again and not can_checkpoint(choice):
            break
        for micro in sizes(batch, lambda images: memory_of(micro_config(choice, images), data, machine).total, room):
            put_micro(choice, micro)
            found = memory_of(choice.config(), data, machine)
            if found.total <= room:
                return found
    assert found is not None
    raise UserError(too_small(choice, data, machine, found))


def micro_config(choice: Choice, images: int) -> Config:
    trial = Choice(choice.part, deepcopy(choice.settings))
    put_micro(trial, images)
    return trial.config()


def put_micro(choice: Choice, images: int) -> None:
    """Micro-batches of so many images."""
    times = choice.settings["loop"]["batch_size"] // images
    choice.put("loop.accumulate", times, f"{images} images at a time" + (", as many as fit" if times > 1 else ""))


def sizes(batch: int, memory: Callable[[int], float], room: float) -> Iterator[int]:
    """Micro-batches that divide the batch, largest first; those that are too large by a straight line are left out.

    memory: MiB of a micro-batch. It is asked for the smallest only where the largest was too large.
    """
    divisors = [images for images in range(batch, 0, -1) if batch % images == 0]
    yield batch
    one, two = memory(divisors[-1]), memory(divisors[-2]) if batch > 1 else 0.0
    for images in divisors[1:]:
        if one + (images - 1) * (two - one) / max(1, divisors[-2] - 1) <= room or images == 1:
            yield images


def can_checkpoint(choice: Choice) -> bool:
    """Set it, where the backbone has it and is trained."""
    trial = Choice(choice.part, deepcopy(choice.settings))
    trial.settings["backbone"]["checkpointing"] = True
    try:
        empty_task(trial.config(), classes=2)
    except UserError:
        return False
    choice.put("backbone.checkpointing", True, "blocks are computed again: less memory, about a third more time")
    return True


def too_small(choice: Choice, data: Fingerprint, machine: Machine, least: Memory) -> str:
    """What is missing, and the largest crop that fits."""
    name = "augment.image_size" if choice.part == "stage1" else "augment.crop"
    group, key = name.split(".")
    side = choice.settings[group][key]
    needed = least.total / (1 - MARGIN) / 1024
    message = (
        f"{choice.part} with one image of {side} pixels at a time takes {least.total / 1024:.1f} GiB, and with a "
        f"margin {needed:.1f} of {machine.memory_mib / 1024:.1f} GiB"
    )
    while (side := side // 2 // UNIT * UNIT) >= 2 * UNIT:
        smaller = Choice(choice.part, deepcopy(choice.settings))
        smaller.settings[group][key] = side
        if memory_of(smaller.config(), data, machine).total <= (1 - MARGIN) * machine.memory_mib:
            return f"{message}; --crop {side} fits, or take a smaller --backbone"
    return f"{message}; give --memory of that much, or a smaller --backbone"
