"""The file of a recipe: a header that says how it is run and what to expect, and its settings as YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from pipelines.published.estimate import Load, estimate, precision_of
from pipelines.published.recipe import RANKER, Recipe, Settings
from pipelines.published.table import RECIPES

WIDTH, ROOM = 120, 130  # characters of a line of the header, and of the settings
SCALES = "--inference.scales '[0.5,0.75,1,1.25,1.5,1.75]' --inference.flip true"
#: what is said beside a setting
COMMENTS = {
    "data.options.ignore": "ignore = mask value of unlabelled pixels",
    "backbone.mean": "RGB in [0, 1]",
    "source.kappa": "labels kept per image",
    "source.missed": "leave their pixels out of the loss",
    "labels.options.pooled": "cells a side that labels look at; 0 = all",
    "labels.weight": "of the label loss, beside 1 for the segmentation loss",
    "labels.weight_decay": "100 times that of the rest",
    "labels.prior": "start from random numbers",
    "augment.crop": "side in pixels",
    "augment.image_size": "side in pixels",
    "loop.batch_size": "over all GPUs",
}
#: the same for networks that learn segments
OF_SEGMENTS = {"source.missed": "their segments are not looked for"}


def recipe_text(recipe: Recipe, load: Load) -> str:
    """The whole file.   load: of the network that it trains or uses."""
    return "\n".join([*header(recipe, load), *body(recipe.settings, comments_of(recipe))]) + "\n"


def comments_of(recipe: Recipe) -> Mapping[str, str]:
    kind = recipe.settings.get("host", {}).get("kind")
    return COMMENTS | OF_SEGMENTS if kind in ("maskformer", "mask2former") else COMMENTS


def load_of(recipe: Recipe, networks: Iterable[Mapping[str, Any]]) -> Load:
    """The load of a recipe's network, among those of benchmarks/results/cost.json."""
    found = next(network for network in networks if network["name"] == recipe.counted)
    return Load(**found["training"])


def header(recipe: Recipe, load: Load) -> Iterator[str]:
    yield from comment(f"{recipe.data.title}, {recipe.data.classes:,} labels. {recipe.title}.")
    yield from (f"#   {line}" for line in commands(recipe))
    yield from comment(f"Settings: {recipe.origin}.{weights(recipe)}")
    yield from comment(published(recipe))
    yield from comment(expected(recipe, load))
    for note in recipe.notes:
        yield from comment(note)
    yield from comment("Written by `python benchmarks/published.py`; a copy is the place for changes.")


def comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def commands(recipe: Recipe) -> Iterator[str]:
    """From the downloaded files to the numbers."""
    yield f"kappaseg data prepare {recipe.data.name} --source DOWNLOADS --to DATA"
    for trained in with_ranker(recipe):
        if trained.backbone:
            yield import_of(trained)
        yield command(trained)
    if recipe.verb in ("run-stage2", "run-joint"):
        run = f"RUN/stage2-{recipe.settings['name']}"
        yield f"kappaseg evaluate {run}" + (f" [{SCALES}]" if recipe.published.flipped else "")


def with_ranker(recipe: Recipe) -> list[Recipe]:
    """The recipes that are run for this one, itself the last."""
    ranker, ranking = (RECIPES[f"{recipe.data.name}/{stem}"] for stem in (RANKER, "rank"))
    if recipe.verb == "rank":
        return [ranker, recipe]
    return [ranker, ranking, recipe] if recipe.settings.get("source", {}).get("train") == "cache" else [recipe]


def import_of(recipe: Recipe) -> str:
    """The command that makes the weight file of its backbone."""
    if "augreg" in (recipe.weights or "") and not recipe.own:
        return f"kappaseg import-weights augreg DOWNLOADED.npz {recipe.backbone}.safetensors"
    name = recipe.settings["backbone"]["name"]
    return f"kappaseg import-weights timm DOWNLOADED.safetensors {recipe.backbone}.safetensors --backbone.name {name}"


def command(recipe: Recipe) -> str:
    given = f" --backbone.weights {recipe.backbone}.safetensors" if recipe.backbone else ""
    return f"kappaseg {recipe.verb} {recipe.path} --data.root DATA --out RUN{given}"


def weights(recipe: Recipe) -> str:
    """Which published weights the backbones start from."""
    named = [f"{one.backbone} = timm's {one.weights}" for one in with_ranker(recipe) if one.weights]
    return f" Weights: {', '.join(named)}."


def published(recipe: Recipe) -> str:
    """What paper and release found."""
    found = recipe.published
    if recipe.verb == "rank":
        return ""
    if found.panoptic is not None:
        return f"Published: PQ {found.panoptic:g} % ({found.where})."
    if found.quality is None:
        return "No published number."
    numbers = f"{'mAP' if recipe.verb == 'run-stage1' else 'mIoU'} {found.quality:g} %"
    if found.flipped is not None:
        numbers += f", {found.flipped:g} % over six scales and mirror images"
    if found.ranked is not None:
        numbers += f"; mIoU {found.ranked:g} % of the independent scheme on these rankings"
    return f"Published: {numbers} ({found.where})."


def expected(recipe: Recipe, load: Load) -> str:
    """Size, time and memory."""
    kind = precision_of(recipe)
    found = estimate(recipe, load)
    text = f"{load.parameters:,} parameters, {load.macs / 1e9:.1f} GMACs an image. One data-centre GPU, estimated and "
    text += f"not measured (pipelines/published/estimate.py): {duration(found.hours)} in {kind}"
    if recipe.verb == "rank":
        return f"{text}."
    rate = f"{found.images_per_second:,.0f}"
    if kind == "fp32":
        faster = estimate(recipe, load, "bf16")
        text += f", {duration(faster.hours)} with --loop.precision bf16"
        rate += f" ({faster.images_per_second:,.0f})"
    return f"{text}; {found.gib:,.0f} GiB; loaders have to deliver {rate} images/s."


def duration(hours: float) -> str:
    if hours < 1:
        minutes = max(1, round(60 * hours))
        return "a minute" if minutes == 1 else f"{minutes} minutes"
    return f"{hours:.1f} hours" if hours < 10 else f"{hours:,.0f} hours"


def body(settings: Settings, comments: Mapping[str, str] = COMMENTS) -> Iterator[str]:
    """A line for every group of settings; one for each setting of a group that needs more room.

    comments: dotted name of a setting → what is said beside it.
    """
    for name, value in settings.items():
        inner = value if isinstance(value, dict) else {}
        words = {key: comment_on(f"{name}.{key}", setting, comments) for key, setting in inner.items()}
        said = "; ".join(f"{key}: {text}" for key, text in words.items() if text)
        line = beside(f"{name}: {flow(value)}", said)
        if len(line) <= ROOM:
            yield line
            continue
        yield f"{name}:"
        for key, setting in inner.items():
            yield beside(f"  {key}: {flow(setting)}", words[key])


def comment_on(name: str, setting: Any, comments: Mapping[str, str]) -> str:
    """What is said beside a setting; of a group, beside its first one."""
    path = f"{name}.{next(iter(setting), '')}" if isinstance(setting, dict) else name
    return comments.get(path, "")


def beside(line: str, said: str) -> str:
    return f"{line}  # {said}" if said else line


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
