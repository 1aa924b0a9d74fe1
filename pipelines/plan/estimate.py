"""Memory and hours of a training, estimated from its settings.

Memory. The steps are followed without numbers (`pipelines.plan.step`): weights, gradients, optimiser, averaged weights,
what forward keeps for backward and what operators need besides, at their fullest moment. On a CPU the process itself
comes on top, measured here, and the pages of stored features; a process holds HEAP times what its tensors take, since
memory that is given back in pieces cannot all be used again. On a GPU it is what tensors take, as
`torch.cuda.max_memory_allocated` has it. benchmarks/plan_memory.py compares with runs.

Hours. The multiply-accumulates of all passes, at the share REACHED (pipelines/published/estimate.py) of the speed that
products of matrices have on this device; or from steps that were taken. Loading of data is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from kappaseg_core.backbones import Backbone
from kappaseg_core.config import LoopConfig
from kappaseg_core.cost import count
from pipelines.plan.fingerprint import Fingerprint
from pipelines.plan.machine import Machine
from pipelines.plan.step import Config, held, side_of, window_of, windows_of, without_numbers
from pipelines.published.estimate import FORWARDS, seconds_of
from pipelines.published.networks import Network, classifier, images, segmenter
from stage1_multilabel.config import Stage1Config

HEAP = 1.2
#: MiB of libraries that a first full-size step brings: kernels made for its shapes, and workspaces
LIBRARIES = {"cpu": 30, "cuda": 64}


@dataclass(frozen=True)
class Memory:
    """MiB.   total: of the process, or of the GPU.   process: before there is a network.   network: weights, and in
    training their gradients, the state of the optimiser and averaged weights.   step: what a step needs besides.
    stored: features that were computed once.   evaluation: whether the evaluation needs more than the step."""

    total: float
    process: float
    network: float
    step: float
    stored: float
    evaluation: bool


def memory_of(config: Config, data: Fingerprint, machine: Machine) -> Memory:
    """The most that a run of this configuration holds at one time."""
    found = held(config, data, gpu=machine.gpu)
    peak, heap = max(found.training, found.evaluating), 1.0 if machine.gpu else HEAP
    process = machine.base_mib + LIBRARIES[machine.device]
    stored = 0.0 if machine.gpu else found.stored * data.train / 2**20
    network, step = (heap * part / 2**20 for part in (found.lasting, peak - found.lasting))
    total = process + network + step + stored
    return Memory(total, process, network, step, stored, found.evaluating > found.training)


def hours_of(config: Config, data: Fingerprint, machine: Machine, step_seconds: float | None = None) -> float:
    """From the first step to the last evaluation.

    step_seconds: of one step, where some were taken; everything else is then scaled by it.
    """
    config = without_numbers(config)
    loop, precision = config.loop, config.loop.precision
    whole, trunk = macs_of(config, data.classes)
    frozen = config.backbone.is_frozen
    stored = loop.cached_views if frozen else 0
    passes = 0 if stored else 1 if frozen else FORWARDS
    step = loop.batch_size * (passes * trunk + FORWARDS * (whole - trunk))
    other = evaluations(loop) * data.val * looks(config, data.median_size) * whole + data.train * stored * trunk
    tflops = machine.tflops["bf16" if precision == "fp16" else precision]
    seconds = seconds_of(loop.steps * step + other, tflops)
    if step_seconds is not None:
        seconds *= step_seconds / seconds_of(step, tflops)
    return seconds / 3600


def evaluations(loop: LoopConfig) -> int:
    """Evaluations of a run: at every multiple of eval_every, and at the end."""
    return -(-loop.steps // (loop.eval_every or loop.steps))


def looks(config: Config, image: tuple[int, int]) -> float:
    """What evaluating an image costs, in passes over an image of the size trained on."""
    if isinstance(config, Stage1Config):
        return 1.0
    height, width = window_of(config, image)
    return windows_of(config, image) * height * width / side_of(config) ** 2


def macs_of(config: Config, classes: int) -> tuple[int, int]:
    """Multiply-accumulates of an image of the size trained on: of the network, and of its backbone."""
    network: Network = classifier(config, classes) if isinstance(config, Stage1Config) else segmenter(config, classes)
    trunk = network.module.backbone
    assert isinstance(trunk, Backbone)
    return network.cost.macs, count(trunk, lambda: trunk(images(network.image_size))).macs
