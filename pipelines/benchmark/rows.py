"""The long table of a benchmark: one row a measurement, each with the step and the run directory that it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kappaseg_core.files import write_atomic
from pipelines.benchmark.records import Measured, Records, Step, Value

#: name here → name in measurement.json
MEASURES = {
    "miou": "mIoU", "miou_in_truth": "mIoU_in_truth", "pixel_accuracy": "pixel_accuracy",
    "class_accuracy": "mean_class_accuracy", "zero_iou_share": "zero_iou_share", "kappa": "mean_kappa",
    "recall": "recall", "image_recall": "image_recall", "class_recall": "class_recall", "coverage": "pixel_coverage",
    "class_coverage": "class_coverage", "map": "mAP_raw", "map_envelope": "mAP_envelope",
}  # fmt: skip
#: the same below "panoptic", of networks that learn objects
PANOPTIC = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ_things", "pq_stuff": "PQ_stuff"}
#: classes by how many training images hold them, a third each
GROUPS = ("rare", "common", "frequent")
#: kind of step → what its cost is called
PARTS = {"train": "network", "stage1": "classifier", "rank": "ranking", "features": "features"}
#: name here → name in cost.json, of what is deployed: the network, and the classifier where it needs one
COSTS = {
    "macs": "macs", "macs_paper": "macs_paper", "images_per_second": "images_per_second",
    "latency_p50_ms": "latency_p50_ms", "latency_p95_ms": "latency_p95_ms", "latency_ratio": "latency_ratio",
    "inference_memory": "peak_memory_mib",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """value: in the measure's own unit (shares in 0..1, seconds, MiB, ms).   kappa: labels kept at test; None = as the
    scheme has it.   run: directory relative to the benchmark's.   fingerprint: of the step's resolved configuration
    and of all that it stands on."""

    scheme: str
    seed: int | None
    kappa: int | None
    split: str
    measure: str
    value: float
    step: str
    run: str
    fingerprint: str
    commit: str


class Rows:
    """All rows, and the values of one measure by seed."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self.found: dict[tuple[str, int | None, str], dict[int | None, float]] = {}
        for row in self.rows:
            self.found.setdefault((row.scheme, row.kappa, row.measure), {})[row.seed] = row.value

    def by_seed(self, scheme: str, measure: str, kappa: int | None = None) -> dict[int | None, float]:
        """seed → value; empty where nothing was measured."""
        return self.found.get((scheme, kappa, measure), {})

    def write(self, path: Path) -> None:
        """As Parquet, whole or not at all."""
        columns = {name: [asdict(row)[name] for row in self.rows] for name in Row.__dataclass_fields__}
        numbers = {"seed": pa.int64(), "kappa": pa.int64(), "value": pa.float64()}
        schema = pa.schema([(name, numbers.get(name, pa.string())) for name in columns])
        table = pa.table(columns, schema=schema)
        write_atomic(path, lambda temporary: pq.write_table(table, temporary))


def gathered(records: Records) -> Rows:
    """Every number that the benchmark's files hold, as rows."""
    rows = [
        Row(step.scheme or scheme, step.seed, step.kappa, split, measure, float(value), step.id, run, step.fingerprint,
            records.commit(step))
        for scheme, step, split, run, numbers in sources(records)
        for measure, value in numbers.items()
        if value is not None
    ]  # fmt: skip
    return Rows(rows)


def sources(records: Records) -> Iterator[tuple[str, Step, str, str, Mapping[str, float | None]]]:
    """(scheme, step, split, run, numbers) of each place that numbers come from."""
    for found in records.measured:
        yield found.scheme, found.step, found.values["split"], found.run, measured_numbers(found)
        if found.step.kappa is None:
            numbers = training_cost(records, found)
            yield found.scheme, found.step, "train", found.run, numbers
    cost = records.cost()
    step = next((step for step in records.steps.values() if step.kind == "cost"), None)
    for scheme, values in cost.get("schemes", {}).items():
        assert step is not None
        numbers = deployed_cost(values)
        if cost.get("baseline") != records.baseline:  # timed against another scheme
            numbers = {name: value for name, value in numbers.items() if not name.endswith("latency_ratio")}
        yield scheme, step, "val", step.folder, numbers


def deployed_cost(values: Value) -> dict[str, float | None]:
    """A scheme's numbers in cost.json: of all that is deployed, and of the network and the classifier alone."""
    numbers = {name: values.get(key) for name, key in COSTS.items()}
    for part in ("network", "classifier"):
        numbers |= {f"{part}_{name}": (values.get(part) or {}).get(key) for name, key in COSTS.items()}
    return numbers


def measured_numbers(found: Measured) -> dict[str, float | None]:
    """The numbers of one measurement, the groups of classes and the ranking's curves among them."""
    values = found.values
    numbers = {name: values.get(key) for name, key in MEASURES.items()}
    if segments := values.get("panoptic"):
        numbers |= {name: segments[key] for name, key in PANOPTIC.items()}
    if values["presence"] != "truth":
        numbers["calibration_error"] = values["calibration"]["error"]
    for name, labels in frequency_groups(values).items():
        for measure, key in (("miou", "iou"), ("recall", "recall")):
            shares = [values["classes"][key][label] for label in labels]
            numbers[f"{measure}_{name}"] = float(np.mean(shares)) if shares else None
    if found.step.kappa is None:
        curves = values["curves"]
        for measure in ("recall", "pixel_coverage", "class_coverage"):
            for kappa, share in zip(curves["kappa"], curves[measure], strict=True):
                numbers[f"{measure}@{kappa}"] = share
    return numbers


def frequency_groups(values: Value) -> dict[str, list[int]]:
    """The labels that the split's truth has, in three groups of equal number by training images, rarest first.

    Labels held by equally many images are told apart by id.
    """
    present = [label for label, images in enumerate(values["classes"]["val_images"]) if images]
    order = sorted(present, key=lambda label: (values["train_images"][label], label))
    parts = np.array_split(np.array(order, dtype=int), len(GROUPS))
    return {name: part.tolist() for name, part in zip(GROUPS, parts, strict=True)}


def training_cost(records: Records, found: Measured) -> dict[str, float | None]:
    """What it took to have the network: its own training, and the classifier and ranking where it stands on one.

    train_seconds: of all of them; peak_memory: MiB, the largest of any of them. Seconds are those of the training runs
    (all their starts); of rankings and of features those of the step, and ranking with folds trains a classifier for
    each fold. Features of a frozen backbone count in full for each scheme that was trained on them.
    train_cpu_seconds: the same in processor time, which what else the machine does changes less. Both are None where
    only the last start of a step is known, and it was started more than once.
    params: of the network and of the classifier that ranks at test.
    """
    numbers: dict[str, float] = {}
    cpu: list[float | None] = []
    is_known, ranker = True, records.schemes[found.scheme].get("ranker")
    for step in made_of(records, found.step):
        record = step.record if step.kind in ("rank", "features") else records.summary(step)
        if record is None:
            records.lacks(f"{found.scheme}, seed {found.seed}: training cost, for {step.id} has no record")
            return {}
        name = PARTS[step.kind]
        numbers[f"{name}_seconds"] = numbers.get(f"{name}_seconds", 0.0) + record["seconds"]
        numbers[f"{name}_peak_memory"] = max(numbers.get(f"{name}_peak_memory", 0.0), record["peak_memory_mib"])
        if "parameters" in record and step.ranker in (None, ranker):
            numbers[f"{name}_params"] = record["parameters"]
        assert step.record is not None
        cpu.append(step.record["cpu_seconds"] if step.record["attempts"] == 1 else None)
        is_known &= step.record["attempts"] == 1 or record is not step.record
    totals: dict[str, float | None] = {
        "params": sum(value for name, value in numbers.items() if name.endswith("_params")),
        "train_seconds": sum(v for k, v in numbers.items() if k.endswith("_seconds")) if is_known else None,
        "peak_memory": max((value for name, value in numbers.items() if name.endswith("_peak_memory")), default=0.0),
        "train_cpu_seconds": None if None in cpu else sum(seconds or 0.0 for seconds in cpu),
    }
    return {**numbers, **totals}


def made_of(records: Records, step: Step) -> Iterator[Step]:
    """The training steps that a measurement stands on. A ranking waits for others that it only shares a folder with,
    which are no part of it."""
    seen: set[str] = set()
    waiting = list(step.needs)
    while waiting:
        needed = records.steps[waiting.pop(0)]
        if needed.id in seen:
            continue
        seen.add(needed.id)
        if needed.kind in PARTS:
            yield needed
        waiting += [name for name in needed.needs if (needed.kind, records.steps[name].kind) != ("rank", "rank")]
