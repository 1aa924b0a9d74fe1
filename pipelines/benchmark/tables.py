"""results.json as tables: for the page, and as Markdown for documents. Shares are shown in percent.

Legend: κ kept labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.benchmark.cells import Results, between, by_scheme, interval, over_images, plain, points, share, span
from pipelines.benchmark.claims import FAILS, HOLDS, OPEN
from pipelines.report import Table
from pipelines.results_doc import Cell, format_number, markdown_table

#: what stands beside every table of differences
PAIRED = (
    "Difference to {baseline}: same seeds and images; 95 % interval by resampling the images (paired bootstrap), moved "
    "to lie around the difference, since a resample lacks some labels"
)
LABELS_SHOWN = 10
MARKS = {HOLDS: "✓", FAILS: "✗", OPEN: "?"}


def accuracy_table(results: Results) -> Table | None:
    """Joint against independent, and everything beside them: what the schemes reach."""
    baseline = results["schemes"].get(results["baseline"], {}).get("label", results["baseline"])
    seeds = [len(entry["seeds"]) for entry in results["schemes"].values() if entry["seeds"]]
    found = {
        "seeds": seeds_where_they_differ(results),
        "mIoU": share("miou"),
        "95 % over seeds": interval("miou_interval"),
        "to baseline": lambda entry: points(entry["miou_difference"]),
        "95 % over images": over_images,
        "mIoU in truth": share("miou_in_truth"),
        "PQ": share("pq"),
        "PQ, things": share("pq_things"),
        "PQ, stuff": share("pq_stuff"),
        "SQ": share("sq"),
        "RQ": share("rq"),
        "mAP": share("map"),
        "label recall": share("recall"),
        "pixel coverage": share("coverage"),
        "classes never right": share("zero_iou_share"),
        "labels kept": plain("kappa"),
    }
    note = (
        f"Means over {span(seeds)}. mIoU: over labels in the truth or predicted; mIoU in truth: over those in the "
        f"truth. {PAIRED.format(baseline=baseline)}. mAP: mean of the precisions at the positives, "
        "of the scheme's presence scores. Label recall and pixel coverage: share of the labels and of the pixels that "
        "are among the labels kept; no pixel accuracy exceeds the coverage. Classes never right: IoU 0, of those in "
        "the truth."
    )
    if any("pq" in entry for entry in results["schemes"].values()):
        note += " PQ, SQ, RQ: panoptic, segmentation and recognition quality of the segments, of networks of objects."
    return by_scheme(results, f"{results['data']['images'] or 0:,} validation images, %", found, note)


def seeds_where_they_differ(results: Results) -> Callable[[Mapping[str, Any]], Cell]:
    """How many seeds a scheme has, where some have fewer than others: their means are then not of the same runs."""
    counts = {len(entry["seeds"]) for entry in results["schemes"].values() if entry["seeds"]}
    return lambda entry: len(entry["seeds"]) if len(counts) > 1 else None


def training_table(results: Results) -> Table | None:
    """What it takes to have a scheme, stage one counted."""
    seconds = {
        "seeds": seeds_where_they_differ(results),
        "steps": lambda entry: (entry["network"] or {}).get("steps"),
        "features, s": plain("features_seconds"),
        "classifier, s": plain("classifier_seconds"),
        "ranking, s": plain("ranking_seconds"),
        "network, s": plain("network_seconds"),
        "in all, s": plain("train_seconds"),
        "processor time, s": plain("train_cpu_seconds"),
        "peak memory, MiB": plain("peak_memory"),
    }
    note = (
        "Mean over seeds. Features: those of a frozen backbone, computed once. Ranking: of the whole data set, and "
        "with folds training a classifier for each. What several schemes share is counted in full for each of them."
    )
    return by_scheme(results, "Training cost", seconds, note)


def deployed_table(results: Results) -> Table | None:
    """What an image costs once everything is trained: the network, and the classifier where one ranks for it."""
    cost = {
        "parameters, M": plain("params", 1e6),
        "of them classifier": plain("classifier_params", 1e6),
        "MACs, G": plain("macs", 1e9),
        "MACs as the paper counts, G": plain("macs_paper", 1e9),
        "images/s": plain("images_per_second"),
        "p50, ms": plain("latency_p50_ms"),
        "p95, ms": plain("latency_p95_ms"),
        "times baseline": plain("latency_ratio"),
        "of it classifier, ms": plain("classifier_latency_p50_ms"),
        "memory, MiB": plain("inference_memory"),
    }
    note = (
        "One image at a time, network and classifier together; the schemes took turns in one process, and times "
        "baseline is the median of the ratios for one image and round. MACs: by torch's counter. The paper's numbers "
        "come from a counter that misses attention products; that count is shown beside, to be held against them. "
        "Known labels are of the study alone: nobody can deploy an oracle."
    )
    return by_scheme(results, "Deployed cost", cost, note)


def claims_table(results: Results) -> Table | None:
    """The paper's claims with verdict, difference and both intervals."""
    names = {name: entry["label"] for name, entry in results["schemes"].items()}
    rows = tuple(
        (claim["claim"], f"{MARKS[claim['verdict']]} {claim['verdict']}",
         f"{names[claim['better']]} − {names[claim['worse']]}", points(claim), between(claim["interval"]),
         between(claim["seeds_interval"]), len(claim["seeds"]))
        for claim in results["claims"]
    )  # fmt: skip
    columns = ("claim", "verdict", "compared", "mIoU, points", "95 % over images", "95 % over seeds", "seeds")
    note = (
        "Holds: both intervals lie above zero. Does not hold: both lie below. Not decided: these runs cannot tell. "
        "With one seed only the images vary, and what other random numbers would give is not known. Each claim stands "
        "for itself: of twenty such verdicts on differences that are none, about one would be wrong."
    )
    return Table("Claims of the paper, held against these runs", columns, rows, note) if rows else None


def frequency_table(results: Results) -> Table | None:
    """IoU and recall of rare, common and frequent labels."""
    groups = results["classes"].get("groups", {})
    columns: dict[str, Callable[[Mapping[str, Any]], Cell]] = {}
    for measure, called in (("miou", "mIoU"), ("recall", "recall")):
        columns |= {f"{called}, {name}": share(f"{measure}_{name}") for name in groups}
    about = "; ".join(
        f"{name}: {format_number(group['labels'])}, in {group['train_images'][0]} to {group['train_images'][1]} images"
        for name, group in groups.items()
        if group["train_images"]
    )
    note = f"A third of the labels in the truth each, by the number of training images that hold them. {about}."
    return by_scheme(results, "By frequency of the label, %", columns, note)


def ranking_table(results: Results) -> Table | None:
    """How good the presence scores are by themselves."""
    columns = {
        "scores of": lambda entry: entry["presence"],
        "mAP": share("map"),
        "mAP, envelope": share("map_envelope"),
        "calibration error": share("calibration_error"),
        "class recall": share("class_recall"),
        "class coverage": share("class_coverage"),
    }
    note = (
        "mAP, envelope: precision first raised to its best value at any higher recall, as Query2Label and RankSeg "
        "report it; labels that a cache does not store count as scored 0. Calibration error: expected difference of "
        "score and share present, over ten bins of an image's best labels (256, or as many as there are). Class recall "
        "and class coverage are of the labels kept; no mIoU exceeds the class coverage."
    )
    return by_scheme(results, "Presence scores, %", columns, note)


def class_tables(results: Results) -> list[Table]:
    """Per scheme, the labels with the largest gains and losses in IoU against the baseline."""
    base = results["schemes"].get(results["baseline"], {}).get("class_iou")
    names = results["classes"].get("names")
    tables = []
    for name in ("independent", "joint", "oracle"):
        scheme = results["roles"].get(name)
        entry = results["schemes"].get(scheme, {})
        if base is None or names is None or not entry.get("class_iou_gain"):
            continue
        change = [
            (100 * gain, names[label], 100 * before, 100 * (before + gain), results["classes"]["train_images"][label])
            for label, (gain, before) in enumerate(zip(entry["class_iou_gain"], base, strict=True))
            if gain and before is not None
        ]
        change.sort(key=lambda row: (-row[0], row[1]))
        half = LABELS_SHOWN // 2
        kept = change if len(change) <= LABELS_SHOWN else change[:half] + change[-half:]
        rows = tuple((label, images, before, iou, gain) for gain, label, before, iou, images in kept)
        columns = ("label", "training images", "baseline", entry["label"], "points")
        tables += [Table(f"IoU by label, {entry['label']} against the baseline, %", columns, rows)] if rows else []
    return tables


def cost_against_k(several: Sequence[Results]) -> Table | None:
    """The same schemes over vocabularies of different sizes, one benchmark each; None for fewer than two sizes."""
    sizes = sorted({results["data"]["num_classes"] for results in several})
    if len(sizes) < 2:
        return None
    rows = tuple(
        (entry["label"], results["data"]["num_classes"],
         *(cell(entry) for cell in (plain("params", 1e6), plain("macs", 1e9), plain("train_seconds"),
                                    plain("train_cpu_seconds"), plain("peak_memory"), plain("latency_p50_ms"),
                                    share("miou"))))
        for results in sorted(several, key=lambda one: one["data"]["num_classes"])
        for entry in results["schemes"].values()
        if entry["seeds"]
    )  # fmt: skip
    columns = (
        "scheme", "K", "parameters, M", "MACs, G", "training, s", "processor time, s", "peak memory, MiB", "p50, ms",
        "mIoU, %",
    )  # fmt: skip
    note = "Training: of the network, and of the classifier and its ranking where the scheme has them."
    ordered = tuple(sorted(rows, key=lambda row: str(row[0])))
    return Table("Cost against the size of the vocabulary", columns, ordered, note)


def results_tables(results: Results) -> str:
    """The tables of one results.json as Markdown, for a document."""
    tables = [
        accuracy_table(results), claims_table(results), training_table(results), deployed_table(results),
        frequency_table(results), ranking_table(results),
    ]  # fmt: skip
    blocks = [f"**{t.title}**\n\n{markdown_table(t.columns, t.rows)}\n\n{t.note}".rstrip() for t in tables if t]
    return "\n\n".join(blocks)


def kappa_points(entry: Mapping[str, Any], measure: str) -> tuple[list[int], list[float]]:
    """(κ at test, the measure in percent) of a scheme, its own κ among them."""
    points = {int(kappa): values.get(measure) for kappa, values in entry["kappas"].items()}
    if points and entry.get("kappa") is not None:
        points[round(entry["kappa"])] = entry.get(measure)
    found = [(kappa, 100 * value) for kappa, value in sorted(points.items()) if value is not None]
    return [kappa for kappa, _ in found], [value for _, value in found]


def kappa_table(results: Results) -> Table | None:
    """mIoU and coverage at each κ at test (Table 4, He et al. 2022)."""
    rows: list[tuple[Cell, ...]] = []
    for entry in results["schemes"].values():
        for kappa, miou in zip(*kappa_points(entry, "miou"), strict=True):
            values = entry["kappas"].get(str(kappa), entry)
            own = " (its own κ)" if str(kappa) not in entry["kappas"] else ""
            rows.append((entry["label"] + own, format_number(kappa), miou, share("coverage")(values),
                         share("zero_iou_share")(values)))  # fmt: skip
    columns = ("scheme", "κ at test", "mIoU", "pixel coverage", "classes never right")
    return Table("κ at test, %", columns, tuple(rows)) if rows else None
