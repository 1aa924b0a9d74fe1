"""What benchmarks/hosts_in_k.py and benchmarks/encoder_only.py measure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

import pytest

from benchmarks import encoder_only, hosts_in_k
from pipelines.bench.needs import cost
from pipelines.bench.variants import Variant
from stage2_segmentation.hosts import settings_of

if TYPE_CHECKING:
    from tests.pipelines.bench.conftest import FakeWorker


@pytest.mark.parametrize("host", hosts_in_k.HOSTS, ids=lambda host: host.kind)
def test_a_host_is_measured_with_all_labels_for_every_k_and_with_kept_ones_for_two(host: hosts_in_k.Measured) -> None:
    found = list(host.variants(train=True))
    named = {name: [v for v in found if v.name == name] for name in dict.fromkeys(v.name for v in found)}
    every, kept, alone = named.values()
    assert [v.classes for v in every] == [171, 847, 1284, 5000] and {v.kappa for v in every} == {None}
    assert [v.classes for v in kept] == [171, 5000] and {v.kappa for v in kept} == {100}
    assert [v.way for v in alone] == ["backbone"]
    assert {(v.size, v.images, v.precision) for v in found} == {(512, 1, "fp32")}


@pytest.mark.parametrize("host", hosts_in_k.HOSTS, ids=lambda host: host.kind)
def test_with_all_labels_it_is_the_plain_host_where_the_host_has_one(host: hosts_in_k.Measured) -> None:
    every, kept = (next(v for v in host.variants(train=False) if bool(v.kappa) == chosen) for chosen in (False, True))
    (_, plain), (_, ranked) = (settings_of(host.kind, v.config.host.options) for v in (every, kept))
    choices = get_args(get_type_hints(type(plain))["rank_scale"])
    assert ranked.rank_scale == "layer_norm"
    assert plain.rank_scale == ("none" if "none" in choices else "layer_norm")


def test_every_network_on_one_vit_is_there_for_each_size_and_k() -> None:
    found = encoder_only.comparisons()
    assert len(found) == 6
    for variants in found.values():
        assert len({v.config.backbone.name for v in variants}) == 1
        assert {v.kappa for v in variants if v.way == "ours"} == {100}
        assert {v.config.labels.head for v in variants if v.way == "ours"} == {"encoder", "pooled"}
        assert [v.config.host.options["queries"] for v in variants if v.way == "eomt"] == [100, 200, 100, 200]


def test_a_stopped_measurement_goes_on_with_what_is_missing(
    tiny: Variant, fake: type[FakeWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"inference, A": (replace(tiny, name="a"),), "training, A": (replace(tiny, name="b"),)}
    monkeypatch.setattr(hosts_in_k, "comparisons", lambda: named)
    file = tmp_path / "found.json"
    words = ["--to", str(file), "--rounds", "1", "--limit", "8"]
    hosts_in_k.main([*words, "--only", "training"])
    assert set(fake.asked) == {"b"}
    hosts_in_k.main(words)
    assert fake.asked == ["b", "b", "a", "a"]
    hosts_in_k.main([*words, "--again", "--only", "inference"])
    assert fake.asked[4:] == ["a", "a"]
    records = json.loads(file.read_text())["comparisons"]
    assert list(records) == list(named)
    assert records["inference, A"]["variants"][0]["macs"] == cost(tiny).macs > 0
