"""What a step needs, known before it is run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kappaseg_core.config import BackboneConfig
from pipelines.bench.floor import Rates, floor_seconds, moved, rates
from pipelines.bench.needs import LIBRARIES_MIB, flops, needs
from pipelines.bench.variants import Variant
from stage2_segmentation import pixels
from stage2_segmentation.config import HostConfig


def test_all_labels_upsampled_need_three_maps_of_each_and_kept_ones_nothing(tiny: Variant) -> None:
    upsampled = replace(tiny, way="plain", kappa=None)
    more = [needs(replace(upsampled, classes=k)).step for k in (1000, 2000)]
    copies = (more[1] - more[0]) * 2**20 / (1000 * tiny.images * 32 * 32 * 4)
    assert 2.9 < copies < 4.5  # upsampled, log-softmax, gradient; and their tokens
    few, many = (needs(replace(tiny, classes=k)) for k in (1000, 20_000))
    rows = 19_000 * 8 * 4 / 2**20  # of the table of class embeddings
    assert 4 * rows < many.held - few.held < 5 * rows  # with gradients and two moments, and the sorted scores
    assert many.step - few.step < 4.5 * rows  # the moments again, and what the optimiser makes in between
    assert needs(replace(tiny, classes=20_000, train=False)).step == needs(replace(tiny, train=False)).step


def test_attention_in_steps_needs_all_of_its_weights(tiny: Variant) -> None:
    published = replace(tiny, way="published", kappa=None, classes=2000, train=False)
    weights = tiny.images * 2 * (2000 + 8 * 8) ** 2 * 4 / 2**20  # two heads
    assert needs(published).step > needs(replace(published, way="plain")).step + 0.9 * weights


@pytest.mark.parametrize(("kind", "more"), [("maskformer", {}), ("mask2former", {"encoder_layers": 1, "points": 64})])
def test_segments_and_their_matching_are_imagined(tiny: Variant, kind: str, more: dict[str, int]) -> None:
    pytest.importorskip("transformers")
    options = {"queries": 4, "width": 32, "layers": 1, "heads": 2, "ffn": 8, "norm_stages": False, **more}
    config = replace(tiny.config, backbone=BackboneConfig(name="resnet10t"), host=HostConfig(kind, options))
    trained = replace(tiny, config=config, size=64)
    assert 0 < needs(replace(trained, train=False)).step < needs(trained).step
    assert needs(replace(trained, images=32)).step > needs(trained).step


def test_using_a_network_needs_no_more_than_training_it(tiny: Variant) -> None:
    used, trained = needs(replace(tiny, train=False)), needs(tiny)
    assert used.step < trained.step and used.held < trained.held and used.held > LIBRARIES_MIB["cpu"]
    assert trained.alone == trained.held + trained.step


def test_an_estimate_leaves_the_strips_as_they_were(tiny: Variant) -> None:
    before = dict(pixels.STRIP)
    needs(tiny)
    assert before == pixels.STRIP


def test_training_has_three_times_the_operations_of_use(tiny: Variant) -> None:
    assert flops(tiny) == 3 * flops(replace(tiny, train=False)) > 0
    assert flops(replace(tiny, images=4)) == 2 * flops(tiny)


def test_a_frozen_backbone_has_no_operations_on_the_way_back(tiny: Variant) -> None:
    config = replace(tiny.config, backbone=replace(tiny.config.backbone, frozen=True))
    alone, frozen = replace(tiny, way="backbone"), replace(tiny, config=config)
    assert flops(replace(alone, config=config)) == flops(replace(alone, train=False))
    assert flops(tiny) - flops(frozen) == 2 * flops(replace(alone, train=False))


def test_the_backbone_alone_has_the_operations_and_weights_of_the_backbone(tiny: Variant) -> None:
    alone = replace(tiny, way="backbone")
    assert 0 < flops(alone) < flops(tiny) and 0 < moved(alone) < moved(tiny)
    assert flops(replace(alone, classes=1000)) == flops(alone) and moved(replace(alone, classes=1000)) == moved(alone)


def test_the_floor_is_the_larger_of_two_times(tiny: Variant) -> None:
    quick = Rates({"fp32": 1e30}, 1e9)
    assert floor_seconds(tiny, quick) == moved(tiny) / 1e9
    assert floor_seconds(tiny, Rates({"fp32": 1e6}, 1e30)) == flops(tiny) / 1e6


def test_training_moves_weights_gradients_and_moments(tiny: Variant) -> None:
    used, trained = replace(tiny, train=False), tiny
    seen = tiny.images * 32 * 32 * (3 * 4 + 8)
    weights = moved(used) - seen
    assert moved(trained) - seen == weights * (5 + 4)
    with_sgd = replace(tiny, config=replace(tiny.config, optim=replace(tiny.config.optim, kind="sgd")))
    assert moved(with_sgd) - seen == weights * (5 + 2)


def test_rates_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.bench.floor.SIDES", {"cpu": 64})
    monkeypatch.setattr("pipelines.bench.floor.BYTES", {"cpu": 2**16})
    found = rates("cpu", ["fp32", "bf16"])
    assert set(found.flops) == {"fp32", "bf16"}
    assert all(1e6 < rate < 1e14 for rate in (*found.flops.values(), found.bandwidth))
