"""All published configurations, and ours of hosts that the paper does not have, by data set."""

from __future__ import annotations

from pipelines.published.encoder_only import encoder_only
from pipelines.published.pixel_hosts import pixel_networks
from pipelines.published.query2label import classifiers
from pipelines.published.recipe import Recipe
from pipelines.published.segmenter import segmenters
from pipelines.published.sets import SETS

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for data in SETS
    for recipe in (*segmenters(data), *encoder_only(data), *pixel_networks(data), *classifiers(data))
}  # fmt: skip
