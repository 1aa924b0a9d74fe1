"""EoMT of the transformers library, as it is measured beside our networks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.products import Linear
from pipelines.bench import eomt, steps
from pipelines.bench.needs import cost, needs
from pipelines.bench.published_way import map_of_queries
from pipelines.bench.variants import Variant
from stage2_segmentation.config import HostConfig

VIT = BackboneConfig(
    name="vit_small_patch14_reg4_dinov2", frozen=False,
    options={"embed_dim": 32, "depth": 4, "num_heads": 2, "patch_size": 16, "img_size": 64},
)  # fmt: skip
transformers = pytest.importorskip("transformers")


@pytest.fixture
def queries(tiny: Variant) -> Variant:
    """5 queries join the last 2 of 4 blocks, on images of 64 pixels."""
    host = HostConfig("eomt", {"queries": 5, "blocks": 2})
    return replace(tiny, config=replace(tiny.config, backbone=VIT, host=host), kappa=None, way="eomt", size=64)


def with_options(variant: Variant, **options: Any) -> Variant:
    host = replace(variant.config.host, options={**variant.config.host.options, **options})
    return replace(variant, config=replace(variant.config, host=host))


def test_its_vit_has_as_many_parameters_as_the_backbone_of_the_others(queries: Variant) -> None:
    model = eomt.network(queries)
    parts = (model.embeddings, model.layers, model.layernorm)
    found = sum(parameter.numel() for part in parts for parameter in part.parameters())
    others = replace(queries, way="backbone", config=replace(queries.config, host=HostConfig("encoder_only")))
    assert found == cost(others).parameters > 10_000
    assert model.class_predictor.out_features == queries.classes + 1


@pytest.mark.parametrize("train", [True, False])
def test_queries_join_the_last_blocks_and_masks_before_them_are_for_training_alone(
    queries: Variant, train: bool
) -> None:
    model = eomt.network(replace(queries, train=train))
    tokens, masked = list[int](), list[bool]()

    def note(layer: object, given: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        tokens.append(given[0].shape[1])
        masked.append(given[1] is not None)

    for layer in model.layers:
        layer.register_forward_pre_hook(note)
    model(torch.randn(1, 3, 64, 64))
    image = 4 * 4 + 1 + 4  # patches, class token, registers
    assert tokens == [image, image, image + 5, image + 5]
    assert masked == [False, False, train, train]


def test_computed_as_ours_it_is_the_same_network(queries: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kappaseg_core.attention.WORTH", 1)
    monkeypatch.setattr("kappaseg_core.attention.is_ours", lambda tensor: True)
    plain, ours = (
        eomt.network(replace(with_options(queries, products=products), train=False)) for products in ("torch", "ours")
    )
    ours.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    first, second = plain(images), ours(images)
    assert torch.allclose(first.masks_queries_logits, second.masks_queries_logits, atol=1e-4)
    assert torch.allclose(first.class_queries_logits, second.class_queries_logits, atol=1e-4)
    assert type(plain.layers[0].mlp.fc1) is not type(ours.layers[0].mlp.fc1) is Linear
    assert [model.config._attn_implementation for model in (plain, ours)] == ["sdpa", "blocks"]


def test_the_label_map_is_that_of_the_library() -> None:
    classes, masks = torch.randn(2, 5, 8), 3 * torch.randn(2, 5, 4, 6)
    found = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks, patch_offsets=None)
    processor = transformers.EomtImageProcessor()
    size = {"shortest_edge": 16, "longest_edge": 24}
    theirs = processor.post_process_semantic_segmentation(found, [(16, 24)] * 2, size=size)
    assert torch.equal(map_of_queries(classes, masks, (16, 24)), torch.stack(theirs))
    assert len(torch.stack(theirs).unique()) > 1


def test_a_step_of_it_is_made_like_any_other(queries: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    network = eomt.network
    monkeypatch.setattr(eomt, "network", lambda given: made.append(network(given)) or made[-1])
    step = steps.built(queries, lambda part: None)
    before = [parameter.clone() for parameter in made[0].parameters()]
    step()
    moved = [not torch.equal(now, old) for now, old in zip(made[0].parameters(), before, strict=True)]
    assert all(moved)
    maps: Any = steps.built(replace(queries, train=False), lambda part: None)()
    assert maps.shape == (2, 64, 64) and maps.max() < queries.classes


def test_what_it_needs_is_known_before_it_is_run(queries: Variant) -> None:
    used, trained = needs(replace(queries, train=False)), needs(queries)
    assert 0 < used.step < trained.step and used.held < trained.held
    more = needs(with_options(queries, queries=50))
    assert more.step > trained.step
    assert cost(with_options(queries, queries=50)).macs > cost(queries).macs > 0


def test_a_mistyped_option_is_refused(queries: Variant) -> None:
    with pytest.raises(UserError, match=r"unknown setting host\.options\.query; did you mean queries"):
        eomt.network(with_options(queries, query=5))
