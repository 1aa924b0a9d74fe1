"""A benchmark's folder as its steps would have left it, of label maps made up here: no network is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kappaseg_core.ranking import IGNORE, top_kappa
from pipelines.benchmark.measure import examples, map_name
from pipelines.benchmark.presence import presence_quality
from pipelines.benchmark.records import finite
from pipelines.benchmark.tally import Tally, histogram

IMAGES, LABELS, SIDE, SHOWN = 12, 9, 6, 2


@dataclass(frozen=True)
class MadeUp:
    """One scheme. right: share of the pixels that its maps get right.   precision: how well its scores rank."""

    source: str
    right: float
    labels: str = "none"
    rank_scale: str = "layer_norm"
    ranker: str | None = None
    of: str | None = None
    test: str | None = None
    missed: str = "ignore"
    precision: float = 0.8
    steps: int = 7
    kappas: Mapping[int, float] = field(default_factory=dict)


SCHEMES = {
    "plain": MadeUp("complete", 0.4),
    "mt": MadeUp("complete", 0.45, labels="encoder"),
    "sorted": MadeUp("joint", 0.5, labels="encoder", rank_scale="shared_norm"),
    "both": MadeUp("joint", 0.6, labels="encoder", kappas={2: 0.5, 8: 0.6}),
    "two": MadeUp("cache", 0.55, ranker="good", precision=0.9),
    "two-weak": MadeUp("cache", 0.45, ranker="weak", precision=0.3),
    "told": MadeUp("oracle", 0.9),
    "told-late": MadeUp("complete", 0.7, of="plain", test="oracle"),
}


def make_up(
    out: Path, schemes: Mapping[str, MadeUp] = SCHEMES, *, seeds: tuple[int, ...] = (0, 1, 2), data: Path | None = None
) -> Path:
    """OUT with a plan of these schemes, the records of all steps, and what they left."""
    (out / "steps").mkdir(parents=True)
    steps: dict[str, dict[str, Any]] = {}
    for name, scheme in schemes.items():
        for seed in seeds:
            network = scheme.of or name
            needs = [f"train-{network}-seed-{seed}"]
            if scheme.ranker:
                ranker, below = scheme.ranker, [f"stage1-{scheme.ranker}-seed-{seed}"]
                steps[below[0]] = step("stage1", f"seed-{seed}/{ranker}/stage1", seed=seed, ranker=ranker)
                rank = f"rank-{ranker}-seed-{seed}"
                steps[rank] = step("rank", f"seed-{seed}/{ranker}/labels", below, seed=seed, ranker=ranker)
                needs.append(rank)
            steps.setdefault(needs[0], step("train", f"seed-{seed}/{network}", needs[1:], seed=seed, scheme=network))
            for kappa in (None, *scheme.kappas):
                ending = f"-kappa-{kappa}" if kappa else ""
                id_ = f"measure-{name}-seed-{seed}{ending}"
                steps[id_] = step("measure", f"measures/{id_[8:]}", needs, scheme=name, seed=seed, kappa=kappa)
                right = scheme.kappas[kappa] if kappa else scheme.right
                measurement(out / steps[id_]["folder"], scheme, right, seed)
    trained = {name: scheme for name, scheme in schemes.items() if scheme.of is None}
    steps["cost"] = step("cost", "cost", [f"train-{name}-seed-{seeds[0]}" for name in trained])
    cost(out / "cost", trained)
    for place, (id_, values) in enumerate(steps.items()):
        record(out, id_, values, seconds=10.0 + place)
    labels = {name: f"scheme {name}" for name in schemes}
    plan = {
        "name": "made up", "commit": "0" * 40, "version": "0.1.0", "baseline": next(iter(schemes)),
        "machine": {"cpu": "paper and pencil", "cores": 2, "gpus": []},
        "config": {"data": {"kind": "folder", "root": str(data or "nowhere"), "train": "train", "val": "val"}},
        "schemes": {name: {"label": labels[name], "source": scheme.source, "test": scheme.test or scheme.source,
                           "of": scheme.of, "ranker": scheme.ranker, "folds": 0} for name, scheme in schemes.items()},
        "steps": steps,
    }  # fmt: skip
    (out / "plan.json").write_text(json.dumps(plan))
    return out


def step(kind: str, folder: str, needs: list[str] | None = None, **more: Any) -> dict[str, Any]:
    """A step as plan.json has it."""
    values = {"scheme": None, "ranker": None, "seed": None, "kappa": None, **more}
    return {"kind": kind, "folder": folder, "needs": needs or [], "fingerprint": f"print of {folder}", **values}


def record(out: Path, id_: str, values: Mapping[str, Any], *, seconds: float) -> None:
    """What a finished step leaves: its record, and for a training run its summary."""
    path = out / "steps" / f"{id_}.json"
    path.write_text(json.dumps({
        "id": id_, "kind": values["kind"], "fingerprint": values["fingerprint"], "inputs": {}, "digest": "d",
        "seconds": seconds, "cpu_seconds": seconds, "peak_memory_mib": 100, "attempts": 1,
        "finished": "2022-10-23T00:00:00", "host": "here",
    }))  # fmt: skip
    if values["kind"] in ("train", "stage1"):
        (out / values["folder"]).mkdir(parents=True, exist_ok=True)
        summary = {"seconds": seconds, "peak_memory_mib": 200 if values["kind"] == "stage1" else 300,
                   "parameters": 5_000_000 if values["kind"] == "stage1" else 2_000_000}  # fmt: skip
        (out / values["folder"] / "summary.json").write_text(json.dumps(summary))


def measurement(folder: Path, scheme: MadeUp, right: float, seed: int) -> None:
    """A measurement of made-up maps: each pixel is right with the given probability, else any label."""
    truth = masks()
    rng = np.random.default_rng([seed, round(1000 * right), round(1000 * scheme.precision)])
    (folder / "gallery").mkdir(parents=True)
    tally = Tally(IMAGES, LABELS)
    for index, mask in enumerate(truth):
        wrong = rng.integers(0, LABELS, mask.shape)
        found = np.where((rng.random(mask.shape) < right) & (mask != IGNORE), mask, wrong)
        present = np.isin(np.arange(LABELS), mask)
        scores = np.clip(scheme.precision * present + rng.random(LABELS) * (1 - scheme.precision), 0, 1)
        ranking = top_kappa(torch.tensor(scores[None]), LABELS if scheme.source == "complete" else 5)
        tally.add(index, mask=torch.tensor(mask), label_map=torch.tensor(found), ranking=ranking,
                  scores=torch.tensor(scores).float())  # fmt: skip
        if index < SHOWN:
            Image.fromarray(found.astype(np.uint16)).save(folder / "gallery" / map_name(index))
    test = scheme.test or scheme.source
    of = {"complete": "pixel scores", "cache": "label cache", "joint": "label branch", "oracle": "truth"}
    values = {
        "run": "run", "fingerprint": "f", "inputs": {"train": "a", "val": "b", "rankings": "c"}, "settings": {},
        "split": "val", "source": {"train": scheme.source, "test": test},
        "kappa": None if scheme.source in ("complete", "oracle") else 5, "class_names": names(),
        "network": {"backbone": "b", "host": "segmenter", "labels": scheme.labels, "rank_scale": scheme.rank_scale,
                    "missed": scheme.missed, "steps": scheme.steps},
        "inference": {"mode": "whole"},
        **tally.numbers(), "presence": of[test], **presence_quality(tally.scores, tally.truth, LABELS),
        "train_images": list(range(1, LABELS + 1)), "train_labels_per_image": histogram(np.array([2, 3, 3, 4])),
        "rank_scale": {"kind": "rank", "weight": [1.5, 1.0, 0.5]} if scheme.source in ("cache", "joint") else None,
        **examples(tally, image_ids(), SHOWN), "seconds": 1.0,
    }  # fmt: skip
    (folder / "measurement.json").write_text(json.dumps(finite(values)))
    np.savez_compressed(folder / "images.npz", allow_pickle=False, **tally.sparse(image_ids()))


def cost(folder: Path, schemes: Mapping[str, MadeUp]) -> None:
    """cost.json of these schemes: each as costly as its place."""
    folder.mkdir(parents=True)
    one = {"parameters": 2_000_000, "macs": 3_000_000_000, "macs_paper": 2_500_000_000, "images_per_second": 40.0,
           "latency_p50_ms": 25.0, "latency_p95_ms": 31.0, "latency_ratio": 1.0}  # fmt: skip
    values = {name: {**{key: value * (1 + place) for key, value in one.items()}, "peak_memory_mib": 500 + place,
                     "network": one, "classifier": one if scheme.ranker else None}
              for place, (name, scheme) in enumerate(schemes.items())}  # fmt: skip
    (folder / "cost.json").write_text(json.dumps({"baseline": next(iter(schemes)), "schemes": values}))


def masks() -> np.ndarray:
    """The truth, the same for every scheme: i64 [IMAGES, SIDE, SIDE] in blocks, one row of pixels without a label."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, LABELS, (IMAGES, 2, 2)).repeat(SIDE // 2, 1).repeat(SIDE // 2, 2)
    blocks[:, 0] = IGNORE
    return blocks


def image_ids() -> tuple[str, ...]:
    return tuple(f"image-{index}" for index in range(IMAGES))


def names() -> list[str]:
    return [f"label <{index}>" for index in range(LABELS)]


def data_set(root: Path) -> Path:
    """The photographs and masks that the made-up schemes were measured on, as a folder data set."""
    for name in ("images", "masks", "splits"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names()))
    rng = np.random.default_rng(6)
    for image_id, mask in zip(image_ids(), masks(), strict=True):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(root / "images" / f"{image_id}.png")
        Image.fromarray(np.where(mask == IGNORE, 255, mask).astype(np.uint8)).save(root / "masks" / f"{image_id}.png")
    for split in ("train", "val"):
        (root / "splits" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in image_ids()))
    return root
