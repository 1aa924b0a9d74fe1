"""`kappaseg data prepare NAME --source DIR --to DIR`: a published data set in the layout that everything here reads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kappaseg_core.config import override
from kappaseg_core.errors import UserError
from kappaseg_core.scenes.in_parallel import cores
from kappaseg_core.scenes.prepared import Prepared
from kappaseg_core.scenes.preparing import Job, prepare
from kappaseg_core.scenes.published import published_set, set_names
from pipelines.tables import show_table

#: Flawed scenes that are shown: one wrong archive makes one per image.
FEW = 10
#: what is assumed of a folder's masks where nothing is said (folder.Options.ignore)
USUAL_IGNORE = 255


def prepare_data(arguments: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> int:
    """Prepare the set `arguments.root` and print what there is now and what to do next. Gives the exit status."""
    if arguments.destination or arguments.splits:
        odd = repr(arguments.destination) if arguments.destination else "--splits"
        raise UserError(f"data prepare takes no {odd}; see kappaseg data prepare --help")
    published_set(arguments.root)  # whose names come before any other mistake
    if not arguments.source or not arguments.to:
        raise UserError(
            f"data prepare needs two folders; write kappaseg data prepare {arguments.root} --source DIR --to DIR"
        )
    workers = cores() if arguments.workers is None else arguments.workers
    if workers < 1:
        raise UserError(f"--workers {workers}, wanted at least 1")
    source, to = Path(arguments.source).resolve(), Path(arguments.to)
    job = Job(arguments.root, options_of(settings), source, to, arguments.photos or "link")
    prepared = prepare(job, workers=workers, partial=bool(arguments.partial))
    if prepared.flaws:
        refuse_flawed(prepared.flaws, to)
    show_prepared(prepared, to)
    return 0


def options_of(settings: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """--options.name value as {name: value}; the set checks them. Raises UserError for other settings."""
    values: dict[str, Any] = {"options": {}}
    for name, text in settings:
        if not name.startswith("options."):
            raise UserError(f"unknown setting {name}; data prepare takes --options.NAME VALUE, the variants of a set")
        override(values, name, text)
    options: dict[str, Any] = values["options"]
    return options


def show_sets() -> None:
    """A line for each set there is."""
    rows = []
    for name in set_names():
        module = published_set(name)
        published = module.published(module.Options())
        images = " + ".join(f"{count:,} {split}" for split, count in published.splits.items())
        rows.append([name, module.TITLE, str(published.num_classes), images])
    show_table("kappaseg data prepare NAME --source DIR --to DIR", ["NAME", "what it is", "K", "images"], rows)
    print("What to download, where to put it, and the variants of a set (--options.…): docs/data.md")


def show_prepared(prepared: Prepared, to: Path) -> None:
    """What the folder holds, and the commands that follow."""
    rows = [[split, f"{images}", f"{prepared.published[split]}"] for split, images in prepared.images.items()]
    show_table(f"{prepared.title} in {to}", ["split", "images", "published"], rows)
    if prepared.left_out:
        print(f"note: {prepared.left_out} images were left out, whose photo or label map is not there (--partial)")
    ignore = "" if prepared.ignore == USUAL_IGNORE else f" --data.options.ignore {prepared.ignore}"
    chosen = ignore + (" --data.options.instances instances" if prepared.things else "")
    words = f"--data.root {to}{ignore}"
    print(f"{prepared.made} images made now; {'complete' if prepared.complete else 'not the complete set'}. Next:")
    print(f"  kappaseg data check {to}{chosen}")
    print(f"  kappaseg data pack {to} {to}.h5{chosen}")
    print(f"  kappaseg run-stage1 CONFIG {words} --out RUN")


def refuse_flawed(flaws: Sequence[str], to: Path) -> NoReturn:
    """Print the first flawed scenes, then raise the UserError that counts them."""
    for flaw in flaws[:FEW]:
        print(f"  {flaw}")
    more = f" (the first {FEW} are shown)" if len(flaws) > FEW else ""
    images = "1 image" if len(flaws) == 1 else f"{len(flaws)} images"
    raise UserError(
        f"{images} could not be prepared{more}; {to} keeps the others: mend the source, give the command again"
    )
