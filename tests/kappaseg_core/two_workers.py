"""One of several workers of test_placement: `python two_workers.py FOLDER`, with torchrun's variables set.

Does everything that needs company and writes what it saw to FOLDER/worker-N.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kappaseg_core.checkpoint import RunDirectory, Summary, open_run
from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig, OptimConfig
from kappaseg_core.feeding import batches
from kappaseg_core.loop import fit
from kappaseg_core.placement import Placement, place
from kappaseg_core.ranking import Ranking
from kappaseg_core.scenes import open_scenes
from kappaseg_core.scenes.synthetic import SyntheticScenes
from kappaseg_core.structures import Batch
from label_cache import CacheError, CacheWriter
from stage1_multilabel.config import AugmentConfig as LabelAugment
from stage1_multilabel.config import HeadConfig, RankConfig, Stage1Config
from stage1_multilabel.rank import rank_images
from stage1_multilabel.train import train_classifier
from stage2_segmentation.config import AugmentConfig, HostConfig, InferenceConfig, SourceConfig, Stage2Config
from stage2_segmentation.evaluate import evaluate_model
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.sources.complete import Complete
from stage2_segmentation.train import train_segmentation

K = 4
DATA = DataConfig(kind="synthetic", options={"classes": K, "train": 5, "val": 3, "size": 32})
LOOP = LoopConfig(steps=3, batch_size=4, device="cpu", eval_every=1, log_every=1)
BACKBONE = BackboneConfig(kind="small_cnn", name="4")
HOST = HostConfig(options={"depth": 1, "dropout": 0.0})


def classifier(out: Path) -> Stage1Config:
    augment = LabelAugment(image_size=32, randaugment_ops=0, cutout=0.0)
    return Stage1Config(
        data=DATA, backbone=BACKBONE, head=HeadConfig("gap"), augment=augment, loop=LOOP, out=str(out)
    )  # fmt: skip


def segmentation(out: Path) -> Stage2Config:
    return Stage2Config(
        data=DATA, backbone=BACKBONE, host=HOST, source=SourceConfig("complete"),
        augment=AugmentConfig(short_side=32, crop=32), inference=InferenceConfig(short_side=None), loop=LOOP,
        out=str(out),
    )  # fmt: skip


def rank(out: Path) -> RankConfig:
    return RankConfig(data=DATA, out=str(out), kappa=3, part_images=2, device="cpu")


def evaluation(here: Placement) -> dict[str, Any]:
    """Evaluation of an untrained network, and which images this worker asked the source for."""

    class Noting(Complete):
        def __call__(self, image_ids: Any, mask: Tensor | None, image: Tensor | None = None) -> Ranking:
            asked.extend(image_ids)
            return super().__call__(image_ids, mask, image)

    asked: list[str] = []
    torch.manual_seed(0)
    model = build_segmentation(Stage2Config(backbone=BACKBONE, host=HOST, source=SourceConfig("complete")), K).eval()
    found = evaluate_model(model, open_scenes(DATA, "train"), Noting(K), InferenceConfig(short_side=None), here)
    return {"asked": asked, "evaluation": asdict(found)}


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.features is not None
        return self.model(batch.features[0]).square().mean(), {}

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.parameters()), "lr_factor": 1.0, "weight_decay": 0.0}]


class Points:
    def __len__(self) -> int:
        return 5

    def make(self, index: int, seed: int) -> tuple[tuple[Tensor], Tensor, str]:
        return (torch.tensor([index, 1.0]),), torch.ones(1), str(index)


def trained(here: Placement, folder: Path, loop: LoopConfig, values: Iterator[float]) -> Summary:
    """A run of a small task.   values: what its evaluations give on this worker."""
    if here.is_first:
        open_run(folder, model="none", config={}, class_names=(), inputs={})
    here.wait()
    return fit(
        Task(), lambda first: batches(Points(), "labels", loop, here, first_step=first), lambda _: {"m": next(values)},
        optim=OptimConfig(), loop=loop, run=RunDirectory(folder), place=here, metric="m",
    )  # fmt: skip


def stopping(here: Placement, folder: Path) -> int:
    """Steps of a run whose evaluations get worse on the first worker and better on the others."""
    values = iter([0.5, 0.4, 0.3, 0.2, 0.1] if here.is_first else [0.1, 0.2, 0.3, 0.4, 0.5])
    return trained(here, folder, replace(LOOP, steps=5, patience=1), values).steps


def compiled(here: Placement, folder: Path) -> list[float]:
    """Losses of a run with loop.compile and accumulation."""
    loop = replace(LOOP, compile=True, accumulate=2)
    trained(here, folder, loop, iter([0.0] * loop.steps))
    here.wait()
    return [line["loss"] for line in RunDirectory(folder).metrics() if line["kind"] == "train"]


def ranking(out: Path) -> dict[str, Any]:
    """Which images this worker scored and wrote while the two ranked together."""
    scored: list[str] = []
    written: list[str] = []
    image, write_part = SyntheticScenes.image, CacheWriter.write_part

    def noting_image(self: SyntheticScenes, index: int) -> Any:
        scored.append(self.image_ids[index])
        return image(self, index)

    def noting_write(self: CacheWriter, split: str, index: int, **rows: Any) -> None:
        written.extend(rows["ids"])
        write_part(self, split, index, **rows)

    SyntheticScenes.image, CacheWriter.write_part = noting_image, noting_write  # type: ignore[method-assign]
    error = ""
    try:
        rank_images(rank(out))
    except CacheError as problem:
        error = str(problem)
    return {"scored": scored, "written": written, "rank_error": error}


def main(folder: Path) -> None:
    here = place(LOOP)
    own = torch.tensor([here.worker + 1.0, 10.0])
    seen: dict[str, Any] = {
        "worker": here.worker, "world": here.world, "total": here.total(own).tolist(), "own": own.tolist(),
        "agreed": [here.agree(here.is_first), here.agree(not here.is_first)], **evaluation(here),
        "stopped_at": stopping(here, folder / "stopping"), "compiled": compiled(here, folder / "compiled"),
    }  # fmt: skip
    seen["segmentation"] = asdict(train_segmentation(segmentation(folder)))["metrics"]
    seen["classifier"] = asdict(train_classifier(classifier(folder)))["metrics"]
    seen |= ranking(folder)
    (folder / f"worker-{here.worker}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
