"""All published configurations, and ours of hosts that the paper does not have, by data set."""

from __future__ import annotations

from pipelines.published.encoder_only import encoder_only
from pipelines.published.mask_networks import mask_networks
from pipelines.published.pixel_hosts import pixel_networks
from pipelines.published.query2label import classifiers
from pipelines.published.recipe import Recipe
from pipelines.published.segmenter import segmenters
from pipelines.published.sets import PANOPTIC_SETS, SETS, DataSet


def recipes_of(data: DataSet) -> tuple[Recipe, ...]:
    """All recipes of a data set; where objects are told apart, those of networks that learn them."""
    pixelwise = () if data.objects else (*segmenters(data), *encoder_only(data), *pixel_networks(data))
    return (*pixelwise, *mask_networks(data), *classifiers(data))


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for data in (*SETS, *PANOPTIC_SETS) for recipe in recipes_of(data)
}  # fmt: skip
