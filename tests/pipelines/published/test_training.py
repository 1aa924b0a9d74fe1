"""Every recipe takes two optimiser steps: its committed file, with a small backbone on a miniature of its data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kappaseg_core.checkpoint import RunDirectory, Summary
from kappaseg_core.config import load_config
from kappaseg_core.seeding import seed_of
from pipelines.published.recipe import RANKER, Recipe
from pipelines.published.sets import ADE20K_PANOPTIC, COCO_STUFF10K, PANOPTIC_SETS, SETS, DataSet
from pipelines.published.table import RECIPES
from stage1_multilabel.classifier import build_classifier
from stage1_multilabel.config import RankConfig, Stage1Config
from stage1_multilabel.rank import rank_images
from stage1_multilabel.train import train_classifier
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.train import train_segmentation
from tests.settings_files import ROOT

SHORT = {"loop.steps": 2, "loop.batch_size": 2, "loop.eval_every": 2, "loop.log_every": 1, "loop.loader_workers": 0,
         "loop.device": "cpu"}  # fmt: skip
SMALL = {
    Stage1Config: {"backbone.kind": "small_cnn", "backbone.name": "8", "head.ffn": 16, "augment.image_size": 32},
    Stage2Config: {
        "backbone.name": "vit_tiny_patch16_224", "backbone.options": "{depth: 2, drop_path_rate: 0.1}",
        "augment.crop": 32, "augment.short_side": 32, "inference.short_side": 32, "inference.window": 32,
        "inference.stride": 32,
    },
}  # fmt: skip
SWIN = {
    "backbone.name": "swin_tiny_patch4_window7_224",
    "backbone.options": "{img_size: 32, embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], window_size: 4}",
}  # fmt: skip
QUERIES = {f"host.options.{name}": size for name, size in
           {"queries": 8, "width": 32, "layers": 3, "heads": 2, "ffn": 16}.items()}  # fmt: skip
#: further settings by the beginning of a recipe's name
NETWORKS: dict[str, dict[str, object]] = {
    "deeplabv3": {"backbone.name": "resnet10t", "backbone.options": "{}", "host.options.width": 8},
    "upernet_swin": {**SWIN, "host.options.width": 8},
    "maskformer_swin": {**SWIN, **QUERIES},
    "maskformer_resnet": {"backbone.name": "resnet10t", "backbone.options": "{}", **QUERIES},
    "mask2former": {
        **SWIN, **QUERIES, "host.options.encoder_layers": 1, "host.options.encoder_ffn": 16, "host.options.points": 16,
        "loop.precision": "fp32",
    },
    "upernet_beit": {
        "backbone.name": "beit_base_patch16_224", "host.options.width": 8, "host.options.blocks": "[0, 1, 2, 3]",
        "backbone.options": "{img_size: 32, depth: 4, embed_dim: 8, num_heads: 2}",
    },
}  # fmt: skip


def marked(recipe: Recipe) -> Any:
    """What differs from another recipe in sizes alone, which are reduced here, is slow."""
    of_another_set = "segmenter" not in recipe.stem and recipe.data is not COCO_STUFF10K
    if "former" in recipe.stem:
        of_another_set = recipe.stem.startswith("mask2former") and recipe.data is not ADE20K_PANOPTIC
    long = any(size in recipe.stem for size in ("vit_l", "vit_s")) or recipe.stem.endswith("80k")
    slow = long or (of_another_set and recipe.verb != "run-stage1")
    return pytest.param(recipe, id=recipe.name, marks=pytest.mark.slow if slow else ())


STAGE1 = [marked(recipe) for recipe in RECIPES.values() if recipe.verb == "run-stage1"]
STAGE2 = [marked(recipe) for recipe in RECIPES.values() if recipe.verb in ("run-stage2", "run-joint")]


def read(kind: Any, recipe: Recipe, data: Path, out: Path, **more: object) -> Any:
    """The committed settings, reduced."""
    given = {**(SHORT | SMALL[kind] if kind in SMALL else {}), "data.root": data, "out": out, **more}
    if "former" in recipe.stem and "labels" in recipe.settings:
        given["labels.options.width"] = 32
    if recipe.own:
        given |= {"host.options.blocks": 1, "loop.precision": "fp32"}
    return load_config(kind, ROOT / recipe.path, [(name, str(value)) for name, value in given.items()])


@pytest.fixture(scope="session")
def cache_of(
    miniature: Callable[[DataSet], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[DataSet], Path]:
    """The label cache of a miniature, made as the headers of the independent recipes say."""
    made: dict[str, Path] = {}

    def make(data: DataSet) -> Path:
        if data.name not in made:
            root, out = miniature(data), tmp_path_factory.mktemp("ranked")
            train_classifier(read(Stage1Config, RECIPES[f"{data.name}/{RANKER}"], root, out))
            rank_images(read(RankConfig, RECIPES[f"{data.name}/rank"], root, out, device="cpu"))
            made[data.name] = out / "labels"
        return made[data.name]

    return make


@pytest.mark.parametrize("recipe", STAGE2)
def test_a_recipe_of_stage_two_takes_two_steps(
    recipe: Recipe, miniature: Callable[[DataSet], Path], cache_of: Callable[[DataSet], Path], tmp_path: Path
) -> None:
    small = next((given for name, given in NETWORKS.items() if recipe.stem.startswith(name)), {})
    cached = {"source.cache": cache_of(recipe.data)} if recipe.settings["source"]["train"] == "cache" else {}
    config = read(Stage2Config, recipe, miniature(recipe.data), tmp_path, **cached, **small)
    summary = train_segmentation(config)
    torch.manual_seed(seed_of(config.loop.seed, "init"))
    start = build_segmentation(config, recipe.data.classes)
    assert summary.run == str(tmp_path / f"stage2-{recipe.stem}")
    check_steps(summary, start, parts=("backbone", "host", *(("branch",) if start.branch else ())))


@pytest.mark.parametrize("recipe", STAGE1)
def test_a_recipe_of_stage_one_takes_two_steps(
    recipe: Recipe, miniature: Callable[[DataSet], Path], tmp_path: Path
) -> None:
    config = read(Stage1Config, recipe, miniature(recipe.data), tmp_path)
    summary = train_classifier(config)
    torch.manual_seed(seed_of(config.loop.seed, "init"))
    size = config.augment.image_size
    start = build_classifier(config.backbone, config.head, num_classes=recipe.data.classes, image_size=size)
    check_steps(summary, start, parts=("backbone", "head.queries"))


@pytest.mark.parametrize("data", (*SETS, *PANOPTIC_SETS), ids=lambda data: data.name)
def test_the_recipe_that_ranks_writes_the_cache_of_a_set(data: DataSet, cache_of: Callable[[DataSet], Path]) -> None:
    assert (cache_of(data) / "manifest.json").is_file()


def check_steps(summary: Summary, start: nn.Module, *, parts: tuple[str, ...]) -> None:
    """Two steps with finite losses, after which something of each part is no more what it was."""
    lines = [line for line in RunDirectory(Path(summary.run)).metrics() if "loss" in line]
    assert summary.steps == 2 and len(lines) == 2
    assert all(math.isfinite(line["loss"]) and line["loss"] > 0 for line in lines)
    found = load_file(Path(summary.run) / "weights.safetensors")
    moved = {name for name, value in start.named_parameters() if not torch.equal(found[name], value)}
    assert all(any(name.startswith(part) for name in moved) for part in parts)
