"""All published configurations, by data set."""

from __future__ import annotations

from pipelines.published.pixel_hosts import pixel_networks
from pipelines.published.query2label import classifiers
from pipelines.published.recipe import Recipe
from pipelines.published.segmenter import segmenters
from pipelines.published.sets import SETS

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for data in SETS for recipe in (*segmenters(data), *pixel_networks(data), *classifiers(data))
}  # fmt: skip
