"""The chains whose figures docs/results.md shows: every command of an experiment, one after the other.

    python benchmarks/experiments.py cocostuff171_mini --data DIR --weights FILE --work runs/experiments
    python benchmarks/experiments.py synthetic512 --work runs/experiments

DIR holds the data set's folder of that name. Commands are those a user types; what their runs leave behind is gathered
into benchmarks/results/NAME.json. An interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Experiment:
    """Commands of one chain; $DATA, $WEIGHTS, $OUT and $SEED are filled in, one chain per seed."""

    commands: tuple[str, ...]
    once: tuple[str, ...] = ()
    """further commands, for the first seed alone"""
    seeds: tuple[int, ...] = (0, 1, 2)


def folder_experiment(name: str, kappa: int, *, folds: int) -> Experiment:
    """Both stages, baseline and bound on a folder data set; once also out of fold, and with a pooled linear ranker."""
    config, given = f"configs/{name}", f"--data.root $DATA/{name}"
    trained = f"{given} --backbone.weights $WEIGHTS --loop.seed $SEED"
    stage1, rank = f"run-stage1 {config}/stage1.yaml {trained}", f"rank {config}/rank.yaml {given}"
    stage2 = f"run-stage2 {config}/stage2.yaml {trained} --out $OUT"
    commands = (
        f"{stage1} --out $OUT",
        f"{rank} --out $OUT",
        f"{stage2} --source.train complete",
        stage2,
        f"{stage2} --source.train oracle",
        "evaluate $OUT",
        "evaluate $OUT/stage2-complete --source.test oracle",
        f"evaluate $OUT/stage2-complete --source.test cache --source.test_kappa {kappa}",
        "predict $OUT/stage2-cache $IMAGE --to $OUT/predictions",
    )
    apart = "--source.cache $OUT/labels-out-of-fold"
    once = (
        f"{rank} --out $OUT --folds {folds} --cache $OUT/labels-out-of-fold",
        f"{stage2} {apart} --name out-of-fold",
        f"{stage2} {apart} --source.missed force --name out-of-fold-forced",
        f"{stage1} --out $OUT/pooled --head '{{preset: gap}}' --optim.lr 1.0e-3",
        f"{rank} --out $OUT/pooled",
        f"{stage2} --source.cache $OUT/pooled/labels --name pooled-ranker",
        "evaluate $OUT/stage2-out-of-fold",
        "evaluate $OUT/stage2-out-of-fold-forced",
        "evaluate $OUT/stage2-pooled-ranker",
    )
    return Experiment(commands, once)


def synthetic_experiment() -> Experiment:
    """The two stages against the plain baseline at equal steps, on scenes made by the program itself."""
    config, given = "configs/synthetic512", "--out $OUT"
    stage2 = f"run-stage2 {config}/stage2.yaml {given} --loop.seed $SEED"
    query2label = "{preset: fast, width: 128, ffn: 256, heads: 4, decoder_layers: 1}"
    stage1 = f"run-stage1 {config}/stage1.yaml --loop.seed $SEED"
    return Experiment(
        (
            f"{stage1} {given}",
            f"rank {config}/rank.yaml {given}",
            f"{stage2} --source.train complete",
            stage2,
            f"{stage2} --source.train oracle",
            "evaluate $OUT",
            "evaluate $OUT/stage2-complete --source.test oracle",
            "evaluate $OUT/stage2-complete --source.test cache --source.test_kappa 50",
        ),
        (
            f"{stage1} --out $OUT/query2label --head '{query2label}' --optim.lr 1.5e-3",
            f"rank {config}/rank.yaml --out $OUT/query2label",
            f"run-stage2 {config}/stage2.yaml --out $OUT/query2label --loop.seed $SEED",
            "evaluate $OUT/query2label/stage2-cache",
        ),
    )


EXPERIMENTS = {
    "cocostuff171_mini": folder_experiment("cocostuff171_mini", 25, folds=4),
    "ccp59": folder_experiment("ccp59", 20, folds=4),
    "synthetic512": synthetic_experiment(),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--weights", type=Path, default=Path("mobilenetv2_100.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--seeds", type=int, nargs="+")
    given = parser.parse_args(arguments)
    experiment = EXPERIMENTS[given.name]
    chains = []
    for seed in given.seeds or experiment.seeds:
        out = given.work / given.name / f"seed{seed}"
        commands = experiment.commands + (experiment.once if seed == experiment.seeds[0] else ())
        steps = [run(c, out, seed, given.data, given.weights) for c in commands]
        chains.append({"seed": seed, "steps": steps, **gathered(out)})
        write(given.name, {"name": given.name, "machine": machine(), "chains": chains})


def run(command: str, out: Path, seed: int, data: Path, weights: Path) -> dict[str, Any]:
    """One command, unless it was done before; its wall and processor seconds."""
    log = out / "commands.json"
    done = json.loads(log.read_text("utf-8")) if log.exists() else {}
    if command not in done:
        finished = (out / (trained_by(command) or "none") / "summary.json").exists()
        fill = {
            "$IMAGE": first_image(data / out.parent.name),
            "$OUT": out,
            "$SEED": seed,
            "$DATA": data,
            "$WEIGHTS": weights,
        }
        words = shlex.split(command)
        for name, value in fill.items():
            words = [word.replace(name, str(value)) for word in words]
        print("kappaseg", *words, flush=True)
        started, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "pipelines.cli", *words], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        processor = after.children_user + after.children_system - before.children_user - before.children_system
        done[command] = {
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": None if finished else round(processor, 1),  # what an earlier command spent is not known here
        }
        log.write_text(json.dumps(done, indent=1) + "\n", "utf-8")
    trained = trained_by(command)
    return {"command": f"kappaseg {command}", "trains": trained and trained.as_posix(), **done[command]}


def first_image(folder: Path) -> str:
    """The first photo of a data set; nothing for scenes that are no files."""
    return str(min((folder / "images").iterdir())) if folder.is_dir() else ""


def trained_by(command: str) -> Path | None:
    """The run that a command trains, as its folder below $OUT; None for other commands."""
    words = command.split()
    given = dict(pairwise(words))
    if words[0] not in ("run-stage1", "run-stage2"):
        return None
    out = Path(given["--out"].replace("$OUT", "."))
    if words[0] == "run-stage1":
        return out / "stage1"
    return out / f"stage2-{given.get('--name', given.get('--source.train', 'cache'))}"


def gathered(out: Path) -> dict[str, Any]:
    """What the runs in an output folder say of themselves: summaries, evaluations, quality of the caches."""
    from label_cache import LabelCache
    from pipelines.look_up import coverage_curves

    runs: dict[str, Any] = {}
    for record in sorted(out.rglob("summary.json")):
        values = json.loads(record.read_text("utf-8"))
        runs[record.parent.relative_to(out).as_posix()] = {k: v for k, v in values.items() if k != "run"} | {
            "evaluations": [evaluation(path) for path in sorted(record.parent.glob("evaluation-*.json"))]
        }
    caches = {
        path.parent.relative_to(out).as_posix(): coverage_curves(LabelCache.open(path.parent))
        for path in sorted(out.rglob("manifest.json"))
    }
    return {"runs": runs, "caches": caches}


def evaluation(path: Path) -> dict[str, Any]:
    """An evaluation without its per-class figures."""
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    values["absent"] = len(values["absent"])
    return {name: value for name, value in values.items() if name not in ("class_iou", "run")}


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    import torch

    model = next((line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), "unknown")
    return {
        "cpu": model, "cores": os.cpu_count(), "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip


def cpu_lines() -> list[str]:
    source = Path("/proc/cpuinfo")
    return source.read_text("utf-8").splitlines() if source.exists() else []


def write(name: str, values: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(values, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
