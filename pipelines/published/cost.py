"""`kappaseg cost`: parameters and MACs of the published configurations, beside what paper and release state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from kappaseg_core.cost import Cost
from kappaseg_core.errors import UserError
from pipelines.published.networks import Network, backbone, network_of
from pipelines.published.numbers import NOTHING, Published
from pipelines.published.query2label import BACKBONES
from pipelines.published.recipe import RANKER, Recipe
from pipelines.published.table import RECIPES
from pipelines.tables import show_table

#: backbones alone, of stage one
ALONE = {f"backbone/{entry.name}": entry for entry in BACKBONES}
COLUMNS = ("network", "parameters", "paper, M", "+/-", "GMACs", "as paper", "paper", "+/-")
MEANING = (
    "GMACs: all matrix products, convolutions and attention products of one image of the size trained on, by torch's "
    "counter; of deformable attention the linear layers alone. As paper: in the count that the paper calls FLOPs, "
    "which leaves out most of the attention. Paper: as printed there, parameters in millions and 10⁹ operations. +/-: "
    "ours less that."
)

#: why the paper has more of DeepLabV3 and UPerNet
ONE_MORE = "near what one more linear layer in the label branch makes, an unused option there"


@dataclass(frozen=True)
class Row:
    """One network. kappa: labels that pixels are classified among; None for a network that segments nothing.

    image_size: pixels a side of the image that is counted.   note: what keeps it from the published number.
    """

    name: str
    title: str
    classes: int | None
    kappa: int | None
    image_size: int
    cost: Cost
    published: Published = NOTHING
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """The row as `--json` prints it."""
        cost, paper = self.cost, self.published
        return {
            "name": self.name, "set": self.title, "k": self.classes, "kappa": self.kappa, "image_size": self.image_size,
            "parameters": cost.parameters, "macs": cost.macs, "macs_paper": cost.macs_paper,
            "paper_parameters_millions": paper.parameters, "paper_gmacs": paper.gmacs,
            "difference_parameters_millions": less(cost.parameters / 1e6, paper.parameters),
            "difference_gmacs": less(cost.macs_paper / 1e9, paper.gmacs),
            "note": self.note,
        }  # fmt: skip


def less(ours: float, theirs: float | None) -> float | None:
    """The difference of two numbers with two decimals, as those of the paper are printed."""
    return None if theirs is None else round(round(ours, 2) - theirs, 2) or 0.0


def row_names(only: str = "") -> list[str]:
    """Names of the networks of which something was published, and of our own ones, that hold this word.

    Raises UserError where there is none.
    """
    whole = [name for name, recipe in RECIPES.items() if is_shown(recipe)]
    found = [name for name in (*whole, *ALONE) if only in name]
    if not found:
        raise UserError(
            f"--only {only}: no published configuration has this in its name; give coco_lvis, vit_l or joint"
        )
    return found


def is_shown(recipe: Recipe) -> bool:
    return (recipe.own or recipe.published is not NOTHING) and recipe.counted == recipe.name


def rows(names: list[str]) -> Iterator[Row]:
    """Each network built and counted."""
    for name in names:
        if name in ALONE:
            entry = ALONE[name]
            network = backbone(entry.name, entry.image_size)
            yield Row(name, "backbones alone", None, None, entry.image_size, network.cost)
        else:
            yield row_of(RECIPES[name], network_of(RECIPES[name]))


def row_of(recipe: Recipe, network: Network) -> Row:
    """The cost of a recipe as it is deployed: with the classifier that ranks, where the network does not."""
    cost, note = network.cost, ""
    if recipe.stem.endswith("_independent"):
        ranker = ranker_cost(recipe.data.name)
        note = f"{recipe.name} is a sum, {cost.parameters:,} of stage two and {ranker.parameters:,} of {RANKER}."
        if recipe.published.parameters is not None:
            note += " The sizes of the paper's classifier were not published, so that its number cannot be reproduced."
        cost += ranker
    if recipe.published.added is not None:
        note = growth(recipe, cost, recipe.published.added)
    elif recipe.published.remark:
        note = f"{recipe.name}: {recipe.published.remark}."
    return Row(
        recipe.name, recipe.data.title, recipe.data.classes, network.ranks, network.image_size, cost, recipe.published,
        note,
    )  # fmt: skip


def growth(recipe: Recipe, cost: Cost, printed: float) -> str:
    """What ranking adds to the plain network, here and as printed."""
    plain = network_of(RECIPES[recipe.name.removesuffix("joint") + "baseline"]).module
    ours = cost.parameters - sum(parameter.numel() for parameter in plain.parameters())
    return (
        f"{recipe.name}: ranking adds {ours / 1e6:.2f} M parameters, as in the release's code; the paper prints "
        f"{printed:.2f} M, {recipe.published.remark or ONE_MORE}."
    )


@cache
def ranker_cost(name: str) -> Cost:
    """Of the classifier of a data set that the independent scheme ranks with."""
    return network_of(RECIPES[f"{name}/{RANKER}"]).cost


def show_cost(only: str = "", *, as_json: bool = False) -> None:
    """Print the published configurations, as tables or as JSON."""
    found = rows(row_names(only))
    if as_json:
        print(json.dumps([row.plain() for row in found], indent=1))
        return
    for title, group in groupby(found, heading):
        together = list(group)
        show_table(title, COLUMNS, [cells(row.plain()) for row in together])
        for note in filter(None, (row.note for row in together)):
            print(f"{note}\n")
    print(MEANING)


def heading(row: Row) -> str:
    return row.title if row.classes is None else f"{row.title}, {row.classes:,} labels"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of COLUMNS, from its plain form."""
    return [
        row["name"].partition("/")[2].removeprefix("segmenter_"), f"{row['parameters']:,}",
        fixed(row["paper_parameters_millions"]), fixed(row["difference_parameters_millions"], sign="+"),
        fixed(row["macs"] / 1e9), fixed(row["macs_paper"] / 1e9), fixed(row["paper_gmacs"]),
        fixed(row["difference_gmacs"], sign="+"),
    ]  # fmt: skip


def fixed(value: float | None, *, sign: str = "") -> str:
    """Two decimals, or a dash; nothing has no sign."""
    return "–" if value is None else f"{value:{sign if value else ''}.2f}"
