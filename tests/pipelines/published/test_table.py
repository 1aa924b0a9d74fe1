"""The table of published configurations, and the files that are made of it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from kappaseg_core.config import build, load_config
from pipelines.arguments import apart, split_settings
from pipelines.cli import build_parser
from pipelines.published.numbers import PUBLISHED
from pipelines.published.recipe import Recipe
from pipelines.published.recipe_files import load_of, recipe_text
from pipelines.published.sets import COCO_STUFF10K, COLOURS, PANOPTIC_SETS, SETS
from pipelines.published.table import RECIPES
from stage2_segmentation.config import Stage2Config
from tests.settings_files import FILES, ROOT, kind_of, verb_of

SCHEMES = ("baseline", "joint", "oracle", "independent")
ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)


def stage2(name: str) -> Stage2Config:
    return load_config(Stage2Config, ROOT / "configs" / f"{name}.yaml")


@ALL
def test_the_committed_file_is_what_the_table_gives(recipe: Recipe, costs: list[dict[str, Any]]) -> None:
    """Where this fails after a change of the table: python benchmarks/published.py."""
    text = recipe_text(recipe, load_of(recipe, costs))
    assert (ROOT / recipe.path).read_text("utf-8") == text
    assert max(len(line) for line in text.splitlines() if not line.startswith("#   ")) <= 130


@ALL
def test_a_file_is_read_as_the_settings_of_the_table(recipe: Recipe) -> None:
    read = yaml.safe_load((ROOT / recipe.path).read_text("utf-8"))
    kind = kind_of(recipe.path)
    assert build(kind, read) == build(kind, recipe.settings)
    assert verb_of(recipe.path) == recipe.verb


@ALL
def test_every_file_that_a_command_of_a_header_takes_was_made_by_one_before(recipe: Recipe) -> None:
    lines = (ROOT / recipe.path).read_text("utf-8").splitlines()
    there = {"DOWNLOADS", "DOWNLOADED.npz", "DOWNLOADED.safetensors"}
    for line in lines:
        if line.startswith("#   kappaseg "):
            takes, makes = files_of(line.removeprefix("#   kappaseg ").replace("[--", "--").removesuffix("]"))
            assert takes <= there, line
            there |= makes
    last = f"stage2-{recipe.stem}" if recipe.verb in ("run-stage2", "run-joint") else LAST[recipe.verb]
    assert f"RUN/{last}" in there


LAST = {"run-stage1": "stage1", "rank": "labels"}


def files_of(command: str) -> tuple[set[str], set[str]]:
    """What a command takes, and what it makes. Raises UserError for words that the command line does not know."""
    words = shlex.split(command)
    parser = build_parser()
    own, settings = apart(words, parser.verbs[words[0]].flags())
    given = parser.parse_args(own)
    if given.verb == "data":
        return {given.source}, {given.to}
    if given.verb == "import-weights":
        return {str(given.source)}, {str(given.destination)}
    if given.verb == "evaluate":
        load_config(Stage2Config, ROOT / "configs/quick/stage2.yaml", split_settings(settings))
        return {given.what}, set()
    config = load_config(kind_of(given.config), ROOT / given.config, split_settings(settings))
    if given.verb == "rank":
        return {config.data.root, f"{config.out}/stage1"}, {f"{config.out}/labels"}
    cached = given.verb == "run-stage2" and config.source.train == "cache"
    takes = {config.data.root, config.backbone.weights, *([f"{config.out}/labels"] if cached else [])}
    return takes, {f"{config.out}/{'stage1' if given.verb == 'run-stage1' else config.run_name}"}


def test_no_file_of_an_earlier_table_is_left() -> None:
    folders = {f"configs/{data.name}/" for data in (*SETS, *PANOPTIC_SETS)}
    there = {name for name in FILES if name[: name.rindex("/") + 1] in folders}
    assert there == {recipe.path for recipe in RECIPES.values()}


def test_every_set_has_both_sizes_of_every_scheme_three_classifiers_and_a_ranking() -> None:
    for data in SETS:
        stems = [f"segmenter_vit_{size}_{scheme}" for size in "bl" for scheme in SCHEMES]
        stems += [f"{stem}_80k" for stem in stems] if data is COCO_STUFF10K else []
        stems += ["query2label_resnet101", "query2label_tresnet_l", "query2label_swin_l", "rank"]
        assert {f"{data.name}/{stem}" for stem in stems} <= RECIPES.keys()


def test_the_networks_of_table_7_have_every_scheme_on_the_sets_of_the_paper() -> None:
    sets = {
        "deeplabv3_resnet101": ("coco_stuff10k", "ade20k", "coco_lvis"),
        "upernet_swin_b": ("coco_stuff10k", "ade20k", "coco_lvis"),
        "upernet_beit_l": ("coco_stuff10k", "ade20k"),
    }
    wanted = {f"{data}/{stem}_{scheme}" for stem, names in sets.items() for data in names for scheme in SCHEMES}
    assert wanted == {name for name in RECIPES if "deeplab" in name or "upernet" in name}


def test_mask_networks_have_every_scheme_on_the_sets_of_paper_and_release() -> None:
    stems = {
        "ade20k": ("maskformer_swin_b", "mask2former_swin_b", "mask2former_swin_l"),
        "ade20k_panoptic": ("maskformer_resnet50", "mask2former_swin_l"),
        "coco_panoptic": ("mask2former_swin_b",),
    }
    wanted = {f"{data}/{stem}_{scheme}" for data, names in stems.items() for stem in names for scheme in SCHEMES}
    assert wanted == {name for name in RECIPES if "former" in name}
    rankers = {f"{data.name}/{stem}" for data in PANOPTIC_SETS for stem in ("query2label_swin_l", "rank")}
    assert rankers == {name for name in RECIPES if "panoptic" in name and "former" not in name}


def test_every_published_number_belongs_to_a_recipe() -> None:
    assert PUBLISHED.keys() <= RECIPES.keys()
    assert all(found.where for found in PUBLISHED.values())


@ALL
def test_a_recipe_is_counted_with_a_recipe_that_trains_the_same_network(recipe: Recipe) -> None:
    owner = RECIPES[recipe.counted]
    assert owner.counted == owner.name
    if recipe.verb != "rank":
        assert architecture(recipe) == architecture(owner)


def architecture(recipe: Recipe) -> list[object]:
    labels = recipe.settings.get("labels", {})
    named = [recipe.settings.get(name) for name in ("backbone", "head", "class_tokens")]
    return [*named, labels.get("head"), labels.get("options")]


# A few recipes in words: what the release says of them


def test_the_joint_recipe_of_coco_stuff_is_the_released_one() -> None:
    config = stage2("coco_stuff10k/segmenter_vit_b_joint")
    assert (config.source.kappa, config.labels.weight, config.labels.options) == (50, 10.0, {"pooled": 8})
    assert (config.labels.loss.gamma_neg, config.labels.loss.clip, config.labels.loss.reduction) == (0.0, 0.0, "mean")
    assert (config.loop.steps, config.loop.batch_size, config.loop.eval_every) == (40_000, 8, 4_000)
    assert (config.optim.lr, config.optim.min_lr, config.optim.weight_decay) == (1e-3, 1e-5, 0.0)
    assert config.source.treatment == "ignore" and not config.labels.prior
    assert stage2("coco_stuff10k/segmenter_vit_b_joint_80k").labels.weight == 5.0


@pytest.mark.parametrize(
    ("name", "kappa", "weight", "decays", "pooled", "crop", "steps"),
    [
        ("ade20k", 50, 10.0, True, 8, 512, 160_000),
        ("pascal_context", 25, 5.0, True, 8, 480, 80_000),
        ("ade20k_full", 100, 100.0, False, 0, 512, 160_000),
        ("coco_lvis", 100, 300.0, True, 0, 512, 320_000),
    ],
)
def test_the_other_joint_recipes_are_the_released_ones(
    name: str, kappa: int, weight: float, decays: bool, pooled: int, crop: int, steps: int
) -> None:
    config = stage2(f"{name}/segmenter_vit_b_joint")
    assert (config.source.kappa, config.labels.weight, config.labels.options) == (kappa, weight, {"pooled": pooled})
    assert (config.optim.weight_decay, config.labels.weight_decay) == ((1e-6, 1e-4) if decays else (0.0, None))
    loss = config.labels.loss
    assert (loss.gamma_neg, loss.gamma_pos, loss.clip, loss.focus_gradient) == (2.0, 0.0, 0.05, True)
    assert (config.augment.crop, config.inference.window, config.loop.steps) == (crop, crop, steps)


def test_the_header_of_the_long_recipe_of_vit_l_says_what_is_not_of_its_release() -> None:
    """It has the asymmetric loss of ViT-L's 40,000 steps, and the weight of ViT-B's 80,000."""
    long, short = (stage2(f"coco_stuff10k/segmenter_vit_l_joint{end}") for end in ("_80k", ""))
    assert (long.labels.loss, long.labels.weight) == (short.labels.loss, 5.0)
    recipe = RECIPES["coco_stuff10k/segmenter_vit_l_joint_80k"]
    assert recipe.origin == "not in the release, which has 40,000 steps"
    assert "Label loss × 5, as released for ViT-B; the paper lists × 10 alone." in recipe.notes


def test_recipes_of_convolutional_heads_are_the_released_ones() -> None:
    deeplab, swin, beit = (
        stage2(name)
        for name in (
            "coco_stuff10k/deeplabv3_resnet101_joint", "ade20k/upernet_swin_b_joint", "ade20k/upernet_beit_l_joint"
        )
    )  # fmt: skip
    assert (deeplab.optim.lr, deeplab.optim.weight_decay, deeplab.optim.min_lr) == (1e-2, 5e-4, 1e-4)
    assert (deeplab.loop.steps, deeplab.loop.batch_size, deeplab.labels.lr) == (20_000, 16, 1.0)
    assert (swin.optim.lr, swin.optim.weight_decay, swin.labels.lr, swin.labels.weight) == (6e-5, 1e-2, 0.1, 10.0)
    assert (beit.optim.lr, beit.optim.weight_decay, beit.labels.lr, beit.labels.weight) == (2e-5, 5e-2, 0.1, 5.0)
    assert (beit.augment.crop, beit.inference.window, beit.inference.stride) == (640, 640, 426)
    for config in (deeplab, swin, beit):
        assert config.source.kappa == 50 and config.labels.loss.gamma_neg == 2.0
    plain = stage2("ade20k/upernet_swin_b_baseline")
    assert (plain.source.train, plain.host.options) == ("complete", {"rank_scale": "none"})


def test_recipes_of_mask2former_are_the_released_ones() -> None:
    names = ("ade20k/mask2former_swin_b", "ade20k_panoptic/mask2former_swin_l", "coco_panoptic/mask2former_swin_b")
    base, large, coco = (stage2(f"{name}_joint") for name in names)
    for config in (base, large, coco):
        assert (config.optim.lr, config.optim.backbone_lr, config.optim.weight_decay) == (1e-4, 0.1, 0.05)
        assert (config.optim.clip, config.labels.lr, config.labels.loss.gamma_neg) == (0.01, 0.1, 2.0)
        assert config.labels.options == {"classes": "own", "width": 512, "pooled": 0, "projection": "linear"}
    assert [config.source.kappa for config in (base, large, coco)] == [150, 150, 133]
    assert [config.labels.weight for config in (base, large, coco)] == [10.0, 10.0, 100.0]
    assert [config.loop.steps for config in (base, large, coco)] == [160_000, 160_000, 368_750]
    assert [config.augment.crop for config in (base, large, coco)] == [640, 640, 1024]
    assert (large.host.options, base.host.options) == ({"queries": 200, "target": "objects"}, {})
    assert (large.data.options["instances"], "instances" in base.data.options) == ("instances", False)
    plain = stage2("ade20k/mask2former_swin_b_baseline")
    assert (plain.source.train, plain.host.options) == ("complete", {"rank_scale": "none"})


def test_recipes_of_maskformer_are_those_of_its_own_release() -> None:
    swin, resnet = (stage2(f"{name}_baseline") for name in ("ade20k/maskformer_swin_b", RESNET))
    assert (swin.optim.lr, swin.optim.backbone_lr, swin.optim.weight_decay) == (6e-5, 1.0, 0.01)
    assert (resnet.optim.lr, resnet.optim.backbone_lr, resnet.optim.weight_decay) == (1e-4, 0.1, 1e-4)
    assert (swin.loop.steps, resnet.loop.steps, resnet.loop.precision) == (160_000, 720_000, "fp32")
    assert resnet.host.options == {"norm_stages": False, "target": "objects", "rank_scale": "none"}
    assert (resnet.inference.segments.score, resnet.inference.segments.least) == (0.7, 0.0)
    assert "Published: PQ 34.7 % (README)." in (ROOT / "configs" / f"{RESNET}_baseline.yaml").read_text("utf-8")


RESNET = "ade20k_panoptic/maskformer_resnet50"


@pytest.mark.parametrize(("data", "value"), [("coco_stuff10k", 255), ("ade20k_full", 65535), ("coco_lvis", 65535)])
def test_vocabularies_beyond_8_bits_have_masks_of_16(data: str, value: int) -> None:
    assert stage2(f"{data}/segmenter_vit_b_baseline").data.options == {"ignore": value}


def test_colours_are_those_of_the_release() -> None:
    """Printed there in 0..255."""
    mean, std = ([round(255 * value, 3) for value in values] for values in COLOURS["imagenet"])
    assert (mean, std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert [255 * value for value in COLOURS["half"][0]] == [127.5] * 3


def test_eighty_epochs_of_stage_one_are_counted_in_whole_batches() -> None:
    loop = RECIPES["coco_stuff10k/query2label_swin_l"].settings["loop"]
    assert (loop["eval_every"], loop["steps"]) == (140, 80 * 140)  # 9,000 images, 64 at a time


def test_the_table_needs_no_torch() -> None:
    code = "import sys, pipelines.published.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
