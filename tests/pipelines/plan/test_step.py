"""What a training holds, without numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kappaseg_core.config import BackboneConfig, LoopConfig, OptimConfig, build
from kappaseg_core.ranking import complete_ranking
from pipelines.plan.estimate import evaluations, hours_of, looks, macs_of, memory_of
from pipelines.plan.fingerprint import Fingerprint
from pipelines.plan.machine import Machine
from pipelines.plan.step import Held, ImaginedTask, batch_of, empty_task, held, stored_bytes, task_of, windows_of
from pipelines.published.estimate import REACHED
from stage1_multilabel.config import HeadConfig, Stage1Config
from stage2_segmentation.config import InferenceConfig, Stage2Config
from stage2_segmentation.task import SegmentTask
from tests.contracts.test_hosts import TINY

Found = Callable[..., Held]
IMAGE = (64, 96)
SMALL = {
    "backbone": {"kind": "small_cnn", "name": "8", "frozen": False},
    "host": {"options": {"width": 8, "heads": 2, "depth": 1}},
    "source": {"train": "complete"},
    "augment": {"short_side": 64, "crop": 64},
    "inference": {"mode": "slide", "short_side": 64, "window": 64, "stride": 64},
    "optim": {"kind": "sgd"},
    "loop": {"steps": 100, "batch_size": 4},
}


def two(**more: Any) -> Stage2Config:
    groups = {name: {**SMALL.get(name, {}), **values} for name, values in more.items()}
    return build(Stage2Config, {**SMALL, **groups})


@pytest.fixture
def found(data: Fingerprint) -> Callable[..., Held]:
    def of(config: Stage1Config | Stage2Config, classes: int = 20) -> Held:
        return held(config, replace(data, classes=classes, median_size=IMAGE), gpu=False)

    return of


def test_weights_gradients_and_momentum_last_by_hand(found: Found) -> None:
    weights = sum(p.nbytes for p in empty_task(two(), 20).parameters())
    others = sum(b.nbytes for b in empty_task(two(), 20).buffers())
    assert found(two()).lasting == 3 * weights + others
    assert found(two(optim={"momentum": 0.0})).lasting == 2 * weights + others
    averaged = found(two(loop={"ema": 0.9})).lasting
    assert averaged == 4 * weights + 2 * others
    adam = found(two(optim={"kind": "adamw"})).lasting
    assert 4 * weights + others < adam < 4 * weights + others + 1000  # and a step count for each tensor


def test_a_frozen_backbone_keeps_no_gradients_and_fewer_activations(found: Found) -> None:
    frozen, trained = found(two(backbone={"frozen": True})), found(two())
    assert frozen.lasting < trained.lasting and frozen.training < trained.training


def test_an_optimiser_of_selected_rows_takes_at_most_what_is_estimated_for_one_of_all(found: Found) -> None:
    every, selected = (
        two(optim={"selected_rows": some}, source={"train": "cache", "kappa": 5}) for some in (False, True)
    )
    assert found(selected) == found(every)


def test_micro_batches_take_less_and_the_gradients_of_the_first_stay(found: Found) -> None:
    whole, micro, small = found(two()), found(two(loop={"accumulate": 2})), found(two(loop={"batch_size": 2}))
    assert small.training < micro.training < whole.training


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["maskformer", "mask2former"])
def test_a_mask_network_is_followed_without_numbers(found: Found, kind: str) -> None:
    """What it holds grows with the images of a step, and no made-up position is left for networks with numbers."""
    backbone = {"kind": "timm", "name": "convnext_atto", "options": {"depths": [1] * 4, "dims": [8, 8, 16, 16]}}
    config = two(
        backbone=backbone, host={"kind": kind, "options": TINY[kind]}, source={"train": "cache", "kappa": 5}
    )  # fmt: skip
    many, few = found(config), found(replace(config, loop=replace(config.loop, batch_size=2)))
    assert many.lasting == few.lasting and many.training > few.training > few.lasting
    model = task_of(config, 20).model
    assert model(torch.zeros(1, 3, 64, 64), complete_ranking(1, 20).top(5)).mask_logits.isfinite().all()


@pytest.mark.parametrize("host", ["segmenter", "deeplabv3", "upernet"])
def test_the_loss_without_numbers_is_that_of_training(host: str) -> None:
    options = {"width": 8, **({"heads": 2, "depth": 1} if host == "segmenter" else {"auxiliary_width": 8})}
    config = two(
        backbone={"kind": "timm", "name": "resnet10t"}, host={"kind": host, "options": options},
        source={"train": "cache", "kappa": 5}, loss={"stride": 2},
    )  # fmt: skip
    mask, losses = torch.randint(-1, 20, (4, 64, 64)), []
    for kind in (SegmentTask, ImaginedTask):
        torch.manual_seed(0)
        task = task_of(config, 20, kind).train()
        losses.append(task(replace(batch_of(config, 20, task.model), mask=mask))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_network_that_learns_objects_is_estimated_as_with_labels_but_for_the_maps_that_are_stored() -> None:
    one, other = (
        two(
            backbone={"kind": "timm", "name": "resnet10t", "frozen": True}, loop={"cached_views": 3},
            host={"kind": "maskformer", "options": {**TINY["maskformer"], "target": target}},
        ) for target in ("labels", "objects")
    )  # fmt: skip
    counts, stored = ([of(config) for config in (one, other)] for of in (weights_of, stored_of))
    assert counts[0] == counts[1]
    assert stored[1] - stored[0] == 3 * (8 - 2) * 64**2  # i32 of labels and of objects, in the place of i16


def weights_of(config: Stage2Config) -> int:
    return sum(p.nbytes for p in empty_task(config, 20).parameters())


def stored_of(config: Stage2Config) -> int:
    return stored_bytes(config, empty_task(config, 20).model)


def test_the_warm_up_of_a_label_branch_takes_less_and_is_not_what_is_estimated(found: Found) -> None:
    joint = two(source={"train": "joint", "kappa": 10}, labels={"head": "pooled"})
    warmed = two(source={"train": "joint", "kappa": 10}, labels={"head": "pooled", "warm_up": 0.3})
    assert found(warmed).training == found(joint).training


def test_more_images_take_as_much_more_each(found: Found) -> None:
    one, two_images, three = (found(two(loop={"batch_size": images})).training for images in (4, 5, 6))
    assert three - two_images == pytest.approx(two_images - one, rel=0.02)


def test_the_network_of_a_joint_run_takes_more_and_the_vocabulary_matters_to_its_label_branch(found: Found) -> None:
    joint = two(source={"train": "joint", "kappa": 10}, labels={"head": "pooled"})
    plain = two(source={"train": "cache", "kappa": 10})
    assert found(joint, 500).lasting > found(plain, 500).lasting
    assert found(plain, 5000).training - found(plain, 500).training < 0.2 * found(plain, 500).training


@pytest.mark.slow
def test_labels_in_chunks_take_less(found: Found) -> None:
    config = Stage1Config(
        backbone=build(type(Stage1Config().backbone), SMALL["backbone"]),
        head=HeadConfig("fast", width=8, ffn=16, heads=2), loop=LoopConfig(batch_size=4),
    )  # fmt: skip
    chunked = replace(config, head=replace(config.head, chunk=100))
    assert found(chunked, 2000).training < 0.5 * found(config, 2000).training


def test_a_sample_of_the_labels_takes_less(found: Found) -> None:
    config = Stage1Config(
        backbone=build(type(Stage1Config().backbone), SMALL["backbone"]),
        head=HeadConfig("fast", width=8, ffn=16, heads=2), loop=LoopConfig(batch_size=4),
    )  # fmt: skip
    sampled = replace(config, loss=replace(config.loss, negatives=100))
    assert found(sampled, 2000).training < 0.5 * found(config, 2000).training


@pytest.mark.slow
def test_blocks_that_are_computed_again_take_less(found: Found) -> None:
    vit = two(backbone={"kind": "timm", "name": "vit_tiny_patch16_384"}, augment={"crop": 128})
    again = replace(vit, backbone=replace(vit.backbone, checkpointing=True))
    assert found(again).training < found(vit).training
    assert found(again).lasting == found(vit).lasting


def test_features_that_are_stored_are_counted_and_no_image_is_trained_on(found: Found) -> None:
    stored = two(backbone={"frozen": True}, loop={"cached_views": 3})
    task = empty_task(stored, 20).model.backbone
    cells = 64 // task.stride
    assert found(stored).stored == 3 * 2 * (task.channels * cells**2 + 64**2)
    assert found(two(backbone={"frozen": True})).stored == 0


def test_windows_cover_the_median_image() -> None:
    config = two()
    assert windows_of(config, (64, 128)) == 2 and looks(config, (64, 128)) == 2.0
    whole = replace(config, inference=InferenceConfig(mode="whole", short_side=64))
    assert windows_of(whole, (64, 128)) == 1 and looks(whole, (64, 128)) == 2.0


def test_hours_by_hand(data: Fingerprint, laptop: Machine) -> None:
    """100 steps of 4 images, thrice the forward pass, and two evaluations of 1,000 images in two windows."""
    config = two(loop={"eval_every": 50})
    (whole, _), data = macs_of(config, data.classes), replace(data, median_size=(64, 128))
    passes = 3 * 100 * 4 + 2 * 1000 * 2
    speed = REACHED * 0.1e12
    assert hours_of(config, data, laptop) == pytest.approx(2 * whole * passes / speed / 3600)
    measured = hours_of(config, data, laptop, step_seconds=6.0)
    assert measured == pytest.approx(6.0 * passes / (3 * 4) / 3600)


def test_a_run_is_evaluated_at_its_end_too() -> None:
    assert [evaluations(LoopConfig(steps=10, eval_every=every)) for every in (0, 3, 5, 10)] == [1, 4, 2, 1]


def test_a_process_holds_more_than_its_tensors_and_a_gpu_only_them(
    data: Fingerprint, laptop: Machine, gpu: Machine
) -> None:
    cpu, cuda = memory_of(two(), data, laptop), memory_of(two(), data, gpu)
    assert cpu.total == pytest.approx(cpu.process + cpu.network + cpu.step + cpu.stored)
    assert cpu.process > laptop.base_mib and cuda.process < 100


def test_a_weight_file_is_not_opened(found: Found) -> None:
    config = two(backbone={"weights": "nowhere.safetensors"})
    assert found(config).lasting == found(two()).lasting
    assert BackboneConfig(weights="nowhere.safetensors").is_frozen and OptimConfig().kind == "adamw"
