"""Checkpoints of Segmenter and RankSeg: networks of ours under the published names come back with equal logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.config import build
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import Ranking, complete_ranking, top_kappa
from kappaseg_core.weights.renaming import Misfit
from stage2_segmentation.config import Stage2Config
from stage2_segmentation.model import SegmentationModel, build_segmentation
from tests.weights import published
from tests.weights.published import State, shaken

K, KAPPA, WIDTH, IMAGE = 7, 3, 16, 64
HEADS = {"backbone.options.num_heads": 2, "host.options.heads": 4}
ENCODER = {"labels.options.heads": 4, "labels.options.pooled": 2}
VIT = {"img_size": IMAGE, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}


def network(
    source: str, branch: str = "none", *, class_tokens: str = "host", name: str = "vit_base_patch16_384", **options: Any
) -> SegmentationModel:
    """One of ours with random numbers."""
    labels = {"encoder": {"pooled": 2, "heads": 4, "ffn": 24}, "decoder": {"pooled": 3, "heads": 8, "ffn": 12}}
    config = build(
        Stage2Config,
        {
            "backbone": {"name": name, "options": {**VIT, **options}},
            "host": {"options": {"width": WIDTH, "heads": 4, "ffn": 24, "unbiased": source == "oracle"}},
            "source": {"train": source, "kappa": KAPPA}, "class_tokens": class_tokens, "augment": {"crop": IMAGE},
            "labels": {"head": branch, "options": labels.get(branch, {})},
        },
    )  # fmt: skip
    model = shaken(build_segmentation(config, K))
    assert isinstance(model, SegmentationModel)
    return model


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def assert_same(ours: Any, theirs: SegmentationModel) -> None:
    """Equal label logits and rank logits to 1e-5, on images of another size than the table's too."""
    assert isinstance(ours, SegmentationModel)
    for size in (IMAGE, 48):
        images = noise(2, 3, size, size)
        a, b = ours.look(images), theirs.look(images)
        ranking = complete_ranking(2, K)
        if b.label_logits is not None:
            assert a.label_logits is not None
            torch.testing.assert_close(a.label_logits, b.label_logits, rtol=1e-5, atol=1e-5)
            ranking = top_kappa(b.label_logits.sigmoid(), KAPPA)
        close = {"rtol": 1e-5, "atol": 1e-5 * float(theirs.segment(b, ranking).rank_logits.abs().max())}
        torch.testing.assert_close(
            ours.segment(a, ranking).rank_logits, theirs.segment(b, ranking).rank_logits, **close
        )


def test_the_original_segmenter(imported: Any) -> None:
    theirs = network("complete", norm_eps=1e-5, position_interpolation="bilinear")
    made = imported("segmenter", published.segmenter(theirs.state_dict()), K, HEADS)
    assert_same(made.network, theirs)
    assert made.config.source.train == "complete" and made.config.backbone.mean == (0.5, 0.5, 0.5)
    (dropped,) = made.found.dropped.values()
    assert dropped == ["encoder.head.weight", "encoder.head.bias"]


def test_the_original_segmenter_on_a_distilled_vit(imported: Any) -> None:
    """DeiT has a second token before the cells, and ImageNet's normalisation."""
    theirs = network("complete", "none", name="deit_base_distilled_patch16_384", norm_eps=1e-5,
                     position_interpolation="bilinear")  # fmt: skip
    made = imported("segmenter", published.segmenter(theirs.state_dict()), K, HEADS)
    assert made.config.backbone.name == "deit_base_distilled_patch16_384"
    assert made.config.backbone.mean == (0.485, 0.456, 0.406)
    assert_same(made.network, theirs)


def test_the_norms_of_the_original_segmenter_have_their_own_eps(imported: Any) -> None:
    made = imported("segmenter", published.segmenter(network("complete").state_dict()), K, HEADS)
    assert {m.eps for m in made.network.backbone.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert {m.eps for m in made.network.host.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    made = imported("rankseg", published.rankseg(network("complete").state_dict()), K, HEADS)
    assert {m.eps for m in made.network.backbone.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "baseline": ({"source": "complete"}, {}, {}),
    "known truth": ({"source": "oracle"}, {}, {"oracle": True}),
    "joint, TransEnc": ({"source": "joint", "branch": "encoder"}, ENCODER, {}),
    "joint, TransDec": ({"source": "joint", "branch": "decoder"}, {"labels.options.pooled": 3}, {}),
    "joint, GAP": ({"source": "joint", "branch": "pooled"}, {}, {}),
    "baseline, OCE": ({"source": "complete", "class_tokens": "backbone"}, {}, {"oce": True}),
    "joint, OCE": ({"source": "joint", "branch": "encoder", "class_tokens": "backbone"}, ENCODER, {"oce": True}),
}


@pytest.mark.parametrize("what", VARIANTS)
def test_every_kind_of_rankseg_file(imported: Any, what: str) -> None:
    ours, settings, layout = VARIANTS[what]
    theirs = network(**ours)
    made = imported("rankseg", published.rankseg(theirs.state_dict(), **layout), K, {**HEADS, **settings})
    assert_same(made.network, theirs)
    assert made.config.source.train == ours["source"]
    assert made.config.labels.head == ours.get("branch", "none")
    assert made.config.class_tokens == ours.get("class_tokens", "host")
    if ours["source"] == "joint":
        assert made.config.source.kappa == KAPPA and len(made.network.host.rank_scale.weight) == KAPPA


def test_class_tokens_join_before_the_last_block(imported: Any) -> None:
    """The released OCE by hand: class embeddings appended to the tokens before the last layer, without positions."""
    state = published.rankseg(network("complete", class_tokens="backbone").state_dict(), oce=True)
    made = imported("rankseg", state, K, HEADS)
    images, vit = noise(2, 3, IMAGE, IMAGE), made.network.backbone.network.model
    with torch.no_grad():
        tokens = vit.patch_embed(images).flatten(1, 2)
        tokens = torch.cat([state["backbone.cls_token"].expand(2, -1, -1), tokens], 1) + state["backbone.pos_embed"]
        tokens = torch.cat([vit.blocks[0](tokens), state["backbone.cls_emb"].expand(2, -1, -1)], 1)
        tokens = vit.norm(vit.blocks[1](tokens))
        width = tokens.shape[2]
        assert width == WIDTH
        seen = made.network.look(images)
        torch.testing.assert_close(seen.classes, tokens[:, -K:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen.features.flatten(2).mT, tokens[:, 1:-K], rtol=1e-5, atol=1e-5)


def mask_transformer(state: State, tokens: Tensor, heads: int) -> Tensor:
    """The published mask transformer by hand: cell tokens [1, P, C] → masks [1, P, K], among all classes."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = torch.cat([linear("proj_dec", tokens), state["cls_emb"]], 1)
    for block in ("blocks.0", "blocks.1"):
        q, k, v = (
            linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    x = norm("decoder_norm", x)
    cells, classes = x[:, : tokens.shape[1]] @ state["proj_patch"], x[:, tokens.shape[1] :] @ state["proj_classes"]
    return norm("mask_norm", F.normalize(cells, dim=-1) @ F.normalize(classes, dim=-1).mT)


def test_the_baseline_by_hand(imported: Any) -> None:
    state = published.rankseg(network("complete").state_dict())
    made = imported("rankseg", state, K, HEADS)
    features = noise(1, WIDTH, 4, 5)
    with torch.no_grad():
        theirs = mask_transformer(published.part(state, "decode_head."), features.flatten(2).mT, heads=4)
        ours = made.network.segment(made.network.read([features]), complete_ranking(1, K)).rank_logits
    torch.testing.assert_close(ours.flatten(2).mT, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("classes", "mean", "pooled"), [(150, 0.5, 8), (60, 0.5, 8), (171, 0.485, 8), (847, 0.485, 0), (1284, 0.485, 0)]
)
def test_what_no_shape_tells_is_as_published_for_that_vocabulary(
    imported: Any, classes: int, mean: float, pooled: int
) -> None:
    state = published.rankseg(network("joint", "encoder").state_dict())
    for name, value in state.items():
        if K in value.shape:
            state[name] = value.repeat_interleave(classes, value.shape.index(K)).narrow(
                value.shape.index(K), 0, classes
            )
    made = imported("rankseg", state, classes, {"backbone.options.num_heads": 2})
    assert made.config.backbone.mean[0] == mean and made.config.labels.options["pooled"] == pooled
    assert made.config.inference.window == made.config.augment.crop == IMAGE


def test_settings_win_over_published_values_and_not_over_shapes(imported: Any) -> None:
    state = published.rankseg(network("joint", "encoder").state_dict())
    made = imported("rankseg", state, K, {**HEADS, "inference.short_side": 40, "labels.options.pooled": 4})
    assert made.config.inference.short_side == 40 and made.network.branch.pooled == 4
    with pytest.raises(UserError, match=r"source\.kappa = 5, but FILE was made with 3; leave out"):
        imported("rankseg", state, K, {"source.kappa": 5})
    with pytest.raises(UserError, match=r"host\.options\.depth = 4, but FILE was made with 2"):
        imported("rankseg", state, K, {"host.options.depth": 4})
    with pytest.raises(UserError, match=r"backbone\.weights is for training"):
        imported("rankseg", state, K, {"backbone.weights": "x"})
    with pytest.raises(UserError, match="unknown setting sorce"):
        imported("rankseg", state, K, {"sorce.kappa": 5})


def test_a_recipe_gives_what_the_file_does_not_tell(imported: Any, tmp_path: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("backbone: {mean: [0.1, 0.2, 0.3]}\ninference: {short_side: 40}\nsource: {train: complete}\n")
    state = published.rankseg(network("complete").state_dict())
    made = imported("rankseg", state, K, HEADS, recipe=recipe)
    assert made.config.backbone.mean == (0.1, 0.2, 0.3) and made.config.inference.short_side == 40
    recipe.write_text("host: small\n")
    with pytest.raises(UserError, match=r"host\.kind = 'small', but FILE was made with 'segmenter'"):
        imported("rankseg", state, K, recipe=recipe)
    recipe.write_text("source: {train: cache}\n")
    with pytest.raises(UserError, match=r"source\.train = 'cache', but FILE was made with 'complete'"):
        imported("rankseg", state, K, HEADS, recipe=recipe)


def changed(state: State, **changes: Any) -> State:
    """A state dict with some tensors replaced, added, or removed (None)."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in {**state, **named}.items() if value is not None}


def test_tensors_that_do_not_fit_are_listed_under_the_names_of_the_file(imported: Any) -> None:
    state = published.rankseg(network("joint", "encoder").state_dict())
    wrong = changed(
        state, backbone__ln1__bias=None, decode_head__conv_seg__weight=torch.zeros(2), extra=torch.zeros(1),
        decode_head__decoder_norm__weight=torch.zeros(WIDTH + 1),
    )  # fmt: skip
    with pytest.raises(Misfit) as caught:
        imported("rankseg", wrong, K, {**HEADS, **ENCODER})
    assert caught.value.listing == [
        "missing    backbone.network.model.norm.bias (16)", "unknown    decode_head.conv_seg.weight",
        "unknown    extra", "misshapen  decode_head.decoder_norm.weight (17, wanted 16 for host.decoder_norm.weight)",
    ]  # fmt: skip


def test_a_file_of_another_format_or_network_is_told(imported: Any) -> None:
    ours = network("complete").state_dict()
    with pytest.raises(
        UserError, match=r"no segmenter checkpoint: it has no decoder\.cls_emb; its names begin with back"
    ):
        imported("segmenter", published.rankseg(ours), K)
    with pytest.raises(
        UserError, match=r"no rankseg checkpoint: it has no decode_head\.cls_emb; its names begin with dec"
    ):
        imported("rankseg", published.segmenter(ours), K)
    linear = {"decoder.head.weight": torch.zeros(K, WIDTH), "decoder.head.bias": torch.zeros(K)}
    with pytest.raises(UserError, match="linear decoder"):
        imported("segmenter", linear, K)


def test_a_branch_with_queries_of_its_own_is_refused(imported: Any) -> None:
    """The released head can also hold queries of its own; ours asks with the class embeddings."""
    state = published.rankseg(network("joint", "decoder").state_dict())
    state["decode_head.img_cls_head.query_embed.weight"] = torch.zeros(K, WIDTH)
    with pytest.raises(Misfit) as caught:
        imported("rankseg", state, K, HEADS)
    assert caught.value.listing == ["unknown    decode_head.img_cls_head.query_embed.weight"]


def test_a_list_of_another_length_is_refused(imported: Any) -> None:
    state = published.rankseg(network("complete").state_dict())
    with pytest.raises(UserError, match="has 6 names, FILE is for 7 classes"):
        imported("rankseg", state, 6)


@pytest.mark.parametrize("what", VARIANTS)
def test_classes_go_by_name_to_another_list(imported: Any, tmp_path: Any, what: str) -> None:
    """Rows of classes in both lists are those of the file, in their new places; all else is as it was."""
    ours, settings, layout = VARIANTS[what]
    state = published.rankseg(network(**ours).state_dict(), **layout)
    new = tmp_path / "new.txt"
    new.write_text("c4\nother\nc1\n")
    before = imported("rankseg", state, K, {**HEADS, **settings})
    made = imported("rankseg", state, K, {**HEADS, **settings}, transfer_to=new)
    again = imported("rankseg", state, K, {**HEADS, **settings}, transfer_to=new)
    old, now, repeated = (m.network.state_dict() for m in (before, made, again))
    rows = [name for name in now if name in made.layout.class_rows]
    assert made.class_names == ("c4", "other", "c1") and made.transfer.new == ("other",)
    for name in now:
        torch.testing.assert_close(now[name], repeated[name], rtol=0, atol=0)
        if name in rows:
            assert len(now[name]) == 3 and torch.equal(now[name][[0, 2]], old[name][[4, 1]])
        elif "rank_scale" in name:
            assert torch.equal(now[name], old[name][:3])
        else:
            assert torch.equal(now[name], old[name])
    table = now["host.cls_emb"][1]
    assert 0 < float(table.abs().max()) < 0.2  # a truncated normal of deviation 0.02, not a row of the file
    with torch.no_grad():
        seen = made.network.look(noise(1, 3, IMAGE, IMAGE))
        assert made.network.segment(seen, complete_ranking(1, 3)).rank_logits.shape[1] == 3


def test_kappa_is_no_more_than_the_new_classes(imported: Any, tmp_path: Any) -> None:
    (tmp_path / "new.txt").write_text("c4\nc1\n")
    state = published.rankseg(network("joint", "encoder").state_dict())
    made = imported("rankseg", state, K, {**HEADS, **ENCODER}, transfer_to=tmp_path / "new.txt")
    assert made.config.source.kappa == 2 and len(made.network.host.rank_scale.weight) == 2


@pytest.mark.parametrize(
    ("names", "wanted"), [("x\ny\n", "no class of one list is in the other"), ("c1\nc1\n", "class 'c1' stands twice")]
)
def test_a_transfer_that_cannot_go_by_name_is_refused(imported: Any, tmp_path: Any, names: str, wanted: str) -> None:
    (tmp_path / "new.txt").write_text(names)
    state = published.rankseg(network("complete").state_dict())
    with pytest.raises(UserError, match=wanted):
        imported("rankseg", state, K, HEADS, transfer_to=tmp_path / "new.txt")


def test_labels_of_a_joint_network_rank_as_before_after_a_transfer_to_fewer_classes(
    imported: Any, tmp_path: Any
) -> None:
    """A linear layer scores every class by itself."""
    (tmp_path / "new.txt").write_text("c6\nc0\n")
    state = published.rankseg(network("joint", "pooled").state_dict())
    before = imported("rankseg", state, K, HEADS).network
    after = imported("rankseg", state, K, HEADS, transfer_to=tmp_path / "new.txt").network
    with torch.no_grad():
        images = noise(2, 3, IMAGE, IMAGE)
        torch.testing.assert_close(after.look(images).label_logits, before.look(images).label_logits[:, [6, 0]])


def test_a_ranking_picks_the_same_logits_after_a_transfer_that_only_reorders(imported: Any, tmp_path: Any) -> None:
    order = [3, 0, 6, 1, 5, 2, 4]
    (tmp_path / "new.txt").write_text("".join(f"c{number}\n" for number in order))
    state = published.rankseg(network("complete").state_dict())
    before = imported("rankseg", state, K, HEADS).network
    after = imported("rankseg", state, K, HEADS, transfer_to=tmp_path / "new.txt").network
    images, some = noise(1, 3, IMAGE, IMAGE), torch.tensor([[2, 5]])
    ranking = Ranking(some, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    other = Ranking(torch.tensor([[order.index(2), order.index(5)]]), ranking.scores, ranking.valid)
    with torch.no_grad():
        a, b = before(images, ranking), after(images, other)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
