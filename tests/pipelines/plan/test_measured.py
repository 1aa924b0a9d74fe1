"""The estimate beside what a run takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kappaseg_core.config import load_config
from pipelines.plan.base import base_mib
from pipelines.plan.estimate import memory_of
from pipelines.plan.fingerprint import fingerprint_of
from pipelines.plan.machine import Machine
from stage2_segmentation.config import Stage2Config


@pytest.mark.slow
def test_a_run_takes_within_a_fifth_of_its_estimate(tmp_path: Path) -> None:
    settings = {
        "data": {"kind": "synthetic", "options": {"classes": 50, "size": 256, "train": 8, "val": 1}},
        "backbone": {"name": "vit_tiny_patch16_384", "frozen": False},
        "source": {"train": "complete"},
        "augment": {"crop": 256, "short_side": 256},
        "inference": {"short_side": 256},
        "loop": {"steps": 3, "batch_size": 8, "save_every": 2},
        "out": str(tmp_path),
    }
    file = tmp_path / "stage2.yaml"
    file.write_text(yaml.safe_dump(settings), "utf-8")
    config = load_config(Stage2Config, file)
    estimated = memory_of(config, fingerprint_of(config.data, tmp_path, 1), Machine("cpu", 0.0, base_mib(), {})).total
    subprocess.run([sys.executable, "-m", "pipelines.cli", "run-stage2", str(file)], check=True)
    summary = json.loads((tmp_path / "stage2-complete" / "summary.json").read_text("utf-8"))
    assert 0.8 < estimated / summary["peak_memory_mib"] < 1.2
