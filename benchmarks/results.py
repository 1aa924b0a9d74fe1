"""docs/results.md from the result files.

python benchmarks/results.py
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.benchmark.cells import between
from pipelines.benchmark.tables import MARKS, cost_against_k, results_tables
from pipelines.published.cost import COLUMNS, MEANING, cells, row_names
from pipelines.results_doc import (
    Cell,
    ResultTable,
    Section,
    format_percent,
    format_spread,
    markdown_table,
    read_results,
    write_results,
)

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "results.md"


@dataclass(frozen=True)
class Row:
    """A row of a stage-two table: run folder, ranking at test (None = as in training), and what it is called."""

    run: str
    name: str
    test: str | None = None


#: the chain of single commands, `python benchmarks/experiments.py`
CHAIN = "synthetic512"
KAPPA = 50
ROWS = (
    Row("stage2-complete", "complete: all labels"),
    Row("stage2-cache", "cache: the κ best ranked"),
    Row("stage2-oracle", "oracle: the labels present"),
    Row("stage2-complete", "complete, oracle at test only", "oracle"),
    Row("stage2-complete", "complete, cache at test only", "cache"),
    Row("query2label/stage2-cache", "cache of the Query2Label ranker"),
)
RANKERS = (("stage1", "linear, soft maximum"), ("query2label/stage1", "Query2Label, one layer"))


@dataclass(frozen=True)
class SideBySide:
    """One `kappaseg benchmark`, whose results.json is benchmarks/results/NAME_benchmark.json once it has been run."""

    name: str
    short: str
    config: str
    """below configs/"""
    title: str
    about: str

    @property
    def file(self) -> Path:
        return HERE / "results" / f"{self.name}_benchmark.json"

    @cached_property
    def results(self) -> dict[str, Any]:
        return read_results(self.file)

    @property
    def source(self) -> str:
        return f"benchmarks/results/{self.file.name}"

    @property
    def command(self) -> str:
        folder = self.config.split("/")[0]
        given = f" --data.root $DATA/{folder}" if folder != "synthetic" else ""
        weights = " --backbone.weights $WEIGHTS" if given else ""
        return f"kappaseg benchmark configs/{self.config}{given} --out $OUT{weights}"


PHOTOS = "Networks on frozen MobileNetV2 features."
UNSEEN = "Settings of the joint scheme were chosen on a fourth of the training photos of COCO-Stuff."
SCENES = (
    "4,000 training and 400 validation scenes of 64 pixels, made by the program; everything is trained from random "
    "numbers. Classifier, κ = 50 and the settings of the networks are those of the study with 512 labels; those of the "
    "joint scheme were chosen there on seed 0."
)
SIDE_BY_SIDE = (
    SideBySide(
        "cocostuff171_mini", "COCO-Stuff", "cocostuff171_mini/benchmark.yaml",
        "COCO-Stuff, 171 classes, 184 + 50 photos: all schemes side by side", f"{PHOTOS} {UNSEEN}",
    ),
    SideBySide(
        "ccp59", "Clothing Co-Parsing", "ccp59/benchmark.yaml",
        "Clothing Co-Parsing, 59 classes, 800 + 204 photos: all schemes side by side", f"{PHOTOS} {UNSEEN}",
    ),
    SideBySide(
        "synthetic150", "synthetic, 150 labels", "synthetic/benchmark_150.yaml",
        "Synthetic scenes, 150 labels: all schemes side by side", SCENES,
    ),
    SideBySide(
        "synthetic600", "synthetic, 600 labels", "synthetic/benchmark_600.yaml",
        "Synthetic scenes, 600 labels: all schemes side by side", SCENES,
    ),
    SideBySide(
        "synthetic2000", "synthetic, 2,000 labels", "synthetic/benchmark_2000.yaml",
        "Synthetic scenes, 2,000 labels: all schemes side by side", SCENES,
    ),
    SideBySide(
        "cocostuff171_mini_ranking", "COCO-Stuff, rankings", "cocostuff171_mini/benchmark_ranking.yaml",
        "COCO-Stuff: rankings of other strength, missed labels, folds", PHOTOS,
    ),
    SideBySide(
        "cocostuff171_mini_joint", "COCO-Stuff, joint", "cocostuff171_mini/benchmark_joint.yaml",
        "COCO-Stuff: label branches, losses and missed labels of the joint scheme", f"{PHOTOS} {UNSEEN}",
    ),
    SideBySide(
        "cocostuff171_mini_hosts", "COCO-Stuff, hosts (Segmenter)", "cocostuff171_mini/benchmark_hosts.yaml",
        "COCO-Stuff: every host, every scheme",
        "Hosts on maps of one frozen MobileNetV2, or on a small ViT behind it that is trained with them; "
        "[hosts.md](hosts.md) holds each against its own network with all labels.",
    ),
)  # fmt: skip


def main() -> None:
    benchmarks = [study for study in SIDE_BY_SIDE if study.file.exists()]
    sizes = cost_over_sizes([study for study in benchmarks if study.config.startswith("synthetic")])
    write_results(
        DOCUMENT,
        [
            introduction(),
            reading(benchmarks),
            *map(side_by_side, benchmarks),
            *sizes,
            *chain_of_commands(),
            published(),
            service(),
            kills(),
        ],
    )


def reading(studies: Sequence[SideBySide]) -> Section:
    """Every claim of the paper over all studies, and what more training changes."""
    whole = {study: study.results for study in studies if "baseline" in study.results["roles"]}
    claims = list(dict.fromkeys(claim["claim"] for results in whole.values() for claim in results["claims"]))
    rows = tuple((claim, *(held(results, claim) for results in whole.values())) for claim in claims)
    columns = ("claim", *(study.short for study in whole))
    about = (
        "What the paper claims, held against every benchmark below: difference in mIoU, points, with 95 % intervals "
        "over images and over seeds. ✓ both above zero, ✗ both below, ? neither. Networks are small, and all but the "
        "rows with more steps are trained for equally many; no training of the paper's size is among them."
    )
    ablations = [study for study in studies if study not in whole and study.results["claims"]]
    points = [
        f"- {study.short}: {claim['claim']}: {held(study.results, claim['claim'])}."
        for study in ablations for claim in study.results["claims"]
    ]  # fmt: skip
    points += [f"- {study.short}: {line}" for study, results in whole.items() for line in at_more_steps(results)]
    files = read_from(*(study.source for study in (*whole, *ablations)))
    parts = [about, markdown_table(columns, rows), "\n".join(points), files]
    return Section("What holds here", tuple(part for part in parts if part))


def held(results: Mapping[str, Any], name: str) -> Cell:
    """One claim in one study: verdict, difference, and its intervals over images and over seeds."""
    claim = next((claim for claim in results["claims"] if claim["claim"] == name), None)
    if claim is None:
        return None
    seeds = between(claim["seeds_interval"]) or "one seed"
    return f"{MARKS[claim['verdict']]} {100 * claim['mean']:+.1f} ({between(claim['interval'])}; {seeds})"


def at_more_steps(results: Mapping[str, Any]) -> Iterator[str]:
    """What is left of the differences when training goes on, and what each scheme takes, its classifier included."""
    schemes = results["schemes"]

    def told(name: str) -> str:
        entry = schemes[name]
        seconds = entry.get("train_cpu_seconds")
        cost = f", {seconds:,.0f} s of processor time" if seconds else ""
        return f"{entry['label']} {format_percent(entry['miou'])} % mIoU{cost}"

    longer = [name for name in schemes if name.endswith("-long") and schemes[name]["miou"] is not None]
    if longer:
        shorter = [name for name in ("baseline", "joint", "independent") if name in schemes]
        yield f"{'; '.join(map(told, shorter))}. Longer: {'; '.join(map(told, longer))}."


def side_by_side(study: SideBySide) -> Section:
    """What `kappaseg benchmark` found, with its verdicts."""
    results = study.results
    steps = sorted({e["network"]["steps"] for e in results["schemes"].values() if e["network"] and not e["of"]})
    how = (
        f"{study.about} A network is trained for {' or '.join(f'{count:,}' for count in steps)} steps. Two steps of "
        "the benchmark ran at a time on two cores, with other work beside them, so processor time tells more than "
        "seconds; the networks were timed alone, taking turns."
    )
    command = f"```sh\n{study.command}\n```"
    return Section(study.title, (how, results_tables(results), command, read_from(study.source)))


def cost_over_sizes(studies: Sequence[SideBySide]) -> Iterator[Section]:
    """The same schemes over vocabularies of different sizes, once two have been run."""
    table = cost_against_k([study.results for study in studies])
    if table is not None:
        text = f"{markdown_table(table.columns, table.rows)}\n\n{table.note}"
        files = read_from(*(study.source for study in studies))
        yield Section("Synthetic scenes: cost against the size of the vocabulary", (text, files))


def read_from(*files: str) -> str:
    return f"Read from {', '.join(f'`{file}`' for file in files)}."


def introduction() -> Section:
    machine = read(CHAIN)["machine"]
    return Section(
        "How to read this",
        (
            "Every figure is read from the files in `benchmarks/results/`, which the commands shown wrote: `kappaseg "
            "benchmark` its results.json, `python benchmarks/experiments.py` what a chain of single commands "
            "left behind, and the programs beside it theirs. `python benchmarks/results.py` makes this page of them. "
            f"Machine: {machine['cpu']}, {machine['threads']} thread per run, torch {machine['torch']}. The machine "
            "had other work beside; seconds are processor time.",
            "Shares are in %. *Pixel coverage@κ* is the share of pixels whose label is among the κ best ranked, *class "
            "coverage@κ* its mean over classes; pixel accuracy and mIoU cannot be higher than these. The *prior* ranks "
            "by frequency in the training images, the same for every image. ± is the sample standard deviation over "
            "seeds; rows without it are one run.",
            "Networks are small and trained for minutes: compare rows of a table with each other, and nothing else. "
            "Where a study does not say otherwise, settings were chosen on the same validation images (there is no "
            "third split).",
        ),
    )


def chain_of_commands() -> tuple[Section, Section]:
    """Both stages, baseline and bound on synthetic scenes: two tables and what follows from them."""
    chains, file = read(CHAIN)["chains"], f"benchmarks/results/{CHAIN}.json"
    kept = (f"pixel coverage@{KAPPA}", "prior", f"class coverage@{KAPPA}", "prior")
    stage1 = ResultTable(
        ("ranker", "mAP", "raw", *kept, "CPU seconds", "MiB"),
        tuple(stage1_row(run, name, chains) for run, name in RANKERS),
        commands(chains, ("run-stage1", "rank")), (file,),
        "mAP: with the envelope, and raw; classes without a validation image are left out.",
    )  # fmt: skip
    stage2 = ResultTable(
        ("ranking in training and test", "mIoU", "≤", "pixel accuracy", "≤", "classes at 0", "CPU seconds", "MiB"),
        tuple(stage2_row(row, chains) for row in ROWS),
        commands(chains, ("run-stage2", "evaluate", "predict")), (file,),
        "≤: the bound by class and by pixel coverage. CPU seconds and MiB: of the command that trains.",
    )  # fmt: skip
    seeds = ", ".join(str(chain["seed"]) for chain in chains)
    about = (
        "4,000 training and 400 validation scenes of 64 pixels with about six labels each, made by the program; the "
        "scenes were fixed before any method was run on them. Everything is trained from random numbers, with the same "
        "number of stage-two steps for every source. Each seed draws new weights and a new order of the same scenes.",
        f"Seeds: {seeds}.",
        ranking_verdict(chains),
    )
    title = "Synthetic scenes, 512 labels"
    ranking = Section(f"{title}: ranking", about, (stage1,))
    return ranking, Section(f"{title}: segmentation", verdicts(chains), (stage2,))


def stage1_row(run: str, name: str, chains: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    chains = [chain for chain in chains if run in chain["runs"]]
    keys = ("mAP_envelope", "mAP_raw", f"pixel_coverage@{KAPPA}", f"prior_pixel_coverage@{KAPPA}",
            f"class_coverage@{KAPPA}", f"prior_class_coverage@{KAPPA}")  # fmt: skip
    shares = (spread([chain["runs"][run]["metrics"][key] for chain in chains]) for key in keys)
    return (name, *shares, *costs(run, chains))


def stage2_row(row: Row, chains: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    chains = [chain for chain in chains if row.run in chain["runs"]]
    keys = ("mIoU", "class_coverage", "pixel_accuracy", "pixel_coverage", "zero_iou_share")
    shares = (spread([measured(chain["runs"][row.run], row.test)[key] for chain in chains]) for key in keys)
    return (row.name, *shares, *(costs(row.run, chains) if row.test is None else ("–", "–")))


def measured(run: Mapping[str, Any], test: str | None) -> Mapping[str, Any]:
    """The evaluation with that ranking at test (None: the one in training)."""
    found = [e for e in run["evaluations"] if e["source"]["test"] == (test or e["source"]["train"])]
    return found[0]


def spread(shares: Sequence[float]) -> str:
    return format_spread([100 * share for share in shares])


def costs(run: str, chains: Sequence[Mapping[str, Any]]) -> tuple[Cell, Cell]:
    """Mean processor seconds of the command that trained a run (None: an earlier command did), largest memory."""
    spent = cpu_seconds(run, chains)
    return spent and round(spent), max(chain["runs"][run]["peak_memory_mib"] for chain in chains)


def cpu_seconds(run: str, chains: Sequence[Mapping[str, Any]]) -> float | None:
    spent = [step["cpu_seconds"] for chain in chains for step in chain["steps"] if step["trains"] == run]
    known = [seconds for seconds in spent if seconds is not None]
    return sum(known) / len(known) if known else None


def commands(chains: Sequence[Mapping[str, Any]], verbs: Sequence[str]) -> tuple[str, ...]:
    """The commands of these verbs, as given for each $SEED; those of the first seed include the ones done once."""
    return tuple(s["command"] for s in chains[0]["steps"] if s["command"].split()[1] in verbs)


def ranking_verdict(chains: Sequence[Mapping[str, Any]]) -> str:
    key = f"class_coverage@{KAPPA}"
    gains = [c["runs"]["stage1"]["metrics"][key] - c["runs"]["stage1"]["metrics"][f"prior_{key}"] for c in chains]
    beaten = sum(gain > 0 for gain in gains)
    return (
        f"Class coverage@{KAPPA} beats the frequency prior for {beaten} of {len(chains)} seeds, by "
        f"{format_spread([100 * gain for gain in gains])} points."
    )


def verdicts(chains: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the segmentation table says, in sentences that follow from its figures."""
    lines = []
    for run, name in (("stage2-oracle", "The known labels"), ("stage2-cache", "The cached ranking")):
        pairs = [[measured(c["runs"][r], None)["mIoU"] for r in (run, "stage2-complete")] for c in chains]
        gains = [100 * (ours - theirs) for ours, theirs in pairs]
        lines.append(
            f"{name} against all labels: {format_spread(gains)} points of mIoU, better for {sum(g > 0 for g in gains)} "
            f"of {len(gains)} seeds."
        )
    if ordered(chains[0]):
        lines.append(lever(chains[0]))
    return (*lines, time_spent(chains))


WEAKER = "query2label/stage2-cache"


def ordered(chain: Mapping[str, Any]) -> bool:
    """Whether the weaker ranker lost to all labels and the other won."""
    runs = (WEAKER, "stage2-complete", "stage2-cache")
    weaker, complete, cache = (measured(chain["runs"][run], None)["mIoU"] for run in runs)
    return bool(weaker < complete < cache)


def lever(chain: Mapping[str, Any]) -> str:
    """What a weaker ranker did on the same scenes."""
    runs = {run: measured(chain["runs"][run], None) for run in (WEAKER, "stage2-complete", "stage2-cache")}
    miou = {run: format_percent(found["mIoU"]) for run, found in runs.items()}
    kept = {run: format_percent(found["class_coverage"]) for run, found in runs.items()}
    return (
        "The ranking is the lever. The first ranker tried, one layer of Query2Label trained for as many steps, kept "
        f"{kept[WEAKER]} % of the mean class, and ranking first lost: {miou[WEAKER]} % mIoU against "
        f"{miou['stage2-complete']} % among all labels. A linear layer at every cell under a soft maximum keeps "
        f"{kept['stage2-cache']} %, and {miou['stage2-cache']} % result. It was chosen after this comparison on seed "
        f"{chain['seed']}; the scenes, stage two's settings and κ stayed as they were."
    )


def time_spent(chains: Sequence[Mapping[str, Any]]) -> str:
    cache, complete, ranker = (
        cpu_seconds(run, chains) or float("nan") for run in ("stage2-cache", "stage2-complete", "stage1")
    )
    return (
        f"Training among the kept labels took {cache / complete:.2f} times the processor time of training among all; "
        f"with the training of the ranker counted in, {(cache + ranker) / complete:.2f} times."
    )


def published() -> Section:
    """What the networks of the published configurations cost, beside the paper's numbers."""
    found = {network["name"]: network for network in read("cost")["networks"]}
    shown = [found[name] for name in row_names()]
    rows = tuple((row["name"], *(None if cell == "–" else cell for cell in cells(row)[1:])) for row in shown)
    notes = "\n".join(f"- {network['note']}" for network in shown if network["note"])
    table = ResultTable(COLUMNS, rows, ("kappaseg cost",), ("benchmarks/results/cost.json",), MEANING)
    about = (
        "Built at full size without weights (on torch's meta device), so these are counts and no measurements: no "
        "network of this size has been trained here. Names are those of the recipes below `configs/`, which `python "
        "benchmarks/published.py` writes together with the file; recipes that train the same network are left out."
    )
    return Section("The published configurations: parameters and MACs", (about, notes), (table,))


def service() -> Section:
    """Look-ups and ranking over HTTP, beside what was aimed at."""
    found = read("service")
    own, single, rank = found["in_process"], found["http_lookup"], found["rank"]
    batch = found["http_batch_ids_per_second"]
    rows: tuple[tuple[Cell, ...], ...] = (
        ("look-up in a process, µs, p50", own["lookup_us_p50"], "≤ 3"),
        ("look-up in a process, µs, p99", own["lookup_us_p99"], "≤ 10"),
        ("rows a second in random batches of 64, in a process, by row number", f"{own['rows_per_second']:,}", "≥ 2 M"),
        ("ids a second in random batches of 64, in a process, by id", f"{own['ids_per_second']:,}", "–"),
        (f"look-up over HTTP ({single['bytes']} bytes), µs, p50", single["us_p50"], "–"),
        ("the same to an empty FastAPI route that answers the same bytes", spread_of(single["ratio"]), "≤ 1.3"),
        ("ids a second over HTTP, 64 in a request", f"{batch['64']:,}", "≥ 80,000"),
        ("ids a second over HTTP, 1,024 in a request", f"{batch['1024']:,}", "–"),
        (f"images ranked a second, {rank['clients']} clients", rank["images_per_second"], "–"),
        ("the same to a service without batches, 16 clients", spread_of(rank["to_without_batching"]), "–"),
        ("the same to a service without batches, one client", spread_of(rank["to_one_client"]), "≥ 2"),
        ("the same to `kappaseg rank` on the same files", spread_of(rank["to_offline"]), "≥ 0.9"),
    )
    about = (
        f"A label cache of {found['images']:,} images with {found['kappa']} of {found['classes']:,} labels each; "
        f"{rank['backbone']} at {rank['image_size']} pixels on JPEG files of {rank['photo'][0]} × {rank['photo'][1]} "
        f"(mean batch {rank['mean_batch']:g}). Servers and clients share a machine of two cores. Ratios are of "
        "measurements in turns: median, and the range over the turns."
    )
    table = ResultTable(("measured", "value", "aim"), rows, (found["command"],), ("benchmarks/results/service.json",))
    return Section("The service", (about,), (table,))


def spread_of(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def kills() -> Section:
    results = read("kill")
    rows = tuple(
        (name, step["trials"], step["killed_while_running"], step["files"], len(step["different"]), step["seconds"])
        for name, step in results["steps"].items()
    )
    columns = ("step", "trials", "killed while it ran", "files compared", "files that differ", "undisturbed seconds")
    table = ResultTable(columns, rows, (results["command"],), ("benchmarks/results/kill.json",))
    return Section(
        "Killed and started again",
        ("Each step was killed with SIGKILL at random moments and started again with the same command; every file it "
         "leaves must be the same, byte by byte, as of an undisturbed run (the log, seconds and memory excepted).",),
        (table,),
    )  # fmt: skip


def read(name: str) -> dict[str, Any]:
    return read_results(HERE / "results" / f"{name}.json")


if __name__ == "__main__":
    main()
