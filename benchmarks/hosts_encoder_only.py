"""What docs/hosts.md says of the encoder-only host beside Segmenter and EoMT (benchmarks/encoder_only.py)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.bench.comparisons import known_in
from pipelines.bench.turns import Record, seconds
from pipelines.results_doc import Cell, ResultTable, Section

ROOT = Path(__file__).parents[1]
FILE = "benchmarks/results/encoder_only.json"
COMMAND = "OMP_NUM_THREADS=2 python benchmarks/encoder_only.py"
TITLE = "Encoder-only, Segmenter and EoMT on one ViT"
OURS, SEGMENTER, EOMT, ALIKE = "encoder-only", "Segmenter", "EoMT, 100 queries", "EoMT, 100 queries, computed as ours"


def comparisons() -> dict[str, Sequence[Record]]:
    """Nothing before the first run of the program."""
    return {name: each["variants"] for name, each in known_in(ROOT / FILE).items()}


def sections() -> Iterator[Section]:
    found = comparisons()
    if not found:
        yield Section(TITLE, (f"Not measured yet:\n\n```sh\n{COMMAND}\n```",))
        return
    results = known_in(ROOT / FILE)
    rounds = sorted({str(each["rounds"]) for each in results.values()})
    machines = sorted({f"{each['machine']['cpu']}, {each['threads']} threads" for each in results.values()})
    about = (
        "DINOv2's ViT with registers and patches of 16 pixels, the same for all: random weights, images of 512 × 512, "
        "fp32, one image. Ours are the whole networks of the joint scheme with κ = 100, label branches included; EoMT "
        "is that of the transformers library, with random weights and its masks annealed away, as after training. "
        "Inference ends with the label map at full resolution, for EoMT by its own rule, a product of queries × K × "
        "pixels that GMACs (up to the logits) do not have in them. A step of training is one image, "
        "each network's own loss, SGD.",
        "*Computed as ours*: the same EoMT with the products and the attention of this project, which are faster on "
        "this processor than torch's own; the difference to the other rows of EoMT is no merit of the network. "
        f"Machine: {'; '.join(machines)}; medians of {' or '.join(rounds)} turns, with their range.",
    )
    tables = tuple(table(name, records) for name, records in found.items())
    yield Section(TITLE, (*about, *verdicts(found)), tables)


def by_name(records: Sequence[Record]) -> dict[str, Record]:
    """The variants that were run."""
    return {record["name"]: record for record in records if "skipped" not in record}


def to_ours(record: Record, ours: Record) -> list[float]:
    """Time of a variant over that of encoder-only, turn by turn in ascending order."""
    return sorted(a / b for a, b in zip(record["cpu_seconds"], ours["cpu_seconds"], strict=True))


def table(name: str, records: Sequence[Record]) -> ResultTable:
    run = by_name(records)
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        size = (record["parameters"] / 1e6, record["macs"] / 1e9)
        if record["name"] not in run or OURS not in run:
            rows.append((record["name"], *size, None, None, f"{record['needed_mib']:,} †"))
            continue
        turns = to_ours(record, run[OURS])
        ratio = f"{statistics.median(turns):.2f} ({turns[0]:.2f} to {turns[-1]:.2f})"
        rows.append((record["name"], *size, seconds(record), ratio, f"{record['memory_mib']:,}"))
    columns = (name, "parameters, M", "GMACs", "processor s", "× encoder-only", "memory, MiB")
    return ResultTable(columns, tuple(rows), (f'{COMMAND} --only "{name}"',), (FILE,))


def verdicts(found: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """A sentence for each comparison."""
    told = []
    for name, records in found.items():
        run = by_name(records)
        if OURS in run:
            others = [f"{other} {times(run[other], run[OURS])}" for other in (SEGMENTER, EOMT, ALIKE) if other in run]
            told.append(f"- {name}: {'; '.join(others)}.")
    if told:
        yield "Times that of encoder-only, time and then memory:\n\n" + "\n".join(told)


def times(record: Record, ours: Record) -> str:
    return f"{statistics.median(to_ours(record, ours)):.2f}, {record['memory_mib'] / max(1, ours['memory_mib']):.2f}"
