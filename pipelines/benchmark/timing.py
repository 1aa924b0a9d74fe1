"""What every scheme of a benchmark costs when it is used: parameters, MACs, speed, latency, memory, side by side.

    cost.json   for every scheme what is deployed, and apart what of it is the network's and what the classifier's

All networks are loaded at once and take turns image by image (A B C, B C A, …), so that whatever else the machine does
falls on all of them alike; absolute times are those of this machine at this time, the ratios are what to compare.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kappaseg_core.cost import Cost
from kappaseg_core.errors import UserError
from kappaseg_core.files import write_text
from kappaseg_core.progress import say
from pipelines.benchmark.deployed import Deployed
from pipelines.benchmark.inference_memory import inference_memory

FEWEST_ROUNDS = 3

#: seconds [2, rounds, images]: of the classifier and of the network
Times = NDArray[np.float64]


def time_networks(
    runs: Mapping[str, Path],
    folder: Path,
    *,
    classifiers: Mapping[str, Path | None],
    baseline: str | None = None,
    repeats: int = 30,
    seconds: float = 60.0,
) -> None:
    """Measure finished stage-two runs by scheme and write FOLDER/cost.json.

    Latency: one image at a time, decoded before; resizing, classifier, network and the label map at the image's own
    size are in it. MACs: of the sampled image of median size.   peak memory: of a fresh process for each scheme.
    classifiers: the run that a new image is ranked with, for schemes that need one.   baseline: scheme that ratios are
    to; None = the first.   repeats, seconds: the most rounds, and about how long they and the memory may take
    together; three rounds are made in any case.
    Raises UserError for a baseline that is not among the runs.
    """
    started, baseline = time.perf_counter(), baseline or next(iter(runs))
    if baseline not in runs:
        raise UserError(f"baseline = {baseline!r} is none of the schemes to time; there are: {', '.join(runs)}")
    say(f"loading {len(runs)} networks")
    networks = {name: Deployed.load(run, classifiers.get(name)) for name, run in runs.items()}
    by_size = np.argsort([image[0].numel() for image in networks[baseline].images], kind="stable")
    median, largest = int(by_size[(len(by_size) - 1) // 2]), networks[baseline].rows[by_size[-1]]
    counted = {name: network.costs(median) for name, network in networks.items()}
    say("measuring memory, each in a process of its own")
    memory = inference_memory([(run, classifiers.get(name), largest) for name, run in runs.items()])
    left = max(seconds / 3, seconds - (time.perf_counter() - started))
    times = taken_in_turns(networks, repeats=repeats, seconds=left)
    record = {
        **circumstances(networks[baseline], times[baseline], median),
        "baseline": baseline,
        "schemes": {
            name: {"run": run.name, **deployed(counted[name], times[name], times[baseline]), **used}
            for (name, run), used in zip(runs.items(), memory, strict=True)
        },
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "cost.json", json.dumps(record, indent=1) + "\n")


def taken_in_turns(networks: Mapping[str, Deployed], *, repeats: int, seconds: float) -> dict[str, Times]:
    """The times of every network, after two uses that do not count."""
    for _ in range(2):
        warm = [network.use(0) for network in networks.values()]
    there = min(len(network.images) for network in networks.values())
    images, rounds = rounds_within(seconds, per_image=float(np.sum(warm)), images=there, repeats=repeats)
    say(f"timing {rounds} rounds of {images} images")
    times = {name: np.zeros((2, rounds, images)) for name in networks}
    order = list(networks)
    for turn in range(rounds):
        for image in range(images):
            for name in order[(turn + image) % len(order) :] + order[: (turn + image) % len(order)]:
                times[name][:, turn, image] = networks[name].use(image)
    return times


def rounds_within(seconds: float, *, per_image: float, images: int, repeats: int) -> tuple[int, int]:
    """Images and rounds that fit into the time: rather fewer images than fewer than three rounds.

    per_image: seconds that all networks together take for one.
    """
    uses = int(seconds / max(per_image, 1e-9))
    shown = min(images, max(1, uses // FEWEST_ROUNDS))
    return shown, max(FEWEST_ROUNDS, min(repeats, uses // shown))


def deployed(costs: tuple[Cost, Cost | None], times: Times, baseline: Times) -> dict[str, Any]:
    """The numbers of what is deployed, and of its parts."""
    network, classifier = costs
    both = times.sum(0)
    return {
        **numbers(network if classifier is None else network + classifier, both, baseline.sum(0)),
        "network": numbers(network, times[1], baseline[1]),
        "classifier": None if classifier is None else numbers(classifier, times[0], baseline.sum(0)),
    }


def numbers(cost: Cost, times: NDArray[np.float64], baseline: NDArray[np.float64]) -> dict[str, float]:
    """Of times in seconds [rounds, images].

    images_per_second: median over the rounds.   latency_ratio: median of the ratios to the baseline's time for the same
    image in the same round.
    """
    return {
        "parameters": cost.parameters, "macs": cost.macs, "macs_paper": cost.macs_paper,
        "images_per_second": rounded(np.median(times.shape[1] / times.sum(1))),
        "latency_p50_ms": rounded(1e3 * np.percentile(times, 50)),
        "latency_p95_ms": rounded(1e3 * np.percentile(times, 95)),
        "latency_ratio": rounded(np.median(times / baseline)),
    }  # fmt: skip


def rounded(value: np.floating[Any]) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def circumstances(network: Deployed, times: Times, median: int) -> dict[str, Any]:
    """Where and how it was measured. counted_size: height and width of the image that MACs are of."""
    device = network.here.device
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "device_type": device.type, "precision": network.here.precision, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "images": times.shape[2], "rounds": times.shape[1],
        "counted_size": list(network.images[median].shape[1:]),
    }  # fmt: skip
