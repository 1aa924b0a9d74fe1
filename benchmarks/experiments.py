"""The chain of commands whose figures docs/results.md shows beside the benchmarks: the two stages against the plain
baseline at equal steps, on scenes made by the program itself.

    python benchmarks/experiments.py --work runs/experiments

Commands are those a user types; what their runs leave behind is gathered into benchmarks/results/synthetic512.json. An
interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipelines.bench.machine import machine

RESULTS = Path(__file__).parent / "results"


NAME = "synthetic512"
CONFIG, SEEDS = "configs/synthetic512", (0, 1, 2)
STAGE1 = f"run-stage1 {CONFIG}/stage1.yaml --loop.seed $SEED"
STAGE2 = f"run-stage2 {CONFIG}/stage2.yaml --out $OUT --loop.seed $SEED"
#: $OUT and $SEED are filled in, one chain per seed
COMMANDS = (
    f"{STAGE1} --out $OUT",
    f"rank {CONFIG}/rank.yaml --out $OUT",
    f"{STAGE2} --source.train complete",
    STAGE2,
    f"{STAGE2} --source.train oracle",
    "evaluate $OUT",
    "evaluate $OUT/stage2-complete --source.test oracle",
    "evaluate $OUT/stage2-complete --source.test cache --source.test_kappa 50",
)
QUERY2LABEL = "{preset: fast, width: 128, ffn: 256, heads: 4, decoder_layers: 1}"
#: further commands, for the first seed alone
ONCE = (
    f"{STAGE1} --out $OUT/query2label --head '{QUERY2LABEL}' --optim.lr 1.5e-3",
    f"rank {CONFIG}/rank.yaml --out $OUT/query2label",
    f"run-stage2 {CONFIG}/stage2.yaml --out $OUT/query2label --loop.seed $SEED",
    "evaluate $OUT/query2label/stage2-cache",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args(arguments)
    chains = []
    for seed in given.seeds:
        out = given.work / NAME / f"seed{seed}"
        steps = [run(command, out, seed) for command in COMMANDS + (ONCE if seed == SEEDS[0] else ())]
        chains.append({"seed": seed, "steps": steps, **gathered(out)})
        write({"name": NAME, "machine": machine(), "chains": chains})


def run(command: str, out: Path, seed: int) -> dict[str, Any]:
    """One command, unless it was done before; its wall and processor seconds."""
    log = out / "commands.json"
    done = json.loads(log.read_text("utf-8")) if log.exists() else {}
    if command not in done:
        finished = (out / (trained_by(command) or "none") / "summary.json").exists()
        words = [w.replace("$OUT", str(out)).replace("$SEED", str(seed)) for w in shlex.split(command)]
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


def write(values: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(values, indent=1, ensure_ascii=False)
    (RESULTS / f"{NAME}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
