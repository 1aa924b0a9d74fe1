"""Query2Label, the asymmetric losses and the mean average precision against the outputs of the published code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kappaseg_core.label_heads import Query2Label, build_head
from kappaseg_core.label_heads.attention import sine_positions
from kappaseg_core.label_loss import AsymmetricLoss
from kappaseg_core.metrics import average_precision, mean_average_precision
from kappaseg_core.weights.label_decoder import RULES, decoder_sizes, labels_attend
from kappaseg_core.weights.renaming import fitted, renamed


def query2label(state: dict[str, Tensor], heads: int) -> Query2Label:
    """Our head of the published sizes, holding the published weights."""
    sizes = decoder_sizes(state)
    head = build_head(
        "official", state["input_proj.weight"].shape[1], sizes.pop("classes"), heads=heads, project=True,
        self_attention=labels_attend(state, sizes["decoder_layers"]), **sizes,
    ).eval()  # fmt: skip
    assert isinstance(head, Query2Label)
    head.load_state_dict(fitted(renamed(state, RULES), head.state_dict(), source="FILE"))
    return head


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-5 of the largest reference value (elementwise ratios mean nothing where a value is near zero)."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=1e-5 * float(theirs.abs().max()))


HEADS = ("query2label_default", "query2label_no_self_attention")


@pytest.mark.parametrize("name", HEADS)
def test_query2label_gives_the_published_logits(reference: Any, name: str) -> None:
    stored = reference(name)
    head = query2label(stored.state, stored.sizes["heads"])
    with torch.no_grad():
        assert_close(head(stored.arrays["features"]), stored.arrays["logits"])


@pytest.mark.parametrize("name", HEADS)
def test_every_published_weight_has_its_place(reference: Any, name: str) -> None:
    stored = reference(name)
    head = query2label(stored.state, stored.sizes["heads"])
    assert sum(p.numel() for p in head.parameters()) == sum(weight.numel() for weight in stored.state.values())


@pytest.mark.parametrize("name", HEADS)
def test_positions_are_the_published_ones(reference: Any, name: str) -> None:
    positions = reference(name).arrays["positions"]
    channels, height, width = positions.shape[1:]
    assert_close(sine_positions(height, width, channels), positions[0].flatten(1).mT)


def test_labels_scored_in_chunks_give_the_published_logits(reference: Any) -> None:
    stored = reference("query2label_no_self_attention")
    head = query2label(stored.state, stored.sizes["heads"])
    head.chunk = len(head.bias) // 2 + 1
    with torch.no_grad():
        assert_close(head(stored.arrays["features"]), stored.arrays["logits"])


def check_loss(stored: Any, loss: AsymmetricLoss, *, times: float) -> None:
    """Value and gradient of `loss`, scaled as the published reduction is."""
    logits = stored.arrays["logits"].clone().requires_grad_()
    value = times * loss(logits, stored.arrays["target"])
    (gradient,) = torch.autograd.grad(value, logits)
    assert_close(value.detach(), stored.arrays["loss"])
    assert_close(gradient, stored.arrays["grad"])


def test_the_losses_are_those_of_rankseg(reference: Any, reference_folder: Path) -> None:
    names = [path.stem for path in reference_folder.glob("rankseg_asl_*.npz")]
    assert names
    for name in names:  # rankseg_asl_gn4_gp1_clip0.05: gamma_neg, gamma_pos, clip
        settings = re.fullmatch(r"rankseg_asl_gn([\d.]+)_gp([\d.]+)_clip([\d.]+)", name)
        assert settings, name
        loss = AsymmetricLoss(*map(float, settings.groups()), focus_gradient=True, reduction="mean")
        check_loss(reference(name), loss, times=1.0)


@pytest.mark.parametrize("name", ["q2l_AsymmetricLoss", "q2l_AsymmetricLossOptimized"])
def test_the_loss_is_that_of_query2label(reference: Any, name: str) -> None:
    stored = reference(name)  # gamma_neg 2, gamma_pos 0, clip 0.05; a sum, and 1000 times a mean
    times = 1000 if name.endswith("Optimized") else stored.arrays["logits"].numel()
    check_loss(stored, AsymmetricLoss(2, 0, 0.05, focus_gradient=True, reduction="mean"), times=times)


def test_the_average_precisions_are_those_of_query2label(reference: Any) -> None:
    stored = reference("q2l_voc_map")
    per_class = average_precision(stored.arrays["scores"], stored.arrays["target"] > 0, definition="envelope")
    assert_close(100 * per_class, stored.arrays["aps"])
    value, labels = mean_average_precision(per_class)
    assert labels == stored.arrays["target"].shape[1]
    assert 100 * value == pytest.approx(float(stored.arrays["mAP"]), rel=1e-5)
