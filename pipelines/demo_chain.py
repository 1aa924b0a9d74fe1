"""A finished demo as one record: where its products lie, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kappaseg_core.checkpoint import RunDirectory
from label_cache import LabelCache
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.evaluate import Evaluation


@dataclass(frozen=True)
class Chain:
    """A finished chain. stage2: source of rankings → configuration.

    scores: evaluations by source, and "told": the network trained on complete rankings, given the true labels at test.
    commands: step → shell line.   costs: step → seconds and peak_memory_mib, for steps that keep no record themselves.
    """

    out: Path
    stage1: Stage1Config
    rank: RankConfig
    stage2: Mapping[str, Stage2Config]
    scores: Mapping[str, Evaluation]
    commands: Mapping[str, str]
    costs: Mapping[str, Mapping[str, float]]

    @property
    def classifier(self) -> RunDirectory:
        return RunDirectory(self.out / "stage1")

    @property
    def cache(self) -> LabelCache:
        return LabelCache.open(self.out / "labels")

    @property
    def kappa(self) -> int:
        return round(self.scores["cache"].mean_kappa)

    def run(self, source: str) -> RunDirectory:
        return RunDirectory(self.out / self.stage2[source].run_name)
