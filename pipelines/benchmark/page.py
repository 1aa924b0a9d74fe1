"""OUT/report.html: a benchmark on one self-contained page, from its results.json and what the measurements kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from kappaseg_core.files import write_text
from pipelines.benchmark import figures, tables
from pipelines.benchmark.cells import Results, between, span
from pipelines.benchmark.claims import FAILS, HOLDS, OPEN
from pipelines.benchmark.gallery import examples
from pipelines.benchmark.records import read_records
from pipelines.curves import Curve, curve_svg
from pipelines.report import Table, template
from pipelines.results_doc import Cell, format_seconds, read_results

#: differences that the page begins with, by role
MAIN = (("independent", "baseline"), ("joint", "baseline"), ("joint", "independent"), ("oracle", "joint"))


def write_page(out: Path, *, others: Sequence[Path] = ()) -> Path:
    """Write the page beside results.json, whole or not at all.

    others: further benchmarks, whose vocabularies have other sizes, for cost against K.
    Raises UserError where `out` or one of the others holds no results.
    """
    results = read_results(out / "results.json")
    records = read_records(out)
    shown = examples(records, results["roles"])
    several = [results, *(read_results(other / "results.json") for other in others)]
    page = template("benchmark.html").render(
        title=f"{results['name']}: {len(results['schemes'])} schemes side by side",
        intro=introduction(results),
        findings=list(findings(results)),
        tables=table_sections(results, several),
        bars=Markup(figures.miou_bars(results)),
        curves=[(curve, Markup(curve_svg(curve))) for curve in diagrams(results, several)],
        examples=shown,
        classes=tables.class_tables(results),
        runs=run_table(results),
        settings=yaml.safe_dump(records.plan.get("config", {}), sort_keys=False, allow_unicode=True),
        missing=[*results["missing"], *(line for line in records.missing if line not in results["missing"])],
        footer=f"kappaseg {results['version'] or ''}, commit {', '.join(results['commits'])}".replace(" ,", ","),
    )
    path = out / "report.html"
    write_text(path, page)
    return path


def introduction(results: Results) -> list[str]:
    """What was compared, on what, and by what machine."""
    data, schemes = results["data"], results["schemes"]
    seeds = [len(entry["seeds"]) for entry in schemes.values() if entry["seeds"]]
    sizes = (
        f"{data['num_classes']:,} labels, {data['images']:,} validation images" if data["images"] else "no images yet"
    )
    told = {key: ", ".join(v) if isinstance(v, list) else v for key, v in results["machine"].items()}
    machine = ", ".join(f"{key} {value}" for key, value in told.items() if value)
    return [
        f"{len(schemes)} schemes, {span(seeds)} each, on {data['name'] or data['kind']}: {sizes}. Every scheme "
        "is the same segmentation network; what differs is the labels that it chooses among for each image, and "
        "where their ranking comes from.",
        f"Machine: {machine}.",
    ]


def findings(results: Results) -> Iterator[str]:
    """The result in sentences, each with its numbers: how the claims fare, the main differences, classes at zero."""
    claims, schemes = results["claims"], results["schemes"]
    if claims:
        count = Counter(claim["verdict"] for claim in claims)
        yield (
            f"Claims of the paper that these schemes can be held against: {len(claims)}. {count[HOLDS]} of them hold, "
            f"{count[FAILS]} do not, {count[OPEN]} are not decided by these runs."
            + (f" {alone} of them rest on one seed." if (alone := sum(len(c["seeds"]) == 1 for c in claims)) else "")
        )
    roles = results["roles"]
    for better, worse in MAIN:
        for claim in claims:
            if (claim["better"], claim["worse"]) == (roles.get(better), roles.get(worse)):
                yield sentence(claim, schemes)
                break
    rated = {entry["label"]: entry["zero_iou_share"] for entry in schemes.values() if "zero_iou_share" in entry}
    if rated:
        shares = "; ".join(f"{label} {100 * share:.0f} %" for label, share in rated.items())
        yield f"Classes of the truth that are never right, which a mean hides: {shares}."


def sentence(claim: Mapping[str, Any], schemes: Mapping[str, Any]) -> str:
    """A claim and its difference: “Joint − independent: +1.20 points of mIoU (0.31 to 2.10 over images, …): holds”."""
    seeds = between(claim["seeds_interval"])
    known = f"{between(claim['interval'])} over images, " + (f"{seeds} over seeds" if seeds else "one seed")
    better, worse = (schemes[claim[key]]["label"] for key in ("better", "worse"))
    verdict = f"{claim['claim']} {tables.MARKS[claim['verdict']]} {claim['verdict']}"
    return f"{better} − {worse}: {100 * claim['mean']:+.2f} points of mIoU ({known}). Claim: {verdict}."


def table_sections(results: Results, several: Sequence[Results]) -> list[tuple[str, str, list[Table]]]:
    """(anchor, heading, tables) in the order of the page; sections without a table are left out."""
    sections = [
        ("result", "Joint against independent", [tables.accuracy_table(results)]),
        ("claims", "What the paper claims", [tables.claims_table(results)]),
        ("cost", "What it costs", [tables.training_table(results), tables.deployed_table(results),
                                   tables.cost_against_k(several)]),
        ("labels", "Rare labels and presence scores", [tables.frequency_table(results), tables.ranking_table(results),
                                                       tables.kappa_table(results)]),
    ]  # fmt: skip
    found = [(anchor, heading, [table for table in some if table]) for anchor, heading, some in sections]
    return [section for section in found if section[2]]


def diagrams(results: Results, several: Sequence[Results]) -> list[Curve]:
    return [*figures.curves(results), *figures.cost_curves(several)]


def run_table(results: Results) -> Table:
    """Every step with its directory: where the numbers of the page come from."""
    rows: list[tuple[Cell, ...]] = [
        (run["step"], run["run"], run["fingerprint"][:12], "" if run["seed"] is None else str(run["seed"]),
         "not done" if not run["done"] else format_seconds(run["seconds"] or 0.0), run["peak_memory_mib"],
         run["attempts"])
        for run in results["runs"]
    ]  # fmt: skip
    columns = ("step", "directory", "fingerprint", "seed", "took", "memory, MiB", "attempts")
    return Table("Steps", columns, tuple(rows))
