"""Query2Label's checkpoints on its three families of backbones come back with equal logits."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import build, to_plain
from kappaseg_core.errors import UserError
from kappaseg_core.label_heads.attention import sine_positions
from kappaseg_core.weights.layout import below
from kappaseg_core.weights.renaming import Misfit, renamed
from kappaseg_core.weights.resnets import RESNET_RULES, TRESNET_RULES, resnet_settings, tresnet_settings
from kappaseg_core.weights.swin import RULES as SWIN_RULES
from kappaseg_core.weights.swin import swin_settings
from stage1_multilabel.classifier import Classifier, build_model
from stage1_multilabel.config import Stage1Config
from tests.weights import published
from tests.weights.published import State, shaken, under

K, WIDTH, IMAGE = 5, 8, 64
TINY_SWIN: dict[str, Any] = {
    "embed_dim": 4, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "img_size": IMAGE,
}  # fmt: skip
HEAD = {"preset": "official", "width": WIDTH, "ffn": 12, "heads": 2}
SWIN_SETTINGS = {"head.heads": 2, "backbone.options.img_size": IMAGE}


def classifier(name: str, *, options: dict[str, Any] | None = None, **head: Any) -> Classifier:
    """One of ours with random numbers."""
    values = {"backbone": {"name": name, "options": options or {}}, "head": {**HEAD, **head},
              "augment": {"image_size": IMAGE}}  # fmt: skip
    plain = to_plain(build(Stage1Config, values))
    model = shaken(build_model(plain, tuple(map(str, range(K)))))
    assert isinstance(model, Classifier)
    return model


def tiny_swin(**head: Any) -> tuple[Classifier, State]:
    """A classifier on a tiny Swin, and Query2Label's state dict of it."""
    theirs = classifier("swin_large_patch4_window12_384", options=TINY_SWIN, **head)
    state = theirs.state_dict()
    trunk = published.swin(published.part(state, "backbone.network.model."))
    return theirs, published.query2label(state, trunk, torch.zeros(1, WIDTH, 2, 2))


@torch.no_grad()
def assert_same(ours: Any, theirs: Classifier, size: int = IMAGE) -> None:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    expected = theirs(images)
    torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "head", [{}, {"encoder_layers": 0}, {"decoder_layers": 1}, {"self_attention": "first"},
             {"self_attention": "not_first"}, {"self_attention": "all"}]
)  # fmt: skip
def test_on_swin(imported: Any, head: dict[str, Any]) -> None:
    theirs, state = tiny_swin(**head)
    made = imported("query2label", state, K, SWIN_SETTINGS)
    assert_same(made.network, theirs)
    assert made.config.augment.image_size == IMAGE  # from the table of positions, 2×2 cells of 32 pixels
    assert {name for names in made.found.dropped.values() for name in names} == {
        "backbone.1.pe", "backbone.0.layers.0.blocks.0.attn.relative_position_index",
        "backbone.0.layers.1.blocks.1.attn_mask",
    }  # fmt: skip


def test_a_first_self_attention_that_was_kept_is_imported(imported: Any) -> None:
    """It is the same constant for all labels, but not zero: leaving it out would change the logits."""
    theirs, state = tiny_swin(self_attention="first")
    made = imported("query2label", state, K, SWIN_SETTINGS)
    assert made.config.head.self_attention == "first" and made.network.head.independent
    without = {name: value for name, value in state.items() if ".layers.0.self_attn" not in name or "encoder" in name}
    without = {name: value for name, value in without.items() if name != "transformer.decoder.layers.0.norm1.weight"}
    without.pop("transformer.decoder.layers.0.norm1.bias")
    other = imported("query2label", without, K, SWIN_SETTINGS).network
    images = torch.randn(1, 3, IMAGE, IMAGE)
    with torch.no_grad():
        assert float((other(images) - theirs(images)).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trunk"), [("resnet18", published.resnet), ("tresnet_m", published.tresnet)])
def test_on_convolutional_networks(imported: Any, name: str, trunk: Any) -> None:
    theirs = classifier(name)
    state = theirs.state_dict()
    layout = published.query2label(state, trunk(published.part(state, "backbone.network.model.")))
    made = imported("query2label", layout, K, {"head.heads": 2})
    assert_same(made.network, theirs)
    assert made.config.backbone.name == name and made.config.augment.image_size == 448
    assert made.config.backbone.mean == ((0.0,) * 3 if name == "tresnet_m" else (0.485, 0.456, 0.406))


@pytest.mark.parametrize("name", ["tresnet_m", "tresnet_l", "tresnet_xl", "tresnet_v2_l"])
def test_names_of_tresnet_are_those_that_timm_makes_of_them(name: str) -> None:
    """Against timm's own function, which is tested on the published files."""
    from timm.models.tresnet import checkpoint_filter_fn

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    theirs = published.part(published.tresnet(model.state_dict()), "backbone.0.body.")
    found = renamed(theirs, TRESNET_RULES)
    assert not found.unknown and found.tensors.keys() == checkpoint_filter_fn(dict(theirs), model).keys()
    assert tresnet_settings(theirs, "body.")["backbone.name"] == name


def test_scales_of_in_place_normalisation_become_what_timm_makes_of_them() -> None:
    from timm.models.tresnet import checkpoint_filter_fn

    theirs = {
        "body.conv1.1.weight": torch.tensor([-2.0, 0.0, 0.5]),
        "body.conv1.1.bias": torch.tensor([-1.0, 0.0, 1.0]),
    }
    found, wanted = renamed(theirs, TRESNET_RULES).tensors, checkpoint_filter_fn(dict(theirs), nn.Identity())
    assert found.keys() == wanted.keys()
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in wanted.items()}


def test_names_of_swin_are_those_that_timm_makes_of_them() -> None:
    from timm.models.swin_transformer import checkpoint_filter_fn

    model = timm.create_model("swin_large_patch4_window12_384", num_classes=0, **TINY_SWIN)
    theirs = published.part(published.swin(model.state_dict()), "backbone.0.")
    wanted = checkpoint_filter_fn(dict(theirs), model)
    found = renamed(theirs, SWIN_RULES)
    assert not found.unknown and found.tensors.keys() == wanted.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "name", ["swin_large_patch4_window12_384", "swin_base_patch4_window12_384", "swin_large_patch4_window7_224"]
)
def test_published_swins_have_their_name(name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert swin_settings(state, "") == {"backbone.kind": "timm", "backbone.name": name}


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_published_resnets_have_their_name(name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    assert resnet_settings(state, "")["backbone.name"] == name
    assert not renamed(published.resnet(state), below("backbone.0.body.", RESNET_RULES, "")).unknown


class TheirLayer(nn.Module):
    """A layer of Query2Label's decoder with its self-attention removed, with nn.MultiheadAttention."""

    def __init__(self, width: int, ffn: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, content: Tensor, queries: Tensor, memory: Tensor, positions: Tensor) -> Tensor:
        found = self.multihead_attn(content + queries, memory + positions, memory, need_weights=False)[0]
        content = self.norm2(content + found)
        out: Tensor = self.norm3(content + self.linear2(F.relu(self.linear1(content))))
        return out


def test_the_decoder_by_hand(imported: Any) -> None:
    """Two layers, no encoder, a projection; queries enter as positions of a content that starts at zero."""
    _, state = tiny_swin(encoder_layers=0)
    layers = nn.ModuleList(TheirLayer(WIDTH, 12, 2) for _ in range(2))
    layers.load_state_dict(published.part(state, "transformer.decoder.layers."))
    made = imported("query2label", state, K, SWIN_SETTINGS)
    features = torch.randn(3, 32, 2, 3)
    with torch.no_grad():
        projected = F.conv2d(features, state["input_proj.weight"], state["input_proj.bias"])
        memory, content = projected.flatten(2).mT, torch.zeros(3, K, WIDTH)
        for layer in layers:
            content = layer(content, state["query_embed.weight"], memory, sine_positions(2, 3, WIDTH))
        norm = published.part(state, "transformer.decoder.norm.")
        content = F.layer_norm(content, (WIDTH,), norm["weight"], norm["bias"])
        theirs = (state["fc.W"] * content).sum(-1) + state["fc.b"]
        torch.testing.assert_close(made.network.head(features), theirs, rtol=1e-5, atol=1e-5)


def test_the_number_of_heads_has_to_be_given(imported: Any) -> None:
    _, state = tiny_swin()
    with pytest.raises(UserError, match=r"head\.heads cannot be told from FILE: add --heads N .*4 in the published"):
        imported("query2label", state, K)


def test_no_shape_tells_wrong_heads(imported: Any) -> None:
    """Why they have to be given: another divisor loads as well, and ranks otherwise."""
    theirs, state = tiny_swin()
    other = imported("query2label", state, K, {**SWIN_SETTINGS, "head.heads": 4}).network
    images = torch.randn(1, 3, IMAGE, IMAGE)
    with torch.no_grad():
        assert float((other(images) - theirs(images)).abs().max()) > 1e-4


def test_the_projection_is_kept_where_widths_are_equal(imported: Any) -> None:
    """Its presence is a switch of the published program, not a consequence of the widths."""
    theirs, state = tiny_swin(width=32, project=True)
    made = imported("query2label", state, K, SWIN_SETTINGS)
    assert made.config.head.project is True
    assert_same(made.network, theirs)
    without, state = tiny_swin(width=32)
    assert "input_proj.weight" not in state
    assert_same(imported("query2label", state, K, SWIN_SETTINGS).network, without)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda s: {n: v for n, v in s.items() if not n.startswith("backbone.0")}, "none of Swin, ResNet and TResNet"),
        (lambda s: {n: v for n, v in s.items() if n != "fc.W"}, "it has no fc.W"),
        (lambda s: {**s, "fc.W": torch.zeros(K, WIDTH)}, "its fc.W is 5x8, wanted 3 axes"),
        (lambda s: {**s, "backbone.1.pe": torch.zeros(1, WIDTH, 2, 3)}, "pe is for 6 cells, wanted those of a square"),
    ],
)
def test_a_file_that_is_none_is_refused(imported: Any, change: Any, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        imported("query2label", change(tiny_swin()[1]), K, SWIN_SETTINGS)


def test_tensors_that_do_not_fit_are_listed(imported: Any) -> None:
    _, state = tiny_swin()
    state["query_embed.weight"] = torch.zeros(K, WIDTH + 1)
    del state["transformer.decoder.layers.1.norm3.bias"]
    with pytest.raises(Misfit) as caught:
        imported("query2label", {**state, **under("transformer.decoder.", {"extra": torch.zeros(1)})}, K, SWIN_SETTINGS)
    assert caught.value.listing == [
        "missing    head.decoder.1.ffn.norm.bias (8)", "unknown    transformer.decoder.extra",
        "misshapen  query_embed.weight (5x9, wanted 5x8 for head.queries)",
    ]  # fmt: skip


def test_classes_go_by_name_to_another_list(imported: Any, tmp_path: Any) -> None:
    (tmp_path / "new.txt").write_text("c3\nother\nc0\n")
    theirs, state = tiny_swin()
    made = imported("query2label", state, K, SWIN_SETTINGS, transfer_to=tmp_path / "new.txt")
    images = torch.randn(2, 3, IMAGE, IMAGE)
    with torch.no_grad():
        logits, before = made.network(images), theirs(images)
    torch.testing.assert_close(logits[:, [0, 2]], before[:, [3, 0]], rtol=1e-4, atol=1e-5)
    assert made.transfer.left == ("c1", "c2", "c4")
