"""Ranking sources. A segmentation network never knows which one it is fed by.

One module per source with `build(inputs: SourceInputs) -> Source` and `ALL_RANKS` (whether it may give more than κ
labels); adding a source is adding a file here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.parts import part
from kappaseg_core.ranking import OwnRanking, Ranking
from kappaseg_core.structures import Scene


class Source(Protocol):
    """Where rankings come from.

    image_ids: B names.   mask: i64 [B, H, W], the truth, which only an oracle may look at; None where there is none.
    image: u8 [3, H, W], the one whole image that is asked for; None in training, where batches hold crops.
    Gives a Ranking on the CPU with at most `kappa` ranks where the source has a choice, or an OwnRanking where the
    network is to rank.
    fingerprint: of what it reads, recorded with a run that trains on it.
    """

    @property
    def fingerprint(self) -> str: ...

    def __call__(
        self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None
    ) -> Ranking | OwnRanking: ...


@dataclass(frozen=True)
class SourceInputs:
    """What a source may be built from."""

    kappa: int
    class_names: tuple[str, ...]
    splits: dict[str, str]
    """split name → fingerprint of its images, for the splits that will be asked for"""
    cache: Path
    """directory of the label cache"""
    model: str | None = None
    """fingerprint of the classifier that made it; None = any"""
    setting: str = "source.kappa"
    """where κ is from"""
    url: str | None = None
    """address of a ranking service"""
    service_cache: str | None = None
    """a cache of that service; None = it ranks images itself"""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def ranking_of(labels: NDArray[Any], scores: NDArray[Any]) -> Ranking:
    """Stored rows as rankings: labels of any integer type and scores of any float type, [n, κ] each."""
    ids = torch.from_numpy(labels).long()
    return Ranking(ids, torch.from_numpy(scores).float(), torch.ones_like(ids, dtype=torch.bool))


def scene_ranking(source: Source, scene: Scene) -> Ranking | OwnRanking:
    """The ranking of a whole scene."""
    return source([scene.image_id], torch.from_numpy(scene.mask).long()[None], torch.from_numpy(scene.image))


def build_source(kind: str, inputs: SourceInputs) -> Source:
    """The source module `kind`, built. Raises UserError for an unknown kind or a κ beyond the vocabulary."""
    module = source_module(kind)
    if inputs.kappa > inputs.num_classes and not module.ALL_RANKS:
        raise UserError(f"{inputs.setting} = {inputs.kappa}, but there are only {inputs.num_classes} classes; lower it")
    source: Source = module.build(inputs)
    return source


def ranks_of(kind: str, kappa: int, num_classes: int) -> int:
    """The most ranks that a source gives: κ, or K for one that may give all labels (ALL_RANKS in its module)."""
    return num_classes if source_module(kind).ALL_RANKS else min(kappa, num_classes)


def source_module(kind: str) -> ModuleType:
    return part(__name__, kind, defines="build", setting="source")
