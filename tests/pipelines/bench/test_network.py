"""`kappaseg bench network`: what is measured, and what it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kappaseg_core.errors import UserError
from pipelines.bench.arguments import VOCABULARIES
from pipelines.bench.figures import STYLES, apart, cost_figure
from pipelines.bench.network import Plan, plan_of
from pipelines.bench.shown import show
from pipelines.bench.variants import WAYS, known_ways
from pipelines.cli import build_parser, main


def planned(*words: str) -> Plan:
    """The plan of a command line without settings."""
    return plan_of(build_parser().parse_args(["bench", "network", *words]), ())


def test_without_a_configuration_it_is_segmenter_on_the_usual_vocabularies() -> None:
    plan = planned("--backbone", "Swin-T")
    assert plan.config.backbone.name == "swin_tiny_patch4_window7_224" and plan.config.host.kind == "segmenter"
    assert (plan.classes, plan.kappa, plan.size, plan.modes) == (VOCABULARIES, 50, 512, ("training", "inference"))
    assert {v.images for v in plan.comparisons()["training"]} == {2}
    assert {v.images for v in plan.comparisons()["inference"]} == {1}


def test_each_way_is_measured_for_each_k_and_the_backbone_once() -> None:
    plan = planned("--classes", "847", "150", "--kappa", "20", "--precision", "fp32", "bf16", "--infer")
    (found,) = plan.comparisons().values()
    names = [variant.name for variant in found if variant.precision == "fp32" and variant.classes == 150]
    assert names == [way.title for way in WAYS.values() if not way.gpu and way.way != "backbone"]
    assert [v.classes for v in found if v.way == "backbone"] == [847, 847]
    assert {v.kappa for v in found} == {20, None}
    assert not any(v.name.startswith("kept labels, published") for v in planned("--train").comparisons()["training"])


def test_the_kernel_is_left_out_on_a_gpu_alone() -> None:
    assert set(known_ways(None, "cuda")) - set(known_ways(None, "cpu")) == {"strips"}
    assert known_ways(["backbone", "ours"], "cpu") == ["ours", "backbone"]  # in the order of the table


def test_mask_networks_are_measured_in_the_ways_that_they_are_computed_in() -> None:
    assert known_ways(None, "cuda", "mask2former") == ["all", "ours", "backbone"]
    with pytest.raises(UserError, match=r"--variants published: maskformer .* name some of all, ours, backbone"):
        known_ways(["published"], "cpu", "maskformer")


def test_a_configuration_brings_its_network_its_kappa_and_the_labels_of_its_data(chain: Any) -> None:
    words = ["bench", "network", chain.settings("stage2"), "--train"]
    plan = plan_of(build_parser().parse_args(words), [("data.root", str(chain.data)), ("host.options.depth", "2")])
    assert (plan.classes, plan.kappa, plan.size) == ((4,), 2, 32)
    assert plan.config.backbone.kind == "small_cnn" and plan.config.host.options["depth"] == 2


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--kappa", "0"], "--kappa 0, wanted a number above 0"),
        (["--classes", "20"], "κ = 50 of K = 20 labels cannot be kept; give --kappa 10"),
        (["--classes", "-3"], "κ = 50 of K = -3 labels cannot be kept; give --kappa 1"),
        (["--size", "8"], "--size 8, wanted at least 32 pixels"),
        (["--rounds", "0"], "--rounds 0, wanted a number above 0"),
        (["--limit", "-1"], "--limit -1, wanted a number above 0"),
        (["--variants", "strips"], "--variants strips is what a GPU does without its kernel; leave it out"),
        (["--variants", "fast"], "invalid choice: 'fast'"),
        (["--device", "tpu"], "device = 'tpu', wanted auto, cpu, cuda"),
        (["--device", "auto"], "--device auto, wanted cpu, cuda or cuda:N"),
        (["--device", "meta"], "--device meta, wanted cpu, cuda or cuda:N"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["none.yaml"], "configuration none.yaml does not exist"),
        (["stage2.yaml"], "stage2.yaml names no data to count the labels of; give --data.root DIR or --classes K"),
        (["--host.options.widht", "8", "--train"], "unknown setting host.options.widht; did you mean width?"),
        (["--backbone", "vit-x", "--train"], "backbone.name = 'vit-x' is no model of timm"),
        (
            ["--limit", "0.01", "--train", "--classes", "60", "--size", "64", "--variants", "ours"],
            "the smallest variant needs about 0.",
        ),
        (["--optim.kind", "adam"], "optim.kind = 'adam', wanted one of 'adamw', 'sgd'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    chain: Any, refused: Any, words: list[str], wanted: str
) -> None:
    refused(chain, ["bench", "network", *words], wanted, begun="--train" in words)


RECORD = {
    "device": "cpu", "precision": "fp32", "images": 1, "cpu_seconds": [2.0], "seconds": [1.0], "memory_mib": 64,
    "needed_mib": 60,
}  # fmt: skip
RECORDS = [
    {**RECORD, "name": "published", "classes": 150, "cpu_seconds": [8.0]},
    {**RECORD, "name": "published", "classes": 20_000, "skipped": "needs about 20.0 GiB, the limit is 8.0 GiB"},
    {**RECORD, "name": "kept labels, ours", "classes": 150},
    {**RECORD, "name": "kept labels, ours", "classes": 20_000},
    {**RECORD, "name": "kept labels, ours, bf16", "precision": "bf16", "classes": 150},
    {**RECORD, "name": "backbone alone", "classes": 20_000, "memory_mib": 0},
]


def test_the_figure_names_each_way_once_and_shows_each_precision() -> None:
    svg = cost_figure("title of it", RECORDS)
    text = re.findall(r">([^<>\n]+)</text>", svg)
    assert [text.count(name) for name in ("published", "kept labels, ours", "backbone alone", "title of it")] == [1] * 4
    assert text.count("20,000") == 2  # below the last row alone
    assert "time of a step, bf16" in text and "kept labels, plain" not in text
    assert svg == cost_figure("title of it", RECORDS)  # equal figures, equal bytes


def test_a_figure_of_estimates_alone_can_be_drawn() -> None:
    assert "kept labels, ours" in cost_figure(
        "title of it", [{**RECORDS[2], "skipped": "its process ran out of memory"}]
    )


def test_every_way_has_a_line_of_its_own() -> None:
    assert {way.title for way in WAYS.values()} == set(STYLES)
    assert len(set(STYLES.values())) == len(STYLES)


def test_numbers_of_an_axis_that_would_overlap_are_left_out() -> None:
    assert apart([150, 171, 847, 1284, 1300]) == [150, 847, 1284]


def test_ratios_are_to_the_published_way_of_the_same_k(capsys: pytest.CaptureFixture[str]) -> None:
    show("title of it", [{**record, "floor_seconds": 0.25} for record in RECORDS])
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["kept", "labels,", "ours", "150", "2.00", "4.00", "64", "1.00", "25.0"] in lines
    assert ["kept", "labels,", "ours", "20,000", "2.00", "–", "64", "–", "25.0"] in lines
    assert "published, K = 20,000: left out, needs about 20.0 GiB, the limit is 8.0 GiB\n" in printed


def test_the_share_of_the_floor_is_of_the_median_of_the_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1, 2, 4 and 9 seconds the median is 3."""
    show(
        "title of it", [{**RECORDS[2], "cpu_seconds": [4.0] * 4, "seconds": [9.0, 1.0, 4.0, 2.0], "floor_seconds": 1.5}]
    )
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "kept labels, ours" in line]
    assert (row[4], row[-1]) == ("4.00", "50.0")


def test_what_was_measured_before_is_not_lost(chain: Any, refused: Any) -> None:
    (chain.home / "cost").mkdir()
    (chain.home / "cost" / "network.json").write_text("hours of work\n")
    (chain.home / "file").write_text("mine\n")
    words = ["bench", "network", "--classes", "60", "--limit", "0.01", "--out"]
    refused(chain, [*words, str(chain.home / "cost")], "network.json is there already; name another --out, or remove")
    refused(chain, [*words, str(chain.home / "file")], "file is no folder; name another")


@pytest.mark.slow
def test_the_whole_of_it_on_a_small_network(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "network", chain.settings("stage2"), "--classes", "4", "40", "--rounds", "1", "--train"]
    assert main([*words, "--variants", "published", "ours", "--out", "cost", "--floor", "--limit", "4"]) == 0
    out = Path("cost")
    assert sorted(path.name for path in out.iterdir()) == ["network.json", "training.svg"]
    found = json.loads((out / "network.json").read_text())
    variants = found["comparisons"]["training"]["variants"]
    assert [(v["name"], v["classes"]) for v in variants] == [
        ("published", 4), ("published", 40), ("kept labels, ours", 4), ("kept labels, ours", 40),
    ]  # fmt: skip
    assert all(v["cpu_seconds"][0] > 0 and v["parts"]["backbone"] > 0 and v["floor_seconds"] > 0 for v in variants)
    assert found["config"]["host"]["options"] == {"width": 8, "heads": 2, "depth": 1}
    assert "kept labels, ours" in capsys.readouterr().out
