"""What docs/performance.md shows of several backbones against K (benchmarks/cost_matrix.py), and its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kappaseg_core.files import write_text
from pipelines.bench.figures import STYLES, cost_figure
from pipelines.bench.turns import Record, seconds
from pipelines.results_doc import Cell, ResultTable, Section, format_number, read_results

ROOT = Path(__file__).parents[1]
FILE = "benchmarks/results/cost_matrix.json"
FIGURES = "performance"
COMMAND = "OMP_NUM_THREADS=2 python benchmarks/cost_matrix.py"
#: comparison → name of its figure
DRAWN = {
    "training, ViT-T, 512 × 512": "training_vit_t", "inference, ViT-T, 512 × 512": "inference_vit_t",
    "training, ViT-B, 512 × 512": "training_vit_b", "inference, ViT-B, 512 × 512": "inference_vit_b",
}  # fmt: skip


def sections() -> Iterator[Section]:
    """Two tables for training and two for use; figures are written beside the document. Nothing before the first run of
    the program."""
    if not (ROOT / FILE).exists():
        return
    comparisons: dict[str, Any] = read_results(ROOT / FILE)["comparisons"]
    (ROOT / "docs" / FIGURES).mkdir(exist_ok=True)
    images = [figure(name, comparisons[name]) for name in DRAWN if name in comparisons]
    yield Section("Against the number of labels", (introduction(comparisons), *images))
    for mode, title in (("training", "Training, by backbone and K"), ("inference", "Inference, by backbone and K")):
        chosen = {name: each["variants"] for name, each in comparisons.items() if name.startswith(mode)}
        if chosen:
            yield Section(title, (), (table(chosen, "processor seconds"), table(chosen, "memory, MiB")))


def introduction(comparisons: Mapping[str, Any]) -> str:
    machines = sorted({f"{each['machine']['cpu']}, {each['threads']} threads" for each in comparisons.values()})
    rounds = sorted({str(each["rounds"]) for each in comparisons.values()})
    return (
        "Measured as above, κ = 100, by the program behind `kappaseg bench network`. Training is a step on two images "
        "of ViT-T and on one of the others. The backbone alone does not depend on K and is measured once. Hollow "
        "marks, and figures with †, are estimates of what was too large to be run (in fp32, whatever was asked for). "
        f"Machine: {'; '.join(machines)}; medians of {' or '.join(rounds)} turns."
    )


def figure(name: str, comparison: Mapping[str, Any]) -> str:
    """Write a figure; gives the line that shows it."""
    path = f"{FIGURES}/{DRAWN[name]}.svg"
    write_text(ROOT / "docs" / path, cost_figure(f"{name}, κ = 100", comparison["variants"]))
    return f"![Time and memory against K: {name}]({path})"


def table(comparisons: Mapping[str, Sequence[Record]], figure: str) -> ResultTable:
    """A row for each network and variant, a column for each K."""
    counts = sorted({record["classes"] for records in comparisons.values() for record in records})
    rows: list[tuple[Cell, ...]] = []
    for name, records in comparisons.items():
        for variant in sorted(dict.fromkeys(record["name"] for record in records), key=place):
            found = {record["classes"]: cell(record, figure) for record in records if record["name"] == variant}
            rows.append((name.partition(", ")[2], variant, *(found.get(count) for count in counts)))
    columns = ("network", "variant", *(f"K = {count:,}" for count in counts))
    return ResultTable(columns, tuple(rows), (COMMAND,), (FILE,), f"In {figure}.")


def place(variant: str) -> tuple[bool, int]:
    """fp32 before bf16, in the order of the ways."""
    way = variant.removesuffix(", bf16")
    return (variant != way, list(STYLES).index(way))


def cell(record: Record, figure: str) -> Cell:
    if figure == "processor seconds":
        return None if "skipped" in record else format_number(seconds(record))
    return f"{record['needed_mib']:,} †" if "skipped" in record else f"{record['memory_mib']:,}"
