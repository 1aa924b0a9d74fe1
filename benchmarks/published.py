"""Costs of the published configurations → benchmarks/results/cost.json, and from these the recipes under configs/.

python benchmarks/published.py

About a minute and a half on one core. `kappaseg cost` counts and prints those of which a number was published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kappaseg_core.files import write_text
from pipelines.published.cost import ALONE, row_of, rows
from pipelines.published.networks import network_of
from pipelines.published.recipe_files import load_of, recipe_text
from pipelines.published.table import RECIPES
from pipelines.results_doc import read_results

HOME = Path(__file__).parents[1]
COSTS = HOME / "benchmarks" / "results" / "cost.json"


def main() -> None:
    found = {"command": "python benchmarks/published.py", "networks": [*networks()]}
    write_text(COSTS, json.dumps(found, indent=1) + "\n")
    write_recipes(read_results(COSTS)["networks"])


def networks() -> Iterator[dict[str, Any]]:
    """Every network of a recipe and the backbones alone, as `kappaseg cost --json`; training: without a ranker."""
    for recipe in RECIPES.values():
        if recipe.counted == recipe.name:
            network = network_of(recipe)
            yield {**row_of(recipe, network).plain(), "training": asdict(network.load())}
    yield from (row.plain() for row in rows([*ALONE]))


def write_recipes(networks: list[dict[str, Any]]) -> None:
    for recipe in RECIPES.values():
        path = HOME / recipe.path
        path.parent.mkdir(exist_ok=True)
        write_text(path, recipe_text(recipe, load_of(recipe, networks)))


if __name__ == "__main__":
    main()
