"""`kappaseg lookup` and `kappaseg cache`: what a label cache holds. Starts without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from label_cache import LabelCache, quality
from pipelines.tables import show_table

KAPPAS = (1, 5, 10, 20, 25, 50, 100, 200)
SHOWN = 10


def print_labels(path: Path, image_ids: Sequence[str], kappa: int | None = None, *, as_json: bool = False) -> None:
    """The first κ labels of each image with scores, as a table or as JSON; κ not given: 10, or all stored."""
    cache = LabelCache.open(path)
    found = cache.lookup(image_ids, min(SHOWN, cache.k) if kappa is None else kappa)
    rows = [
        {"image_id": image_id, "rank": rank, "id": int(label), "name": cache.class_names[label],
         "score": round(float(score), 5), "source": str(source)}
        for image_id, labels, scores, source in zip(
            found.image_ids, found.labels, found.scores, found.source, strict=True
        )
        for rank, (label, score) in enumerate(zip(labels, scores, strict=True), 1)
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    for image_id in found.image_ids:
        mine = [row for row in rows if row["image_id"] == image_id]
        cells = [[str(row["rank"]), str(row["id"]), str(row["name"]), f"{row['score']:.4f}"] for row in mine]
        show_table(f"{image_id}  ({mine[0]['source']})", ["rank", "id", "label", "score"], cells)


def print_info(path: Path) -> int:
    """What the cache was made from, its rows, and how much of the truth its first κ ranks hold."""
    cache = LabelCache.open(path)
    info = quality.summary(cache)
    key = info.key
    facts = {
        "classes": f"{key.num_classes} ({key.classes[:12]})",
        "ranks stored": str(key.k),
        "model": key.model[:12],
        "preprocessing": key.preprocess[:12],
        "folds": str(key.folds or "none"),
        "parts": f"{info.parts}, {info.bytes / 2**20:.2f} MiB",
        "fingerprint": info.fingerprint[:12],
    }
    show_table(str(path), ["", ""], [[name, value] for name, value in facts.items()])
    for split, series in coverage_curves(cache).items():
        kinds = ", ".join(f"{count} {source}" for source, count in info.sources[split].items())
        kappas = [str(kappa) for kappa in series.pop("kappa")]
        rows = [[name.replace("_", " "), *(f"{100 * v:.1f}" for v in values)] for name, values in series.items()]
        show_table(f"{split}: {kinds}", ["% at κ =", *kappas], rows)
    return 0


def coverage_curves(cache: LabelCache) -> dict[str, dict[str, tuple[float, ...]]]:
    """Per split, at each κ of KAPPAS that is stored: recall and coverage, also of the training split's frequencies."""
    sources = quality.summary(cache).sources
    training = next((split for split in cache.splits if "held-out" not in sources[split]), None)
    kappas = tuple(kappa for kappa in KAPPAS if kappa <= cache.k)
    curves: dict[str, dict[str, tuple[float, ...]]] = {}
    for split in cache.splits:
        columns = cache.read_split(split)
        coverage = quality.coverage_at(columns, kappas)
        curves[split] = {
            "kappa": kappas, "label_recall": quality.recall_at(columns, kappas).micro,
            "pixel_coverage": coverage.micro, "class_coverage": coverage.class_mean,
        }  # fmt: skip
        if training is not None:
            prior = quality.coverage_at(quality.frequency_prior(cache.read_split(training), columns), kappas)
            curves[split] |= {"prior_pixel_coverage": prior.micro, "prior_class_coverage": prior.class_mean}
    return curves


def check_cache(path: Path) -> int:
    """Verify every part, checksum, order and the index; 0 where all is well, else 2 with one line per problem."""
    problems = quality.check(LabelCache.open(path))
    for line in problems:
        print(line)
    found = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "whole"
    print(f"{path}: {found}")
    return 2 if problems else 0
