"""Kill the program at random moments, start it again, and compare what it leaves with an undisturbed run.

    python benchmarks/kill.py --work runs/kill                 20 kills of each step
    python benchmarks/kill.py --work runs/kill --kills 3

Steps: training stage one, ranking, packing, training stage two. Each trial starts from a copy of the folder that the
steps before left, is killed with SIGKILL at a moment drawn evenly over the step's undisturbed duration, and is started
again with the same command until it ends. Every file must then be the same, byte by byte, but for the log, and the
seconds and memory in summary.json. The result is benchmarks/results/kill.json; exit status 1 where a file differed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "kill.json"
CLASSES, SIZE = 12, 32
DATA = f"--data.kind synthetic --data.options.classes {CLASSES} --data.options.size {SIZE}"
IMAGES = "--data.options.train 48 --data.options.val 12"
TRAINING = "--loop.save_every 7 --loop.log_every 3 --loop.eval_every 20 --loop.ema 0.9"
STEPS = {
    "stage one": f"run-stage1 CONFIG {DATA} {IMAGES} --backbone.kind small_cnn --backbone.name 16 --augment.image_size"
    f" {SIZE} --head.preset fast --head.width 32 --head.ffn 32 --head.heads 2 --loop.precision fp32"
    f" --loop.steps 60 --loop.batch_size 8 --out OUT {TRAINING}",
    "ranking": f"rank CONFIG {DATA} --data.options.train 1500 --data.options.val 100 --part_images 100 --out OUT",
    "packing": "data pack FOLDER OUT/packed.h5",
    "stage two": f"run-stage2 CONFIG {DATA} {IMAGES} --backbone.kind small_cnn --backbone.name 16 --augment.crop {SIZE}"
    f" --augment.short_side {SIZE} --inference.short_side {SIZE} --source.train oracle --source.kappa 4"
    f" --loop.steps 60 --loop.batch_size 8 --optim.kind adamw --out OUT {TRAINING}",
}
EXPECTED_TO_DIFFER = ("seconds", "peak_memory_mib")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/kill"))
    parser.add_argument("--kills", type=int, default=20, help="per step")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    results = trials(given.work, given.kills, given.seed)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(json.dumps(results["steps"], indent=1))
    return int(any(step["different"] for step in results["steps"].values()))


def trials(work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Per step: kills that hit a running program, files compared, files that differed."""
    shutil.rmtree(work, ignore_errors=True)
    base = work / "base"
    base.mkdir(parents=True)
    write_folder(work / "folder", images=1200)
    command_line()
    (work / "empty.yaml").write_text("{}\n", "utf-8")
    moments, results = random.Random(seed), {}
    for name, command in STEPS.items():
        before = copied(base, work / "before")
        started = time.perf_counter()
        assert finish(start(work, command, base)) == 0, f"{name} failed; see {work / 'output.txt'}"
        duration, wanted = time.perf_counter() - started, contents(base)
        trials_done, hits, different = 0, 0, set()
        while hits < kills:  # a kill that came after the end does not count
            trials_done += 1
            out = copied(before, work / "trial")
            child = start(work, command, out)
            time.sleep(moments.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
            hits += finish(child) == -signal.SIGKILL
            assert finish(start(work, command, out)) == 0, f"{name} did not end after a kill; see {work / 'output.txt'}"
            found = contents(out)
            different |= {f for f in wanted.keys() | found.keys() if wanted.get(f) != found.get(f)}
        results[name] = {
            "seconds": round(duration, 2), "trials": trials_done, "killed_while_running": hits,
            "files": len(wanted), "different": sorted(different),
        }  # fmt: skip
        print(name, results[name], flush=True)
    return {"command": f"python benchmarks/kill.py --kills {kills} --seed {seed}", "steps": results}


def start(work: Path, command: str, out: Path) -> int:
    """Run a command of the program in a child process that writes into WORK/output.txt; gives the child's id.

    A fork, so that every trial does not spend its seconds on importing torch (which must be idle in the parent).
    """
    words = command.replace("CONFIG", str(work / "empty.yaml")).replace("FOLDER", str(work / "folder")).split()
    words = [word.replace("OUT", str(out)) for word in words]
    run = command_line()
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    quiet = os.open(work / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    status = 1
    try:
        status = run(words)
    finally:
        os._exit(status)


def command_line() -> Callable[[Sequence[str]], int]:
    """The program's entry point, with everything that it would import already there."""
    import torch

    from pipelines.cli import main as run

    for module in ("pipelines.data", "stage1_multilabel.rank", "stage1_multilabel.train", "stage2_segmentation.train"):
        importlib.import_module(module)
    torch.set_num_threads(1)
    return run


def write_folder(root: Path, *, images: int) -> None:
    """Synthetic scenes as a folder data set: JPEG photos, 8-bit masks, two splits."""
    from PIL import Image

    from kappaseg_core.scenes.synthetic import Options, open_scenes

    scenes = open_scenes("", "train", Options(classes=CLASSES, train=images, size=SIZE))
    for part in ("images", "masks", "splits"):
        (root / part).mkdir(parents=True)
    for index, name in enumerate(scenes.image_ids):
        scene = scenes[index]
        Image.fromarray(scene.image.transpose(1, 2, 0)).save(root / "images" / f"{name}.jpg")
        Image.fromarray(scene.mask.astype("uint8")).save(root / "masks" / f"{name}.png")  # -1 becomes 255
    (root / "classes.txt").write_text("\n".join(scenes.class_names) + "\n", "utf-8")
    for split, names in (("train", scenes.image_ids[:-100]), ("val", scenes.image_ids[-100:])):
        (root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n", "utf-8")


def finish(child: int) -> int:
    """Wait for a child; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def contents(out: Path) -> dict[str, str]:
    """File → digest of what two equal runs must agree on. Files left over from an interruption count as well."""
    return {
        str(p.relative_to(out)): digest(p, out) for p in sorted(out.rglob("*")) if p.is_file() and p.name != "log.txt"
    }


def digest(path: Path, out: Path) -> str:
    """Of the bytes; the output folder's own name, seconds and memory left out."""
    data = path.read_bytes()
    if path.suffix in (".json", ".yaml"):
        text = re.sub(rf"{re.escape(str(out.parent))}/(base|before|trial)", "OUT", data.decode("utf-8"))
        if path.name == "summary.json":
            text = json.dumps({k: v for k, v in json.loads(text).items() if k not in EXPECTED_TO_DIFFER})
        data = text.encode("utf-8")
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
