"""The network's own label branch ranks: the joint scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kappaseg_core.ranking import OwnRanking
from stage2_segmentation.sources import SourceInputs

ALL_RANKS = False


@dataclass(frozen=True)
class Joint:
    kappa: int
    fingerprint: str = "joint"

    def __call__(self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None) -> OwnRanking:
        return OwnRanking(self.kappa)


def build(inputs: SourceInputs) -> Joint:
    return Joint(inputs.kappa)
