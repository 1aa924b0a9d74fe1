"""The settings files under configs/, and what each of them is for, told by the beginning of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kappaseg_core.config import load_config
from stage1_multilabel.config import RankConfig, Stage1Config
from stage2_segmentation.config import Stage2Config

ROOT = Path(__file__).parents[1]
KINDS = {
    "stage1": Stage1Config, "query2label": Stage1Config, "rank": RankConfig, "stage2": Stage2Config,
    "segmenter": Stage2Config, "encoder_only": Stage2Config, "deeplabv3": Stage2Config, "upernet": Stage2Config,
    "maskformer": Stage2Config, "mask2former": Stage2Config,
}  # fmt: skip
PATHS = sorted((ROOT / "configs").rglob("*.yaml"))
#: those of one step each, from ROOT
FILES = [str(path.relative_to(ROOT)) for path in PATHS if not path.stem.startswith("benchmark")]
BENCHMARKS = [str(path.relative_to(ROOT)) for path in PATHS if path.stem.startswith("benchmark")]


def kind_of(name: str) -> Any:
    """The configuration that a file of one step holds."""
    (kind,) = (kind for start, kind in KINDS.items() if Path(name).stem.startswith(start))
    return kind


def verb_of(name: str) -> str:
    """The verb that a file of one step is written for."""
    kind = kind_of(name)
    if kind is Stage2Config:
        return "run-joint" if load_config(Stage2Config, ROOT / name).source.train == "joint" else "run-stage2"
    return "run-stage1" if kind is Stage1Config else "rank"
