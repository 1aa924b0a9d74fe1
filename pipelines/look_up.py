"""`kappaseg lookup` and `kappaseg cache`: what a label cache holds. Starts without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from label_cache import LabelCache, quality
from pipelines.tables import show_table

KAPPAS = (1, 5, 10, 20, 25, 50, 100, 200)


def print_labels(path: Path, image_ids: Sequence[str], kappa: int, *, as_json: bool = False) -> None:
    """The first κ labels of each image with scores, as a table or as JSON."""
    cache = LabelCache.open(path)
    found = cache.lookup(image_ids, kappa)
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
    training = next((s for s in cache.splits if "held-out" not in info.sources[s]), None)
    for split in cache.splits:
        columns = cache.read_split(split)
        kappas = [kappa for kappa in KAPPAS if kappa <= cache.k]
        kinds = ", ".join(f"{count} {source}" for source, count in info.sources[split].items())
        recall, coverage = quality.recall_at(columns, kappas), quality.coverage_at(columns, kappas)
        series = {"label recall": recall.micro, "pixel coverage": coverage.micro, "class coverage": coverage.class_mean}
        if training is not None:
            prior = quality.frequency_prior(cache.read_split(training), columns)
            series["coverage of the frequency prior"] = quality.coverage_at(prior, kappas).micro
        rows = [[name, *(f"{100 * v:.1f}" for v in values)] for name, values in series.items()]
        show_table(f"{split}: {kinds}", ["% at κ =", *map(str, kappas)], rows)
    return 0


def check_cache(path: Path) -> int:
    """Verify every part, checksum, order and the index; 0 where all is well, else 2 with one line per problem."""
    problems = quality.check(LabelCache.open(path))
    for line in problems:
        print(line)
    print(f"{path}: {'whole' if not problems else f'{len(problems)} problems'}")
    return 2 if problems else 0
