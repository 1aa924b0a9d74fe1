"""What docs/hosts.md says of time and memory with all labels and with kept ones (benchmarks/hosts_in_k.py)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.bench.comparisons import known_in
from pipelines.bench.turns import Record, seconds
from pipelines.results_doc import Cell, ResultTable, Section, format_number

ROOT = Path(__file__).parents[1]
FILE = "benchmarks/results/hosts_in_k.json"
COMMAND = "OMP_NUM_THREADS=2 python benchmarks/hosts_in_k.py"
ALL, KEPT, BACKBONE = "all labels, ours", "kept labels, ours", "backbone alone"
SHOWN = {ALL: "all labels", KEPT: "kept labels", BACKBONE: "backbone alone"}
#: a step with all labels that takes less than so many times one with kept labels: selection saves nothing
WORTH = 1.05

#: comparison, such as "training, UPerNet, Swin-T" → what its variants took
Comparisons = Mapping[str, Sequence[Record]]


def comparisons() -> Comparisons:
    """Nothing before the first run of the program."""
    return {name: each["variants"] for name, each in known_in(ROOT / FILE).items()}


def sections() -> Iterator[Section]:
    found = comparisons()
    if not found:
        words = f"Not measured yet:\n\n```sh\n{COMMAND}\n```"
        yield Section("Time and memory, with all labels and with κ", (words,))
        return
    yield Section("What is computed for an image", (COUNTED,), (counts(found),))
    yield Section("What selection saves", (introduction(), *verdicts(found)), (savings(found),))
    for mode, title in (("inference", "Inference, by host and K"), ("training", "Training, by host and K")):
        chosen = of_mode(found, mode)
        if chosen:
            yield Section(title, (), (table(chosen, "processor seconds"), table(chosen, "memory, MiB")))


COUNTED = (
    "The hosts as they are measured below. Multiply-accumulates of matrix products, convolutions and attention, up to "
    "the logits of one image of 512 × 512; parameters without the label branch of a joint scheme. With kept labels "
    "neither depends on K, but for the rows of tables of labels."
)


def introduction() -> str:
    results = known_in(ROOT / FILE)
    machines = sorted({f"{each['machine']['cpu']}, {each['threads']} threads" for each in results.values()})
    rounds = sorted({str(each["rounds"]) for each in results.values()})
    kappa = sorted(
        {str(record["kappa"]) for each in results.values() for record in each["variants"] if record["kappa"]}
    )
    return (
        f"The same host with all K labels and with κ = {' or '.join(kappa)} kept ones, in one run: random weights, "
        "images of 512 × 512, fp32, one image a step; processor time over all threads, and memory beyond what the "
        "process holds before the step. Both are computed the way of this project, strip by strip: K maps at full "
        "resolution, as published, would cost much more ([performance.md](performance.md)). The classifier or label "
        f"branch that ranks is not in these figures. Machine: {'; '.join(machines)}; medians of "
        f"{' or '.join(rounds)} turns."
    )


def of_mode(found: Comparisons, mode: str) -> dict[str, Sequence[Record]]:
    """host → records of "training" or "inference"."""
    start = f"{mode}, "
    return {name.removeprefix(start): records for name, records in found.items() if name.startswith(start)}


def vocabularies(records: Sequence[Record]) -> list[int]:
    return [record["classes"] for record in records if record["name"] == ALL]


def with_all(records: Sequence[Record], classes: int) -> Record:
    return next(record for record in records if record["name"] == ALL and record["classes"] == classes)


def with_kept(records: Sequence[Record], classes: int) -> Record:
    """With kept labels of K; where that was not measured, of the next larger K (the cost does not depend on it)."""
    kept = sorted((record for record in records if record["name"] == KEPT), key=lambda record: record["classes"])
    return next((record for record in kept if record["classes"] >= classes), kept[-1])


def ratios(records: Sequence[Record], classes: int) -> list[float] | None:
    """Time with all labels over that with kept ones, turn by turn in ascending order; None where one was left out."""
    ours, theirs = with_kept(records, classes), with_all(records, classes)
    if "skipped" in ours or "skipped" in theirs:
        return None
    return sorted(a / b for a, b in zip(theirs["cpu_seconds"], ours["cpu_seconds"], strict=True))


def memory_ratio(records: Sequence[Record], classes: int) -> float | None:
    ours, theirs = with_kept(records, classes), with_all(records, classes)
    if "skipped" in ours or "skipped" in theirs:
        return None
    return float(theirs["memory_mib"] / max(1, ours["memory_mib"]))


def savings(found: Comparisons) -> ResultTable:
    counts = sorted({count for records in found.values() for count in vocabularies(records)})
    rows: list[tuple[Cell, ...]] = []
    for name, records in found.items():
        times = [ratio_cell(ratios(records, count)) for count in counts]
        memory = [memory_ratio(records, count) for count in counts]
        rows.append((name, "time", *times))
        rows.append((name, "memory", *(None if ratio is None else f"{ratio:.2f}" for ratio in memory)))
    columns = ("", "all / kept", *(f"K = {count:,}" for count in counts))
    note = "How many times what is taken with kept labels; in brackets the range over the turns."
    return ResultTable(columns, tuple(rows), (COMMAND,), (FILE,), note)


def ratio_cell(turns: Sequence[float] | None) -> Cell:
    return None if turns is None else f"{statistics.median(turns):.2f} ({turns[0]:.2f} to {turns[-1]:.2f})"


def verdicts(found: Comparisons) -> Iterator[str]:
    """Where selection saves no time, and where most."""
    for mode in ("training", "inference"):
        hosts = of_mode(found, mode)
        without = {title: saved_nothing(records) for title, records in hosts.items()}
        told = [
            f"{title} at K = {', '.join(f'{count:,}' for count in counts)}"
            for title, counts in without.items()
            if counts
        ]
        if told:
            yield (
                f"**Where selection saves no time in {mode}** (all labels take less than {WORTH} times as long): "
                f"{'; '.join(told)}."
            )
        elif hosts:
            yield f"In {mode} there is no host and no K of these at which selection saves no time."
        most = [(statistics.median(turns), title, count) for title, records in hosts.items()
                for count in vocabularies(records) if (turns := ratios(records, count))]  # fmt: skip
        if most:
            ratio, title, count = max(most)
            yield f"It saves most in {mode} of {title} at K = {count:,}: all labels take {ratio:.1f} times as long."


def saved_nothing(records: Sequence[Record]) -> list[int]:
    """K at which all labels take hardly longer than the kept ones."""
    found = ((count, ratios(records, count)) for count in vocabularies(records))
    return [count for count, turns in found if turns and statistics.median(turns) < WORTH]


def counts(found: Comparisons) -> ResultTable:
    rows: list[tuple[Cell, ...]] = []
    for title, records in of_mode(found, "inference").items():
        for record in records:
            if record["name"] != BACKBONE:
                rows.append(
                    (title, SHOWN[record["name"]], record["classes"], record["parameters"] / 1e6, record["macs"] / 1e9)
                )
    return ResultTable(("host", "classified among", "K", "parameters, M", "GMACs"), tuple(rows), (COMMAND,), (FILE,))


def table(hosts: Mapping[str, Sequence[Record]], figure: str) -> ResultTable:
    """A row for each host and variant, a column for each K."""
    counts = sorted({record["classes"] for records in hosts.values() for record in records})
    rows: list[tuple[Cell, ...]] = []
    for title, records in hosts.items():
        for variant in dict.fromkeys(record["name"] for record in records):
            found = {record["classes"]: cell(record, figure) for record in records if record["name"] == variant}
            rows.append((title, SHOWN[variant], *(found.get(count) for count in counts)))
    note = f"In {figure}; † estimated, what was too large to be run."
    return ResultTable(
        ("host", "labels", *(f"K = {count:,}" for count in counts)), tuple(rows), (COMMAND,), (FILE,), note
    )


def cell(record: Record, figure: str) -> Cell:
    if figure == "processor seconds":
        return None if "skipped" in record else format_number(seconds(record))
    return f"{record['needed_mib']:,} †" if "skipped" in record else f"{record['memory_mib']:,}"
