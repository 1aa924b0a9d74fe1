"""Hours and memory of a recipe, estimated from its counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines.published.estimate import Load, estimate
from pipelines.published.recipe import Recipe
from pipelines.published.recipe_files import duration, load_of
from pipelines.published.table import RECIPES

JOINT = RECIPES["coco_stuff10k/segmenter_vit_b_joint"]
LOAD = Load(parameters=10**8, macs=10**11, activations=2**30)


def test_hours_by_hand() -> None:
    """40,000 steps of 8 images, thrice the forward pass, and ten evaluations of 1,000; 40 % of 67 TFLOP/s."""
    images = 3 * 40_000 * 8 + 10 * 1_000
    found = estimate(JOINT, LOAD)
    assert found.hours == pytest.approx(2 * 1e11 * images / (0.4 * 67e12) / 3600)
    assert found.images_per_second == pytest.approx(0.4 * 67e12 / 6e11)


def test_memory_by_hand() -> None:
    """SGD with momentum: three numbers a parameter; eight images."""
    assert estimate(JOINT, LOAD).gib == pytest.approx((12e8 + 8 * 2**30) / 2**30)


def test_memory_holds_one_micro_batch() -> None:
    """AdamW: four numbers a parameter; sixteen images in two goes."""
    found = estimate(RECIPES["ade20k/upernet_beit_l_baseline"], LOAD)
    assert found.gib == pytest.approx((16e8 + 8 * 2**30) / 2**30)


@pytest.mark.parametrize("name", ["parameters", "macs", "activations"])
def test_nothing_gets_cheaper_where_a_network_gets_larger(name: str) -> None:
    more = estimate(JOINT, replace(LOAD, **{name: 2 * getattr(LOAD, name)}))
    less = estimate(JOINT, LOAD)
    assert more.gib is not None and less.gib is not None
    assert more.hours >= less.hours and more.gib >= less.gib and (more.hours, more.gib) != (less.hours, less.gib)


def test_half_precision_takes_fewer_hours_and_less_memory() -> None:
    half, full = estimate(JOINT, LOAD, "bf16"), estimate(JOINT, LOAD)
    assert half.hours == pytest.approx(full.hours * 67 / 790)
    assert half.gib is not None and full.gib is not None and half.gib < full.gib


@pytest.mark.parametrize(("name", "side", "gib"), [("vit_b", 512, 4.2), ("vit_l", 640, 16.56)])
def test_memory_is_near_what_others_measured(name: str, side: int, gib: float, costs: list[dict[str, Any]]) -> None:
    """mmsegmentation's table of the Segmenter on ADE20K, one image a GPU. Its attention keeps more than a fused one,
    and its loss three maps of all labels."""
    recipe = RECIPES[f"ade20k/segmenter_{name}_baseline"]
    loop = {**recipe.settings["loop"], "batch_size": 1}
    alone: Recipe = replace(recipe, settings={**recipe.settings, "loop": loop})
    found = estimate(alone, load_of(recipe, costs)).gib
    maps = 3 * 4 * 150 * side**2 / 2**30
    assert found is not None and 0.4 * gib < found + maps < gib


def test_ranking_all_images_takes_less_than_training_on_them(costs: list[dict[str, Any]]) -> None:
    rank, train = (RECIPES[f"coco_lvis/{stem}"] for stem in ("rank", "query2label_swin_l"))
    load = load_of(train, costs)
    assert load == load_of(rank, costs)
    assert 0 < estimate(rank, load).hours < estimate(train, load, "fp32").hours


def test_durations_are_said_in_one_unit() -> None:
    assert [duration(h) for h in (0.001, 0.5, 2.04, 118.2)] == ["a minute", "30 minutes", "2.0 hours", "118 hours"]
