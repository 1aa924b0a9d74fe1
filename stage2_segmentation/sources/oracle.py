"""The labels that the ground truth holds: the upper bound of label selection (Fig. 3, He et al. 2022).

In training the truth is that of the crop, in evaluation that of the image, as in the released ground-truth head.
paper, release: ascending label ids, one image per batch; ours: the same order, any batch size (padded ranks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import Ranking, oracle_ranking, presence
from stage2_segmentation.sources import SourceInputs

ALL_RANKS = True


@dataclass(frozen=True)
class Oracle:
    num_classes: int
    fingerprint: str = "oracle"

    def __call__(self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None) -> Ranking:
        if mask is None:
            raise UserError(f"source oracle needs the truth, and {image_ids[0]} has no mask; use another source")
        return oracle_ranking(presence(mask.cpu(), self.num_classes))


def build(inputs: SourceInputs) -> Oracle:
    return Oracle(inputs.num_classes)
