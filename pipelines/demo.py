"""`kappaseg demo`: the whole story on synthetic scenes, in minutes, without a download.

Every step calls what the verb of its name calls, with the settings files that it leaves in OUT/settings; the report
names the command, so that each step can be done again, or done differently.

    OUT/settings/        stage1.yaml, rank.yaml, stage2.yaml
    OUT/stage1/          the classifier                     OUT/labels/       its label cache
    OUT/stage2-SOURCE/   a segmentation network per source of rankings
    OUT/images/          some validation images as files    OUT/predictions/  what `kappaseg predict` makes of them
    OUT/costs.json       seconds and memory of the steps that keep no record themselves
    OUT/report.html      everything on one page
    OUT/overview.png     the first validation image as one picture
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from PIL import Image

from kappaseg_core.config import load_config
from kappaseg_core.feeding import one_thread
from kappaseg_core.files import write_atomic, write_text, writing
from kappaseg_core.progress import memory_mib, say
from kappaseg_core.scenes import open_scenes
from pipelines.demo_chain import Chain
from pipelines.demo_report import demo_report, overview
from pipelines.evaluate import evaluate_runs
from pipelines.predict import predict_images
from pipelines.report import Report, write_report
from stage1_multilabel.config import RankConfig, Stage1Config
from stage1_multilabel.rank import rank_images
from stage1_multilabel.train import train_classifier
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.train import train_segmentation

SETTINGS = Path(__file__).parent / "demo_settings"
SOURCES = ("complete", "cache", "oracle")
PICTURES = 3  # validation images that are shown; the first ones, so that nobody has picked them

#: what `--quick` lays over every settings file, and over those of the trainings
QUICK_DATA = (("data.options.train", "96"), ("data.options.val", "24"))
QUICK_LOOP = (("loop.steps", "20"), ("loop.log_every", "5"))

T = TypeVar("T")


def demo(out: Path, *, quick: bool = False) -> str:
    """Train, rank, segment, measure and report in `out`; gives what was found, in plain words, and where to look.

    quick: a few steps on a few images, to see in a minute that everything runs; its numbers mean nothing.
    A demo that was stopped goes on where it stood. Raises UserError where `out` holds one of the other length.
    """
    with one_thread():  # by which tensors as small are computed fastest, above all beside other work
        report = run(out, quick)
    write_report(out / "report.html", report)
    picture = overview(report.examples[0], report.class_names)
    write_atomic(out / "overview.png", partial(picture.save, format="PNG"))
    return "\n".join(["", *report.findings, "", f"everything on one page: {out / 'report.html'}"])


def run(out: Path, quick: bool) -> Report:
    """Every step in turn, and what they say."""
    settings, costs = Settings(out, quick), Costs(out / "costs.json")
    settings.write()
    say("demo 1/5  stage one: learn which labels an image holds")
    stage1 = settings.load(Stage1Config, "stage1")
    train_classifier(stage1)

    say("demo 2/5  rank the labels of every image")
    rank = settings.load(RankConfig, "rank")
    costs.measure("rank", lambda: rank_images(rank))

    say("demo 3/5  stage two, three times: among all labels, among the best ranked, among those that are there")
    stage2 = {name: settings.load(Stage2Config, "stage2", ("source.train", name)) for name in SOURCES}
    for config in stage2.values():
        train_segmentation(config)

    say("demo 4/5  measure, and predict a few images")
    runs = {name: out / config.run_name for name, config in stage2.items()}
    found = costs.measure("evaluate", lambda: evaluate_runs(list(runs.values()), []))
    told = costs.measure("told", lambda: evaluate_runs([runs["complete"]], [("source.test", "oracle")]))
    images = write_images(out / "images", stage2["cache"])
    costs.measure("predict", lambda: predict_images(runs["cache"], images, out / "predictions"))

    say("demo 5/5  write the report")
    scores = dict(zip([*runs, "told"], found + told, strict=True))
    chain = Chain(out, stage1, rank, stage2, scores, commands(settings, runs), costs.read())
    return demo_report(chain, pictures=PICTURES, quick=quick)


@dataclass(frozen=True)
class Settings:
    """The settings files in OUT/settings and what is laid over them."""

    out: Path
    quick: bool

    def write(self) -> None:
        folder = self.out / "settings"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for source in sorted(SETTINGS.glob("*.yaml")):
            write_text(folder / source.name, source.read_text("utf-8"))

    def load(self, kind: type[T], name: str, *overrides: tuple[str, str]) -> T:
        """The configuration of a step, as its command line would give it."""
        return load_config(kind, self.file(name), self.overrides(name, overrides))

    def command(self, verb: str, name: str, *overrides: tuple[str, str]) -> str:
        words = [word for setting, value in self.overrides(name, overrides) for word in (f"--{setting}", value)]
        return shlex.join(["kappaseg", verb, str(self.file(name)), *words])

    def file(self, name: str) -> Path:
        return self.out / "settings" / f"{name}.yaml"

    def overrides(self, name: str, more: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        quick = [*QUICK_DATA, *(QUICK_LOOP if name != "rank" else ())] if self.quick else []
        return [("out", str(self.out)), *more, *quick]


@dataclass(frozen=True)
class Costs:
    """Seconds and memory by step, in a file, so that a demo that was stopped still knows them.

    Where a step was started more than once, its longest start counts: the later ones find it done.
    """

    file: Path

    def measure(self, step: str, work: Callable[[], T]) -> T:
        """What `work` gives."""
        started = time.perf_counter()
        result = work()
        seconds, known = round(time.perf_counter() - started, 2), self.read()
        if seconds > known.get(step, {}).get("seconds", 0.0):
            known[step] = {"seconds": seconds, "peak_memory_mib": memory_mib()}
            write_text(self.file, json.dumps(known, indent=1) + "\n")
        return result

    def read(self) -> dict[str, dict[str, float]]:
        if not self.file.exists():
            return {}
        known: dict[str, dict[str, float]] = json.loads(self.file.read_text("utf-8"))
        return known


def commands(settings: Settings, runs: Mapping[str, Path]) -> dict[str, str]:
    """The shell line of every step: what a user would type for the same result."""
    out = settings.out
    predict = shlex.join(["kappaseg", "predict", str(runs["cache"])])
    return {
        "stage1": settings.command("run-stage1", "stage1"),
        "rank": settings.command("rank", "rank"),
        **{name: settings.command("run-stage2", "stage2", ("source.train", name)) for name in runs},
        "evaluate": shlex.join(["kappaseg", "evaluate", str(out)]),
        "told": shlex.join(["kappaseg", "evaluate", str(runs["complete"]), "--source.test", "oracle"]),
        "predict": f"{predict} {shlex.quote(str(out / 'images'))}/*.png --to {shlex.quote(str(out / 'predictions'))}",
    }


def write_images(folder: Path, config: Stage2Config) -> list[Path]:
    """The first validation images as PNG files, as if they had come from anywhere."""
    scenes = open_scenes(config.data, config.data.val)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{image_id}.png" for image_id in scenes.image_ids[:PICTURES]]
    for index, file in enumerate(files):
        pixels = scenes.image(index).transpose(1, 2, 0)
        write_atomic(file, partial(Image.fromarray(pixels).save, format="PNG"))
    return files
