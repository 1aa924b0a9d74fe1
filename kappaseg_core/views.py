"""Features of a frozen backbone, computed once: what makes training on two CPU cores a matter of minutes.

A frozen backbone gives the same features for the same view of an image every time. So a fixed number of augmented views
of each image is passed through it once, and the head trains on the stored maps. The bank is keyed by everything that
decides its content, so stage one, its folds and every stage-two run of one setting share it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kappaseg_core.backbones import Backbone, Wants
from kappaseg_core.config import fingerprint, to_plain
from kappaseg_core.feeding import Examples, one_thread
from kappaseg_core.files import file_sha256, new_folder, write_text
from kappaseg_core.handover import collate
from kappaseg_core.placement import Placement
from kappaseg_core.progress import Meter
from kappaseg_core.seeding import seed_of
from kappaseg_core.structures import SceneSet

GROUP = 8  # views per pass through the backbone


class ViewBank:
    """Stored views: `make(index, seed)` picks one of an image's views and gives (features, target, image_id).

    features: f32 [C, h, w] of every map (stored as f16).   target: whatever the examples gave, as a tensor.
    """

    def __init__(self, folder: Path, image_ids: tuple[str, ...]) -> None:
        self.folder, self.image_ids = folder, image_ids
        self.views = json.loads((folder / "bank.json").read_text("utf-8"))["views"]
        files = [folder / "features.npy", *sorted(folder.glob("features-*.npy"))]
        self.features = [np.load(file, mmap_mode="r") for file in files]
        self.targets = np.load(folder / "targets.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[type[ViewBank], tuple[Path, tuple[str, ...]]]:
        """Opened anew by a loader worker that is not forked, not copied into its memory."""
        return ViewBank, (self.folder, self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def make(self, index: int, seed: int) -> tuple[tuple[Tensor, ...], Tensor, str]:
        row = index * self.views + seed % self.views
        features = tuple(torch.from_numpy(stored[row].astype(np.float32)) for stored in self.features)
        return features, torch.from_numpy(np.array(self.targets[row])), self.image_ids[index]


def training_bank(
    config: Any, target: str, examples: Examples, scenes: SceneSet, backbone: Backbone, here: Placement
) -> ViewBank:
    """The bank for a training configuration (its out, loop, augment and backbone), from disk where it is there.

    target: what the examples' second item is ("labels", "mask", "objects"). examples.make must give images of one size.
    The first worker computes a missing bank; the others wait.
    """
    network = to_plain(replace(config.backbone, weights=None, frozen=True))
    del network["checkpointing"]  # changes no number
    key = {
        "format": 1,
        "target": target,
        "data": scenes.fingerprint(),
        "order": fingerprint(scenes.image_ids),  # which the data's fingerprint leaves open, and rows follow it
        "classes": list(scenes.class_names),
        "options": to_plain(config.data.options),  # ignore values and id maps decide the stored targets
        "augment": to_plain(config.augment),
        "backbone": network,
        "weights": start_of(config),
        "views": config.loop.cached_views,
        "seed": config.loop.seed,
        "precision": here.precision,
    }
    if backbone.wants != Wants():
        key["maps"] = to_plain(backbone.wants)
    folder = Path(config.out) / "features" / fingerprint(key)[:16]
    if here.is_first and not (folder / "bank.json").exists():
        fill(folder, key, examples, backbone.to(here.device).eval(), here)
    here.wait()
    return ViewBank(folder, scenes.image_ids)


def start_of(config: Any) -> str:
    """Where the backbone's numbers are from: a run, a weight file, or the seed."""
    file = f"{config.init}/weights.safetensors" if config.init else config.backbone.weights
    return file_sha256(Path(file)) if file else f"seed {config.loop.seed}"


def fill(folder: Path, key: Mapping[str, Any], examples: Examples, backbone: Backbone, here: Placement) -> None:
    """Compute every view of every image, in a folder that appears when it is whole."""
    views, seed = key["views"], key["seed"]
    rows = [(index, view) for index in range(len(examples)) for view in range(views)]
    features: list[Any] = []
    targets = None
    with new_folder(folder) as temporary, Meter("feature bank", len(rows), unit="view") as meter:
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            with one_thread():
                made = [examples.make(index, seed_of(seed, "view", index, view)) for index, view in group]
            with torch.inference_mode(), here.autocast():
                images = collate(made, target=key["target"]).batch(here.device).image
                assert images is not None
                maps = backbone.maps(images)
            goal = np.stack([np.asarray(target) for _, target, _ in made])
            if targets is None:
                targets = open_array(temporary / "targets.npy", goal.dtype, (len(rows), *goal.shape[1:]))
                features = [
                    open_array(temporary / feature_file(number), np.float16, (len(rows), *one.shape[1:]))
                    for number, one in enumerate(maps)
                ]
            for stored, one in zip(features, maps, strict=True):
                stored[start : start + len(group)] = one.float().cpu().numpy()
            targets[start : start + len(group)] = goal
            meter.advance(len(group))
        for array in (*features, targets):
            if array is not None:
                array.flush()
        write_text(temporary / "bank.json", json.dumps(dict(key), indent=1))


def feature_file(number: int) -> str:
    """Name of the file of a backbone's map, counted from 0."""
    return f"features-{number}.npy" if number else "features.npy"


def open_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new array in a file, its space reserved: a full disk is then an error here, no signal at a later write."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def selected(examples: Examples, indices: list[int]) -> Examples:
    """Some of the examples, in the given order."""
    return _Selected(examples, indices)


class _Selected:
    def __init__(self, examples: Examples, indices: list[int]) -> None:
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def make(self, index: int, seed: int) -> Any:
        return self.examples.make(self.indices[index], seed)
