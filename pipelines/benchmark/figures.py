"""results.json as diagrams: curves, and bars with intervals. Legend: K all labels, κ kept labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from pipelines.benchmark.cells import Results
from pipelines.benchmark.tables import kappa_points
from pipelines.curves import STYLES, Curve

NAN = float("nan")
#: name of a line → (x values, y values)
Series = dict[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Bar:
    """value, interval: in percent.   kind: bars of one kind have one colour."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    kind: int = 0


def curves(results: Results) -> list[Curve]:
    """Every diagram that the results have numbers for."""
    made = [
        labels_per_image(results), coverage_curve(results), kappa_curve(results), calibration_curve(results),
        scale_curve(results),
    ]  # fmt: skip
    return [curve for curve in made if curve is not None and curve.series]


def labels_per_image(results: Results) -> Curve | None:
    """How many labels images have (Fig. 2, He et al. 2022)."""
    splits = results["classes"].get("labels_per_image")
    if not splits:
        return None
    called = {"train": "training images", "val": "validation images"}
    series = {
        called[split]: (list(range(len(n))), [100 * k / max(1, sum(n)) for k in n]) for split, n in splits.items()
    }
    mean = {called[split]: sum(i * k for i, k in enumerate(n)) / max(1, sum(n)) for split, n in splits.items()}
    note = "; ".join(f"{split}: {value:.1f} of {results['data']['num_classes']:,} on average"
                     for split, value in mean.items())  # fmt: skip
    return Curve("Labels in an image (the paper's Fig. 2)", "labels", "images, %", series, note=f"{note}.")


def ranked_schemes(results: Results) -> dict[str, Mapping[str, Any]]:
    """label → entry of the first schemes that rank by themselves, without seeing the truth."""
    names = [results["roles"].get(role) for role in ("baseline", "independent", "joint", "MT")]
    entries = [results["schemes"][name] for name in dict.fromkeys(names) if name is not None]
    return {entry["label"]: entry for entry in entries}


def coverage_curve(results: Results) -> Curve:
    """Pixel coverage of the first κ labels by presence score."""
    series = {
        f"{label} ({entry['presence']})": (entry["curves"]["kappa"], percent(entry["curves"]["pixel_coverage"]))
        for label, entry in ranked_schemes(results).items()
    }
    return Curve("Pixels whose label is among the best κ", "κ", "pixel coverage, %", series, (0, 102), "log")


def kappa_curve(results: Results) -> Curve | None:
    """mIoU over κ at test (Table 4, He et al. 2022)."""
    points = {entry["label"]: kappa_points(entry, "miou") for entry in results["schemes"].values()}
    series = first_ones({label: found for label, found in points.items() if len(found[0]) > 1})
    title = "mIoU over κ at test (the paper's Table 4)"
    return Curve(title, "κ at test", "mIoU, %", series, x_scale="log") if series else None


def calibration_curve(results: Results) -> Curve | None:
    """Reliability: how often a label is there, over the score that it got."""
    series: Series = {}
    for label, entry in ranked_schemes(results).items():
        bins = entry["calibration"] or []
        if bins:
            series[label] = percent([b["score"] for b in bins]), percent([b["observed"] for b in bins])
    if not series:
        return None
    return Curve(
        "Presence scores as probabilities", "mean score of a bin, %", "labels present, %",
        {**series, "as it should be": ([0, 100], [0, 100])}, (0, 102),
        note="Ten bins of equal width, all seeds together. Above the straight line: scores too low.",
    )  # fmt: skip


def scale_curve(results: Results) -> Curve | None:
    """The learned factor of each rank (Fig. 7, He et al. 2022)."""
    series: Series = {
        entry["label"]: (list(range(1, len(entry["rank_scale"]) + 1)), entry["rank_scale"])
        for entry in results["schemes"].values()
        if entry.get("rank_scale")
    }
    shown = first_ones(series)
    note = "Mean over seeds. Larger: pixels decide more sharply for or against the label at that rank."
    title = "What the network multiplies each rank with (the paper's Fig. 7)"
    return Curve(title, "rank", "1/τ", shown, note=note) if shown else None


def first_ones(series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Series:
    """As many lines as can be told apart; a table has the others."""
    return dict(list(series.items())[: len(STYLES)])


def cost_curves(several: Sequence[Results]) -> list[Curve]:
    """Cost over the size of the vocabulary, for benchmarks of several sizes; empty for fewer than two."""
    ordered = sorted(several, key=lambda one: one["data"]["num_classes"])
    if len({one["data"]["num_classes"] for one in ordered}) < 2:
        return []
    measures = {
        "train_cpu_seconds": ("Processor time of training", "s", 1.0),
        "peak_memory": ("Peak memory of training", "MiB", 1.0),
        "latency_p50_ms": ("Time for one image, p50", "ms", 1.0),
        "macs": ("MACs for one image", "G", 1e9),
    }
    made = []
    for measure, (title, unit, scale) in measures.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        for one in ordered:
            for entry in one["schemes"].values():
                if entry.get(measure) is not None:
                    x, y = series.setdefault(entry["label"], ([], []))
                    x.append(one["data"]["num_classes"])
                    y.append(entry[measure] / scale)
        if series:
            made.append(Curve(f"{title} against K", "labels in the vocabulary, K", unit, dict(series), x_scale="log"))
    return made


def miou_bars(results: Results) -> str:
    """mIoU of every scheme with its interval over seeds: how far known labels would reach (Fig. 3, He et al. 2022)."""
    kinds = {"complete": 0, "cache": 1, "joint": 2, "oracle": 3}
    bars = []
    for entry in results["schemes"].values():
        if entry.get("miou") is None:
            continue
        low_high = entry.get("miou_interval")
        reach = None if low_high is None else (100 * low_high[0], 100 * low_high[1])
        bars.append(Bar(entry["label"], 100 * entry["miou"], reach, kinds.get(entry["test"], 4)))
    return bars_svg("mIoU of each scheme, %", bars) if bars else ""


def bars_svg(title: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars with their values and intervals as an <svg> element; text takes the colour of the page."""
    top = max([bar.value for bar in bars] + [bar.interval[1] for bar in bars if bar.interval] + [1e-9])
    rows = "".join(bar_row(place, bar, top) for place, bar in enumerate(bars))
    spoken = "; ".join(f"{bar.name} {bar.value:.2f}" for bar in bars)
    return (
        f'<svg class="bars" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 {44 * len(bars) + 4}" role="img" '
        f'font-size="15" fill="currentColor"><title>{escape(title)}: {escape(spoken)}</title>{rows}</svg>'
    )


def bar_row(place: int, bar: Bar, top: float) -> str:
    """One bar: name above it, value behind it, interval as a line across its end."""
    colour, _ = STYLES[bar.kind % len(STYLES)]
    scale, middle = 470 / top, 29
    parts = [
        f'<text x="0" y="15">{escape(bar.name)}</text>',
        f'<rect x="0" y="21" width="{max(1.0, scale * bar.value):.1f}" height="16" rx="2" fill="{colour}"/>',
    ]
    end = scale * bar.value
    if bar.interval is not None:
        low, high = scale * max(0.0, bar.interval[0]), scale * min(top, bar.interval[1])
        parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} 25v8M{high:.1f} 25v8" stroke="currentColor" '
                     'stroke-width="1.5" fill="none"/>')  # fmt: skip
        end = max(end, high)
    parts.append(f'<text x="{end + 8:.1f}" y="34">{bar.value:.2f}</text>')
    return f'<g transform="translate(0 {44 * place})">{"".join(parts)}</g>'


def percent(shares: Sequence[float | None]) -> list[float]:
    """Shares as percent; a gap where there is none."""
    return [NAN if value is None else 100 * value for value in shares]
