"""One published configuration: the settings of a step, where they are from, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.published.numbers import NOTHING, PUBLISHED, Published
from pipelines.published.sets import DataSet

Settings = dict[str, Any]
RANKER = "query2label_swin_l"  # the recipe whose rankings the independent scheme uses
RELEASED = "as released"
#: the asymmetric loss of the release
ASYMMETRIC: Settings = {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.05, "focus_gradient": True, "reduction": "mean"}
NO_CODE = "from the paper's text; no code was released for this scheme"


@dataclass(frozen=True)
class Recipe:
    """configs/SET/STEM.yaml.

    settings: what stands in the file, nested plain values.   origin: where they are from.   notes: for its header.
    backbone: its short name, vit_b, and weights: timm's name of its published weights; None for a step without one.
    network: stem of the recipe of this set whose cost is that of this one; its own stem for a network of its own.
    own: the network is ours, and its cost is shown beside those of which a number was published.
    """

    data: DataSet
    stem: str
    title: str
    verb: Literal["run-stage1", "rank", "run-stage2", "run-joint"]
    settings: Settings
    origin: str
    notes: tuple[str, ...] = ()
    backbone: str | None = None
    weights: str | None = None
    network: str = ""
    own: bool = False

    @property
    def name(self) -> str:
        return f"{self.data.name}/{self.stem}"

    @property
    def path(self) -> str:
        return f"configs/{self.name}.yaml"

    @property
    def counted(self) -> str:
        """Name of the recipe whose network is counted for this one."""
        return f"{self.data.name}/{self.network or self.stem}"

    @property
    def published(self) -> Published:
        return PUBLISHED.get(self.name, NOTHING)


def scenes(data: DataSet, *, objects: bool = False) -> Settings:
    """objects: with the maps that tell them apart, where the set has these."""
    instances = {"instances": "instances"} if objects and data.objects else {}
    return {"kind": "folder", "options": {"ignore": data.ignore, **instances}}
