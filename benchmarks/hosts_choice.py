"""A part of docs/hosts.md: which host when. Every sentence is chosen by the figures, or holds none."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import hosts_accuracy
import hosts_cost
import hosts_encoder_only
from hosts_words import HOSTS, SAME_VIT, HostWords

from pipelines.bench.turns import Record, seconds
from pipelines.results_doc import Section, format_number
from stage2_segmentation.hosts import host_kinds

TITLE = "Which host when"
ENCODER_ONLY = next(host.title for host in HOSTS if host.kind == "encoder_only")


def present() -> list[HostWords]:
    """The hosts that there are, in the order of their words."""
    return [host for host in HOSTS if host.kind in host_kinds()]


def sections() -> Iterator[Section]:
    points = [*by_need(), *by_cost(hosts_cost.comparisons()), *by_accuracy(hosts_accuracy.entries()), *on_a_vit()]
    yield Section(TITLE, ("\n".join(f"- {point}" for point in points),))


def by_need() -> Iterator[str]:
    """What no figure decides."""
    kinds = {host.kind: host.title for host in present()}
    yield "To reproduce the paper's tables: Segmenter; DeepLabV3 and UPerNet for those of its other networks."
    yield "A frozen backbone with stored features: any but encoder-only, which has to train the last blocks."
    objects = [kinds[kind] for kind in ("maskformer", "mask2former") if kind in kinds]
    if objects:
        yield f"Objects that have to be told apart: {' or '.join(objects)}; the others give label maps alone."


def by_cost(found: hosts_cost.Comparisons) -> Iterator[str]:
    """The cheapest of the measured networks, and for which of them selection is no reason."""
    for mode, what in (("inference", "image"), ("training", "step of training")):
        hosts = hosts_cost.of_mode(found, mode)
        for figure, unit, of in (("time", "processor s", seconds), ("memory", "MiB", lambda one: one["memory_mib"])):
            ranked = sorted((of(record), title) for title, records in hosts.items() if (record := kept(records)))
            if ranked:
                told = "; ".join(f"{title} ({format_number(value)})" for value, title in ranked)
                yield f"Least {figure} for an {what}, kept labels, {unit}: {told}.".replace("an step", "a step")
    training = hosts_cost.of_mode(found, "training")
    nothing = [title for title, records in training.items() if pays_nowhere(records)]
    if nothing:
        yield (
            f"Selection saves no time at all in training {', '.join(nothing)}, at any K that was measured: take them "
            "with selection for its accuracy, or without it."
        )


def kept(records: Sequence[Record]) -> Record | None:
    """With kept labels of the smallest K."""
    found = hosts_cost.with_kept(records, 0)
    return None if "skipped" in found else found


def pays_nowhere(records: Sequence[Record]) -> bool:
    return hosts_cost.saved_nothing(records) == hosts_cost.vocabularies(records)


def by_accuracy(found: hosts_accuracy.Entries | None) -> Iterator[str]:
    """The best of the study, and the hosts that ranking helped most."""
    if found is None:
        return
    for scheme in ("joint", "independent"):
        ranked = sorted(
            ((value, title) for key, title in hosts_accuracy.study_rows()
             if (value := hosts_accuracy.miou(found, f"{key}-{scheme}")) is not None), reverse=True,
        )  # fmt: skip
        if ranked:
            told = "; ".join(f"{title} {100 * value:.1f}" for value, title in ranked)
            yield f"mIoU in the study below, {scheme}, best first: {told} %."
        helped = sorted(hosts_accuracy.gains(found, scheme).items(), key=lambda pair: -pair[1])
        if helped:
            title, gain = helped[0]
            direction = "gains most by" if gain > 0 else "loses least by"
            yield f"{title} {direction} ranking in the {scheme} scheme: {hosts_accuracy.points(gain)} points."


def on_a_vit() -> Iterator[str]:
    """Encoder-only against Segmenter where both stand on the same ViT."""
    study = hosts_accuracy.entries() or {}
    key = next(host.study for host in HOSTS if host.kind == "encoder_only")
    told = []
    for scheme, title in hosts_accuracy.SCHEMES.items():
        ours, theirs = (study.get(f"{name}-{scheme}", {}) for name in (key, SAME_VIT[0]))
        if ours.get("miou") is not None and theirs.get("miou") is not None:
            more = hosts_accuracy.points(ours["miou"] - theirs["miou"])
            told.append(f"{title} {more} ({100 * (ours['network_macs'] / theirs['network_macs'] - 1):+.0f} %)")
    if told:
        yield (
            f"On the same small ViT, {ENCODER_ONLY.lower()} less Segmenter in points of mIoU, and in brackets in "
            f"multiply-accumulates of the network: {', '.join(told)}."
        )
    first, second = hosts_encoder_only.OURS, hosts_encoder_only.SEGMENTER
    times = []
    for name, records in hosts_encoder_only.comparisons().items():
        run = hosts_encoder_only.by_name(records)
        if {first, second} <= set(run):
            turns = hosts_encoder_only.to_ours(run[second], run[first])
            unsure = " (turns on both sides of 1)" if turns[0] <= 1 <= turns[-1] else ""
            times.append(f"{name}: {statistics.median(turns):.2f}{unsure}")
    if times:
        yield f"On one ViT of published size, time of {second} over that of {first}: {'; '.join(times)}."
