"""docs/hosts.md from the result files: a page that helps to choose a host.

    python benchmarks/hosts.py

Words are in hosts_words.py, and each part is a module beside this one that reads its own result file and says so where
that is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hosts_accuracy
import hosts_choice
import hosts_cost
import hosts_encoder_only

from pipelines.results_doc import Cell, ResultTable, Section, read_results, write_results

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "hosts.md"
COSTS = "benchmarks/results/cost.json"
SET, SCHEMES = "coco_stuff10k", ("baseline", "joint")


def sections() -> list[Section]:
    return [section for part in PARTS for section in part()]


def overview() -> Iterator[Section]:
    """What each host is for, and its size in the published configurations."""
    hosts = hosts_choice.present()
    listed = "\n".join(
        f"- **{host.title}** (`host.kind: {host.kind}`; on: {host.on}; label branch: {host.branch}). {host.words}"
        for host in hosts
    )
    about = (
        "A host is the segmentation network on the backbone. All take a ranking from any source, and the schemes and "
        "commands are the same for all of them ([method.md](method.md#hosts)). What differs is what they are for:"
    )
    table = ResultTable(
        ("network", "K", "ranks", "pixels", "parameters, M", "GMACs", "activations in training, MiB"),
        tuple(size_rows([host.kind for host in hosts])), ("python benchmarks/published.py",), (COSTS,),
        "Counted for one image; parameters with the label branch. `kappaseg cost` has all of them.",
    )  # fmt: skip
    yield Section("The hosts", (about, listed))
    sizes = (
        "The recipes for COCO-Stuff10k with all labels (baseline) and in the joint scheme, at full size; none of them "
        "has been trained here."
    )
    yield Section("Their size in the recipes", (sizes,), (table,))


def size_rows(kinds: list[str]) -> Iterator[tuple[Cell, ...]]:
    """The recipes of each host for one data set, plain and joint."""
    networks: dict[str, Any] = {network["name"]: network for network in read_results(ROOT / COSTS)["networks"]}
    for kind in kinds:
        for name, found in networks.items():
            stem = name.removeprefix(f"{SET}/")
            if name != stem and stem.startswith(f"{kind}_") and stem.endswith(SCHEMES):
                yield (
                    stem, found["k"], found["kappa"], found["image_size"], found["parameters"] / 1e6,
                    found["macs"] / 1e9, found["training"]["activations"] / 2**20,
                )  # fmt: skip


PARTS: tuple[Callable[[], Iterable[Section]], ...] = (
    overview,
    hosts_choice.sections,
    hosts_accuracy.sections,
    hosts_accuracy.objects,
    hosts_cost.sections,
    hosts_encoder_only.sections,
)


def main() -> None:
    write_results(DOCUMENT, sections(), title="Choosing a host")


if __name__ == "__main__":
    main()
