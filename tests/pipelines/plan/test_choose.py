"""The choices of a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kappaseg_core.errors import UserError
from pipelines.plan.choose import MARGIN, Choice, choose, choose_kappa, fit, sizes
from pipelines.plan.fingerprint import Fingerprint
from pipelines.plan.machine import Machine
from pipelines.plan.start import QUICK, lengths, start
from pipelines.published.sets import COCO_STUFF10K

MadeUp = Callable[[int, int, bool], float]
QUICK_FILES = Path(__file__).parents[3] / "configs" / "quick"


@pytest.mark.parametrize("part", ["stage1", "stage2"])
def test_the_small_settings_are_those_of_configs_quick(part: str) -> None:
    there = yaml.safe_load((QUICK_FILES / f"{part}.yaml").read_text("utf-8"))
    there.pop("data")
    assert QUICK[part] == there


def test_the_published_kappa_comes_out_for_photographs_like_the_published_ones(data: Fingerprint) -> None:
    assert choose_kappa(data)[0] == COCO_STUFF10K.kappa


@pytest.mark.parametrize(
    ("oracle", "most", "frequency", "classes", "kappa"),
    [
        (15, 25, 156, 171, 50),
        (3, 40, 156, 171, 50),  # an image has 40 labels
        (40, 60, 900, 1284, 100),
        (15, 25, 30, 171, 30),  # the most frequent 30 do for all images
        (15, 25, 156, 20, 20),  # there are no more
    ],
)
def test_kappa_by_hand(data: Fingerprint, oracle: int, most: int, frequency: int, classes: int, kappa: int) -> None:
    known = replace(
        data, kappa_oracle=(1, oracle), labels_most=most, kappa_frequency=(1, frequency), classes=classes
    )  # fmt: skip
    assert choose_kappa(known)[0] == kappa


def test_a_gpu_gets_the_recipe_of_the_nearest_vocabulary_with_its_epochs(data: Fingerprint) -> None:
    found = start(data, gpu=True, backbone=None, weights=None)
    assert found.name == "configs/coco_stuff10k" and found.crop == 512
    loops = {part: settings["loop"] for part, settings in found.settings.items()}
    assert loops["stage2"]["steps"] == 40_000 and loops["stage1"]["steps"] == 80 * (9_000 // 64)
    assert lengths("stage2", COCO_STUFF10K, replace(data, train=4_500))["steps"] == 20_000
    assert lengths("stage2", COCO_STUFF10K, replace(data, train=10))["steps"] == 1_000


def test_a_weight_file_needs_its_backbone_where_a_recipe_has_two(data: Fingerprint) -> None:
    with pytest.raises(UserError, match="name it with --backbone"):
        start(data, gpu=True, backbone=None, weights="file")
    found = start(data, gpu=False, backbone=None, weights="file")
    assert all(settings["backbone"]["weights"] == "file" for settings in found.settings.values())


def test_another_backbone_is_taken_at_the_stride_of_the_recipe(data: Fingerprint) -> None:
    found = start(data, gpu=False, backbone="resnet18", weights=None)
    assert found.settings["stage1"]["backbone"] == {"name": "resnet18", "frozen": None}
    assert found.settings["stage2"]["backbone"] == {"name": "resnet18", "frozen": None, "level": 16}
    plain = start(data, gpu=False, backbone="vit_tiny_patch16_384", weights=None)
    assert "level" not in plain.settings["stage2"]["backbone"]
    with pytest.raises(UserError, match="resnet19"):
        start(data, gpu=False, backbone="resnet19", weights=None)


@pytest.mark.usefixtures("made_up_memory")
def test_crops_are_no_larger_than_the_median_image(data: Fingerprint, laptop: Machine) -> None:
    begin = start(data, gpu=False, backbone=None, weights=None)
    small = replace(data, median_size=(100, 70))
    choice, _ = choose("stage2", begin, small, laptop)
    assert choice.settings["augment"] | {"crop": 96, "short_side": 96} == choice.settings["augment"]
    assert choice.settings["inference"]["short_side"] == 96
    assert "70 pixels" in choice.reasons["augment.crop"]
    told, _ = choose("stage2", begin, small, laptop, crop=64)
    assert told.settings["augment"]["crop"] == 64


@pytest.mark.usefixtures("made_up_memory")
def test_half_precision_is_chosen_where_it_is_faster(data: Fingerprint, laptop: Machine) -> None:
    fast = replace(laptop, tflops={"fp32": 0.1, "bf16": 0.2})

    def chosen(backbone: str, here: Machine) -> str:
        begin = start(data, gpu=False, backbone=backbone, weights=None)
        return choose("stage2", begin, data, here, crop=64)[0].config().loop.precision

    assert [chosen("resnet18", here) for here in (laptop, fast)] == ["fp32", "bf16"]
    assert chosen("mobilenetv2_100", fast) == "fp32"


@pytest.mark.usefixtures("made_up_memory")
def test_large_vocabularies_are_scored_in_chunks_and_ranked_in_linear_time(data: Fingerprint, gpu: Machine) -> None:
    large = replace(data, classes=3_000, kappa_frequency=(2_000, 2_500))
    begin = start(large, gpu=True, backbone="vit_tiny_patch16_384", weights=None)
    stage1, _ = choose("stage1", begin, large, gpu, crop=64)
    joint, _ = choose("joint", begin, large, gpu, crop=64)
    assert stage1.settings["head"]["chunk"] == stage1.config().loss.negatives == 1_024
    assert joint.settings["labels"]["options"] == {"attend": "patches", "pooled": 8}


def vit(batch: int = 8, crop: int = 256) -> Choice:
    backbone = {"name": "vit_tiny_patch16_384", "frozen": False}
    settings = {**QUICK["stage2"], "backbone": backbone, "augment": {"crop": crop, "short_side": crop}}
    return Choice("stage2", {**settings, "loop": {"batch_size": batch}})


@pytest.fixture
def least_room(made_up_memory: MadeUp) -> MadeUp:
    """Memory of a machine in which so many images fit just so, with the margin."""
    return lambda crop, images, again: made_up_memory(crop, images, again) / (1 - MARGIN) + 1e-6


@pytest.mark.parametrize(("images", "again"), [(8, False), (4, False), (1, False), (8, True), (2, True), (1, True)])
def test_memory_decides_about_micro_batches_and_only_then_about_checkpointing(
    data: Fingerprint, laptop: Machine, made_up_memory: MadeUp, least_room: MadeUp, images: int, again: bool
) -> None:
    choice = vit(crop=512)
    found = fit(choice, data, replace(laptop, memory_mib=least_room(512, images, again)))
    assert found.total == made_up_memory(512, images, again)
    assert choice.settings["loop"]["accumulate"] == 8 // images
    assert choice.settings["backbone"].get("checkpointing", False) is again


def test_what_cannot_fit_is_refused_with_what_would(data: Fingerprint, laptop: Machine, least_room: MadeUp) -> None:
    tight = replace(laptop, memory_mib=least_room(128, 1, True))
    with pytest.raises(UserError, match=r"one image of 512 pixels at a time takes .* --crop 128 fits"):
        fit(vit(crop=512), data, tight)
    with pytest.raises(UserError, match="give --memory of that much, or a smaller --backbone"):
        fit(vit(), data, replace(laptop, memory_mib=1.0))


def test_a_backbone_with_batch_normalisation_is_not_computed_again(
    data: Fingerprint, laptop: Machine, least_room: MadeUp
) -> None:
    choice = vit(crop=512)
    choice.settings["backbone"] = {"name": "resnet18", "frozen": False}
    with pytest.raises(UserError, match="one image of 512 pixels"):
        fit(choice, data, replace(laptop, memory_mib=least_room(512, 1, True)))


def test_few_micro_batches_are_tried() -> None:
    asked = []

    def memory(images: int) -> float:
        asked.append(images)
        return 100 + 10.0 * images

    assert list(sizes(64, memory, 185.0)) == [64, 8, 4, 2, 1]
    assert asked == [1, 2]
