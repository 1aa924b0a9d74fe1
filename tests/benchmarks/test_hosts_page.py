"""docs/hosts.md: what it says follows from the figures, and what has not been run is said to be so."""

from __future__ import annotations

import importlib
import json
import re
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines.benchmark.intervals import t_interval
from pipelines.results_doc import section_blocks, write_results
from stage2_segmentation.hosts import host_kinds
from tests.settings_files import ROOT

MACHINE = {"rounds": 2, "machine": {"cpu": "made up"}, "threads": 2}
RECORD = {
    "kappa": None, "device": "cpu", "seconds": [1.0, 1.0], "memory_mib": 100, "needed_mib": 90, "parameters": 2_000_000,
    "macs": 3_000_000_000,
}  # fmt: skip


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, which finds no result files but that of the recipes' costs."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "cost.json").write_text((ROOT / "benchmarks" / "results" / "cost.json").read_text("utf-8"), "utf-8")
    for name in ("hosts", "hosts_accuracy", "hosts_cost", "hosts_encoder_only"):
        monkeypatch.setattr(importlib.import_module(name), "ROOT", tmp_path)
    return importlib.import_module("hosts")


def text_of(page: ModuleType) -> str:
    page.ROOT.joinpath("docs").mkdir(exist_ok=True)
    write_results(page.ROOT / "docs" / "hosts.md", page.sections(), title="Choosing a host")
    return str((page.ROOT / "docs" / "hosts.md").read_text("utf-8"))


def write(page: ModuleType, name: str, comparisons: dict[str, list[dict[str, Any]]]) -> None:
    held = {key: {**MACHINE, "variants": [{**RECORD, **one} for one in found]} for key, found in comparisons.items()}
    path = page.ROOT / "benchmarks" / "results" / f"{name}.json"
    path.write_text(json.dumps({"comparisons": held}), "utf-8")


def took(way: str, classes: int, *seconds: float, **more: Any) -> dict[str, Any]:
    kappa = None if way == "all" else 100
    return {"name": f"{way} labels, ours", "classes": classes, "cpu_seconds": list(seconds), "kappa": kappa, **more}


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    """Where this fails: python benchmarks/hosts.py."""
    program, written = importlib.import_module("hosts"), ROOT / "docs" / "hosts.md"
    blocks = [block for section in program.sections() for block in section_blocks(section)]
    assert written.read_text("utf-8").endswith("\n\n".join(blocks) + "\n")


def test_what_has_not_been_run_is_said_with_the_command_that_does(page: ModuleType) -> None:
    text = text_of(page)
    assert "This study has not been run yet:\n\n```sh\nkappaseg benchmark configs/cocostuff171_mini/" in text
    for program in ("hosts_in_k.py", "encoder_only.py"):
        assert f"Not measured yet:\n\n```sh\nOMP_NUM_THREADS=2 python benchmarks/{program}\n```" in text
    assert "mIoU in the study" not in text and "Least time" not in text


def test_every_host_has_its_words_and_none_has_a_figure(page: ModuleType) -> None:
    words = importlib.import_module("hosts_words").HOSTS
    assert set(host_kinds()) <= {host.kind for host in words}
    names = re.compile(r"Mask2Former|DeepLabV3|DINOv\d")
    assert not any(re.search(r"\d", names.sub("", host.words)) for host in words)
    text = text_of(page)
    for host in words:
        assert (f"**{host.title}** (`host.kind: {host.kind}`" in text) == (host.kind in host_kinds())


def test_where_selection_saves_nothing_is_told_by_the_ratios_of_the_turns(page: ModuleType) -> None:
    flat = [took("all", 171, 1.0, 1.1), took("all", 847, 1.04, 1.04), took("kept", 171, 1.0, 1.1)]
    steep = [took("all", 171, 1.2, 1.1), took("all", 847, 4.0, 6.0), took("kept", 171, 1.0, 1.0)]
    steep.append(took("kept", 5000, 2.0, 2.0, memory_mib=50))
    write(page, "hosts_in_k", {"training, Flat": [*flat, took("kept", 5000, 1.0, 1.0)], "training, Steep": steep})
    text = text_of(page)
    assert "saves no time in training** (all labels take less than 1.05 times as long): Flat at K = 171, 847." in text
    assert "It saves most in training of Steep at K = 847: all labels take 2.5 times as long." in text
    assert re.search(r"training, Steep +\| time +\| 1.15 \(1.10 to 1.20\) \| 2.50 \(2.00 to 3.00\)", text)
    assert re.search(r"training, Steep +\| memory +\| +1.00 \| +2.00 \|", text)
    assert "Selection saves no time at all in training Flat, at any K" in text
    assert "Least time for a step of training, kept labels, processor s: Steep (1.00); Flat (1.05)." in text


def test_what_was_too_large_is_estimated_and_nothing_is_said_of_its_time(page: ModuleType) -> None:
    large = took("all", 5000, skipped="needs about 90 GiB", needed_mib=92_160)
    write(page, "hosts_in_k", {"inference, Large": [large, took("kept", 171, 1.0, 2.0), took("kept", 5000, 1.0, 2.0)]})
    text = text_of(page)
    assert re.search(r"Large +\| all labels +\| +– \| +92,160 † \|", text)
    assert "Selection saves most" not in text and "It saves most" not in text


def study(**miou: list[float]) -> dict[str, Any]:
    schemes = {
        name.replace("_", "-"): {
            "label": name, "seeds": list(range(len(values))), "miou": statistics.fmean(values) if values else None,
            "miou_interval": t_interval(values), "network": {"steps": 300} if values else None,
        }
        for name, values in miou.items()
    }  # fmt: skip
    return {"data": {"num_classes": 171, "images": 50}, "schemes": schemes}


def write_study(page: ModuleType, found: dict[str, Any], name: str = "hosts") -> str:
    path = page.ROOT / "benchmarks" / "results" / f"cocostuff171_mini_{name}_benchmark.json"
    path.write_text(json.dumps(found), "utf-8")
    return text_of(page)


def test_a_scheme_is_held_against_all_labels_of_its_own_host(page: ModuleType) -> None:
    text = write_study(
        page,
        study(
            segmenter_baseline=[0.04, 0.05, 0.06], segmenter_joint=[0.07, 0.08, 0.06], deeplabv3_baseline=[0.20, 0.22],
            deeplabv3_joint=[0.18], deeplabv3_oracle=[],
        ),
    )  # fmt: skip
    assert re.search(r"\| Segmenter +\| +5.0 ± 1.0 \| +7.0 ± 1.0 \(\+2.0\) \| +– \|", text)
    assert re.search(r"\| DeepLabV3 +\| +21.0 ± 1.4 \| +18.0 \(-3.0\) \| +– \| +– \|", text)
    assert "above that of all labels for 1 of 2 hosts (not of DeepLabV3); differences of -3.0 to +2.0 points." in text
    assert "mIoU in the study below, joint, best first: DeepLabV3 18.0; Segmenter 7.0 %." in text
    assert "Segmenter gains most by ranking in the joint scheme: +2.0 points." in text
    assert "UPerNet |" not in text


def test_what_the_rankings_keep_is_told_for_each_scheme(page: ModuleType) -> None:
    found = study(segmenter_joint=[0.1], deeplabv3_joint=[0.1], upernet_joint=[], segmenter_independent=[0.2])
    for name, recall in (("segmenter-joint", 0.496), ("deeplabv3-joint", 0.61), ("segmenter-independent", 0.67)):
        found["schemes"][name] |= {"recall": recall, "kappa": 25.0}
    said = "their rankings keep 50 to 61 % in the joint scheme (κ = 25), 67 % in the independent scheme (κ = 25), and"
    assert said in write_study(page, found)


def test_encoder_only_is_held_against_segmenter_on_its_vit(page: ModuleType) -> None:
    found = study(encoder_only_joint=[0.1], segmenter_hybrid_joint=[0.08], encoder_only_oracle=[0.2])
    for name, macs in (("encoder-only-joint", 75.0), ("segmenter-hybrid-joint", 100.0)):
        found["schemes"][name]["network_macs"] = macs
    assert "in multiply-accumulates of the network: joint +2.0 (-25 %)." in write_study(page, found)


def test_panoptic_quality_is_shown_with_its_deviation_over_seeds(page: ModuleType) -> None:
    found = study(baseline=[0.1, 0.12], joint=[])
    quality = [0.125, 0.135]
    found["schemes"]["baseline"] |= {"pq": 0.13, "pq_interval": t_interval(quality), "pq_things": 0.25}
    text = write_study(page, found, "panoptic")
    assert re.search(r"\| baseline +\| +11.0 ± 1.4 \| +13.0 ± 0.7 \| +– \| +– \| +25.0 \| +– \|", text)
    assert re.search(r"\| joint +\| +– \| +– \|", text)
    assert "PQ, best first: baseline 13.00 %." in text


@pytest.mark.parametrize(
    ("segmenter", "said"),
    [((2.1, 2.5), "1.15"), ((1.0, 1.2), "0.55"), ((1.9, 2.1), "1.00 (turns on both sides of 1)")],
)
def test_a_ratio_of_times_says_where_the_turns_do_not_agree(
    page: ModuleType, segmenter: tuple[float, float], said: str
) -> None:
    one = {"classes": 171, "cpu_seconds": [2.0, 2.0]}
    others = [{**one, "name": "Segmenter", "cpu_seconds": list(segmenter)}, {**one, "name": "EoMT, 100 queries"}]
    write(page, "encoder_only", {"inference, ViT-S/16, K = 171": [*others, {**one, "name": "encoder-only"}]})
    text = text_of(page)
    assert f"time of Segmenter over that of encoder-only: inference, ViT-S/16, K = 171: {said}." in text
    assert re.search(r"\| EoMT, 100 queries +\| +2.00 \| +3.00 \| +2.00 \| 1.00 \(1.00 to 1.00\) \| +100 \|", text)
