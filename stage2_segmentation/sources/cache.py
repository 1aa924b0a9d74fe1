"""Rankings from a label cache: the independent two-stage scheme.

The ranking is that of the whole image; a crop does not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import Ranking
from label_cache import Expectation, LabelCache
from stage2_segmentation.sources import SourceInputs, ranking_of

ALL_RANKS = False


@dataclass(frozen=True)
class Cached:
    cache: LabelCache
    kappa: int

    @property
    def fingerprint(self) -> str:
        return self.cache.digest

    def __call__(self, image_ids: Sequence[str], mask: Tensor | None, image: Tensor | None = None) -> Ranking:
        found = self.cache.lookup(list(image_ids), self.kappa)
        return ranking_of(found.labels, found.scores)


def build(inputs: SourceInputs) -> Cached:
    cache = LabelCache.open(inputs.cache, expect=Expectation(class_names=inputs.class_names, dataset=inputs.splits))
    key = cache.key
    if inputs.model is not None and key.folds == 0 and key.model != inputs.model:
        raise UserError(
            f"cache {inputs.cache} is from classifier {key.model[:12]}, the one beside it is {inputs.model[:12]}; "
            f"rank again into another --cache, or say --source.cache {inputs.cache} to use it as it is"
        )
    cache.lookup([], inputs.kappa)  # a κ that the cache does not store is refused now, not at the first batch
    return Cached(cache, inputs.kappa)
