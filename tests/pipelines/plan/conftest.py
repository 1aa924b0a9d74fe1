"""Made-up data sets and machines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipelines.plan.estimate import Memory
from pipelines.plan.fingerprint import Fingerprint
from pipelines.plan.machine import Machine
from pipelines.plan.step import Config, side_of

WEIGHTS, IMAGE = 100.0, 1000.0


@pytest.fixture
def data() -> Fingerprint:
    """Photographs much as those of COCO-Stuff."""
    return Fingerprint(
        classes=171, train=9_000, val=1_000, scanned=9_000, median_size=(480, 640), largest_size=(640, 640),
        labels_mean=8.3, labels_p99=22.0, labels_most=25, unlabelled=0.03, never=0, common=0.5, median=0.03,
        kappa_oracle=(10, 15), kappa_frequency=(145, 156), state="",
    )  # fmt: skip


@pytest.fixture
def laptop() -> Machine:
    return Machine("cpu", 16 * 1024.0, 700, {"fp32": 0.1, "bf16": 0.1})


@pytest.fixture
def gpu() -> Machine:
    return Machine("cuda", 80 * 1024.0, 0, {"fp32": 60.0, "bf16": 600.0})


@pytest.fixture
def made_up_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, bool], float]:
    """In the place of the estimate, which takes its time: MiB by side of the image, images, and whether blocks are
    computed again. Of an image of 512 pixels IMAGE, or a sixteenth of it."""

    def made_up(side: int, images: int, again: bool) -> float:
        return WEIGHTS + IMAGE * (side / 512) ** 2 * images * (1 / 16 if again else 1)

    def memory(config: Config, *_: object) -> Memory:
        images = config.loop.batch_size // config.loop.accumulate
        total = made_up(side_of(config), images, config.backbone.checkpointing)
        return Memory(total, 0.0, WEIGHTS, total - WEIGHTS, 0.0, evaluation=False)

    monkeypatch.setattr("pipelines.plan.choose.memory_of", memory)
    return made_up
