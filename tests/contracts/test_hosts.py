"""What every segmentation host must do, whatever it is made of. A new host is tested by being there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import Backbone, MapShape, Wants, build_backbone
from kappaseg_core.class_rows import class_tables, give_rows
from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE, PADDING_LOGIT, Ranking, complete_ranking, top_kappa
from kappaseg_core.segments import segments_of
from stage2_segmentation import hosts
from stage2_segmentation.hosts import DecodesFirst, LearnsSegments, build_host, host_kinds, wants_of
from stage2_segmentation.losses import prediction_loss
from stage2_segmentation.structures import AnyPrediction, QueryPrediction, Seen
from tests.tensors import PRIME, Created

K, CHANNELS, TRAINED = 5, 8, 3  # labels, channels of a map, ranks that the scale has parameters for
#: strides of the maps that a host is given, by how many it wants: stages, and blocks of a plain ViT
STRIDES = {1: [(16,)], 2: [(8, 16), (16, 16)], 3: [(8, 16, 32), (16, 16, 16)], 4: [(4, 8, 16, 32), (16, 16, 16, 16)]}
#: a host of the tests, for what none of those that are there asks of a backbone
OWN = Path(__file__).parent / "hosts"
hosts.__path__.append(str(OWN))
CASES = [
    (kind, strides) for kind in host_kinds() for strides in STRIDES[wants_of(kind).maps]
]  # fmt: skip
hosts.__path__.remove(str(OWN))
#: sizes that take no time, where widths alone do not do
TINY: dict[str, dict[str, Any]] = {
    "maskformer": {"queries": 7, "width": 32, "layers": 2, "heads": 2, "ffn": 16},
    "mask2former": {
        "queries": 7, "width": 32, "encoder_layers": 1, "encoder_ffn": 16, "layers": 3, "heads": 2, "ffn": 16,
        "points": 64,
    },
}  # fmt: skip
#: parameters that nothing depends on: MaskFormer's queries start from zero, so that all look at the same in layer 0
IDLE = {"maskformer": [f"layers.0.self_attn.{name}" for name in ("q_proj.", "k_proj.", "v_proj.weight")]}


@pytest.fixture(scope="module", autouse=True)
def examples() -> Iterator[None]:
    hosts.__path__.append(str(OWN))
    yield
    hosts.__path__.remove(str(OWN))


@cache
def vit(blocks: int) -> Backbone:
    """A tiny ViT whose last blocks are left to the host."""
    torch.manual_seed(0)
    options = {"img_size": 64, "depth": blocks + 1, "embed_dim": CHANNELS, "num_heads": 2}
    wants = Wants(last_blocks=blocks)
    return build_backbone(BackboneConfig(name="vit_tiny_patch16_224", options=options), wants=wants).eval()


class Made:
    """A host, and what is seen of images made for it.   size: pixels of an image, odd ones where it takes any."""

    def __init__(self, kind: str, strides: tuple[int, ...], **options: Any) -> None:
        self.kind, self.strides, self.options = kind, strides, {**narrow(kind), **options}
        self.wants = wants_of(kind, self.options)
        self.maps = [MapShape(CHANNELS, stride) for stride in strides]

    def host(self, *, num_classes: int = K, kappa: int = TRAINED) -> nn.Module:
        """With weights so large that everything matters, in evaluation mode."""
        host = self.as_new(num_classes=num_classes, kappa=kappa)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in host.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        return host

    def as_new(self, *, num_classes: int = K, kappa: int = TRAINED) -> nn.Module:
        """With the weights that training starts from."""
        return build_host(
            self.kind, num_classes=num_classes, maps=self.maps, kappa=kappa, options=self.options
        ).eval()  # fmt: skip

    def seen(self, images: int, height: int = 45, width: int = 61) -> Seen:
        """Of images of that many pixels."""
        generator = torch.Generator().manual_seed(images)
        if self.wants.last_blocks:
            begun = vit(self.wants.last_blocks).begin(torch.randn(images, 3, height, width, generator=generator))
            begun = replace(begun, tokens=begun.tokens.detach())
            return Seen(begun.map(begun.tokens), begun=begun)
        maps = tuple(
            torch.randn(images, CHANNELS, -(-height // stride), -(-width // stride), generator=generator)
            for stride in self.strides
        )
        return Seen(maps[-1], maps=maps)


def some(seen: Seen, images: slice) -> Seen:
    """What was seen of some of the images."""
    begun = None if seen.begun is None else replace(seen.begun, tokens=seen.begun.tokens[images])
    return Seen(seen.features[images], maps=tuple(one[images] for one in seen.maps), begun=begun)


def inputs(seen: Seen) -> list[Tensor]:
    """The tensors that a host reads."""
    return list(seen.maps) if seen.begun is None else [seen.begun.tokens]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, (case[0], *case[1]))))
def case(request: pytest.FixtureRequest) -> tuple[str, tuple[int, ...]]:
    found: tuple[str, tuple[int, ...]] = request.param
    return found


@pytest.fixture
def made(case: tuple[str, tuple[int, ...]]) -> Made:
    return Made(*case)


def settings(kind: str) -> dict[str, Any]:
    """The options of a host with their defaults."""
    found = fields(importlib.import_module(f"stage2_segmentation.hosts.{kind}").Options)
    return {entry.name: entry.default for entry in found}


def narrow(kind: str) -> dict[str, Any]:
    """Sizes that take no time."""
    return TINY.get(kind) or {
        name: 16 for name, value in settings(kind).items() if name.endswith("width") and value is not None
    }


def shared(kind: str) -> dict[str, str]:
    """One scale for all ranks, where a host has a scale."""
    return {"rank_scale": "shared"} if "rank_scale" in settings(kind) else {}


def ranking_of(*rows: list[int], kappa: int | None = None) -> Ranking:
    """Rankings with the given labels, padded to the longest or to κ ranks."""
    length = kappa or max(map(len, rows))
    labels = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    valid = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return Ranking(labels, torch.linspace(0.9, 0.1, length) * valid, valid)


def random_ranking(images: int, kappa: int, num_classes: int = K) -> Ranking:
    return top_kappa(torch.rand(images, num_classes, generator=torch.Generator().manual_seed(kappa)), kappa)


def decoded(host: nn.Module, seen: Seen) -> Seen:
    """With the queries of a mask network, which it decodes before labels are kept."""
    return replace(seen, decoded=host.decode(seen.maps)) if isinstance(host, DecodesFirst) else seen


def predicted(host: nn.Module, seen: Seen, ranking: Ranking) -> AnyPrediction:
    found: AnyPrediction = host(decoded(host, seen), ranking)
    return found


def logits_of(host: nn.Module, seen: Seen, ranking: Ranking) -> Tensor:
    return maps_of(predicted(host, seen, ranking))[0]


def maps_of(prediction: AnyPrediction) -> list[Tensor]:
    """A map per rank, [B, κ, h, w], of the prediction and of what is auxiliary to it.

    Of queries those of the scores that pixels are labelled by, padding ranks marked like those of other hosts.
    """
    if not isinstance(prediction, QueryPrediction):
        return [prediction.rank_logits, *(extra.rank_logits for extra in prediction.auxiliary)]
    found = []
    for each in (prediction, *prediction.auxiliary):
        assert each.class_logits.dtype == each.mask_logits.dtype == torch.float32
        with torch.autocast("cpu", enabled=False):
            scores = torch.einsum("bqk,bqhw->bkhw", each.class_logits.softmax(2)[..., :-1], each.mask_logits.sigmoid())
        padding = (each.class_logits[..., :-1] == PADDING_LOGIT).all(1)
        found.append(scores.masked_fill(padding[..., None, None], PADDING_LOGIT))
    return found


def placed_of(host: nn.Module, seen: Seen, ranking: Ranking) -> Tensor:
    """What has a place in the image: logits of ranks, or masks. (The classes of queries, which are of the whole image,
    change scores everywhere.)"""
    found = predicted(host, seen, ranking)
    return found.mask_logits if isinstance(found, QueryPrediction) else found.rank_logits


def tensors_of(prediction: AnyPrediction) -> list[Tensor]:
    """All that the loss is computed from."""
    if not isinstance(prediction, QueryPrediction):
        return maps_of(prediction)
    return [t for each in (prediction, *prediction.auxiliary) for t in (each.class_logits, each.mask_logits)]


def loss_of(
    host: nn.Module, prediction: AnyPrediction, mask: Tensor, ranking: Ranking
) -> tuple[Tensor, dict[str, Tensor]]:
    if not isinstance(prediction, QueryPrediction):
        return prediction_loss(prediction, mask, ranking, K, cell=host.cell)  # type: ignore[arg-type]
    assert isinstance(host, LearnsSegments)
    torch.manual_seed(0)  # of the points that masks are compared at
    segments = [segments_of(one, torch.zeros_like(one), torch.zeros(K, dtype=torch.bool)) for one in mask]
    return host.loss(prediction, segments, ranking)


def test_the_known_hosts_are_listed_where_one_is_not_known() -> None:
    assert "segmenter" in host_kinds()
    with pytest.raises(UserError, match=f"host.kind = 'nosuch' is unknown; there are: {', '.join(host_kinds())}"):
        build_host("nosuch", num_classes=K, maps=[MapShape(CHANNELS, 16)], kappa=TRAINED)


def test_a_mistyped_option_is_refused(case: tuple[str, tuple[int, ...]]) -> None:
    with pytest.raises(UserError, match=r"host\.options\.dpeth"):
        Made(*case, dpeth=2)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kappa", range(1, K + 1))
def test_there_is_one_map_of_logits_per_rank(made: Made, kappa: int, images: int) -> None:
    logits = logits_of(made.host(), made.seen(images), random_ranking(images, kappa))
    assert logits.shape[:2] == (images, kappa)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 97), (70, 33), (64, 32)])
def test_the_cells_cover_images_of_any_size(made: Made, height: int, width: int) -> None:
    host = made.host()
    logits = logits_of(host, made.seen(2, height, width), random_ranking(2, 3))
    for cells, pixels in zip(logits.shape[2:], (height, width), strict=True):
        assert pixels <= cells * host.cell < pixels + max(made.strides)  # type: ignore[operator]
    assert logits.isfinite().all()


def test_rows_and_columns_are_not_mixed_up(case: tuple[str, tuple[int, ...]]) -> None:
    """With weights that training starts from, a change in one place shows around that place in the logits. (Layer
    normalisation over the ranks shows every change as large.)"""
    made = Made(*case, **shared(case[0]))
    coarsest, ranking = max(made.strides), random_ranking(1, 3)
    changes = torch.zeros(3, 5)
    for seed in range(4):
        torch.manual_seed(seed)
        host, seen = made.as_new(), made.seen(1, 3 * coarsest, 5 * coarsest)
        before = placed_of(host, seen, ranking)
        if seen.begun is not None:
            changed = seen.begun.tokens.clone()
            patch = changed.shape[1] - 3 * 5 + 1 * 5 + 3
            changed[:, patch] = 3 * made.seen(2).begun.tokens[1, -1]  # type: ignore[union-attr]
            seen = replace(seen, begun=replace(seen.begun, tokens=changed))
        for one, other, stride in zip(seen.maps, made.seen(2).maps, made.strides, strict=False):
            cells = coarsest // stride
            one[:, :, cells : 2 * cells, 3 * cells : 4 * cells] = 3 * other[1, :, :1, :1]
        change = (placed_of(host, seen, ranking) - before).abs().sum(1)
        changes += F.adaptive_avg_pool2d(change.detach(), (3, 5))[0]
    around = changes - changes.amin()
    rows, columns = around.sum(1), around.sum(0)
    assert (rows @ torch.arange(3.0) / rows.sum()).item() == pytest.approx(1, abs=0.5)
    assert (columns @ torch.arange(5.0) / columns.sum()).item() == pytest.approx(3, abs=0.5)


def test_every_parameter_gets_a_finite_gradient(made: Made) -> None:
    """κ as in training; tables with one row per label get none in the rows that are not ranked."""
    host, ranking = made.host().train(), ranking_of([4, 1, 0], [1, 4, 2])
    tensors = tensors_of(predicted(host, made.seen(2), ranking))
    torch.stack([one.square().sum() for one in tensors]).sum().backward()
    for name, parameter in host.named_parameters():
        if any(idle in name for idle in IDLE.get(made.kind, ())):
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name
        if parameter.shape[0] == K:
            assert [bool(row.any()) for row in parameter.grad != 0] == [True, True, True, False, True], name


def test_every_table_with_a_row_per_label_can_name_the_rows_of_its_gradient(made: Made) -> None:
    """What optim.selected_rows asks for: no gradient with an axis of K, and the same numbers. Padding names row 0."""
    ranking, gradients = ranking_of([4, 1, 3], [1, 4]), []
    for told in (False, True):
        host = made.host().train()
        give_rows(class_tables(host) if told else ())
        torch.manual_seed(0)
        logits = maps_of(predicted(host, made.seen(2), ranking))
        torch.stack([one.square().sum() for one in logits]).sum().backward()
        tables = {name: p for name, p in host.named_parameters() if p.shape[0] == K}
        assert tables
        assert all(p.grad is not None and p.grad.is_sparse == told for p in tables.values())
        gradients.append({name: p.grad.to_dense() for name, p in tables.items()})  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_only_training_has_an_auxiliary_loss_and_it_counts(made: Made) -> None:
    host, seen, ranking = made.host(), made.seen(2), ranking_of([4, 1, 0], [1, 4, 2])
    assert predicted(host, seen, ranking).auxiliary == ()
    mask = torch.randint(K, (2, 45, 61), generator=torch.Generator().manual_seed(0))
    prediction = predicted(host.train(), seen, ranking)
    alone = replace(prediction, auxiliary=())
    both, main = (loss_of(host, each, mask, ranking)[0] for each in (prediction, alone))
    assert (both > main) if prediction.auxiliary else torch.equal(both, main)


def test_a_batch_of_two_is_two_batches_of_one(made: Made) -> None:
    host, seen, ranking = made.host(), made.seen(2), random_ranking(2, 4)
    together = logits_of(host, seen, ranking)
    for image in range(2):
        one = slice(image, image + 1)
        alone = logits_of(host, some(seen, one), ranking[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-4)


def test_the_labels_at_the_ranks_matter(made: Made) -> None:
    host, seen = made.host(), made.seen(1)
    first, second = (logits_of(host, seen, ranking_of([0, 1, last])) for last in (2, 3))
    assert not torch.allclose(first[:, 2], second[:, 2], atol=1e-2)


def test_permuted_ranks_give_permuted_logits_where_all_share_a_scale(case: tuple[str, tuple[int, ...]]) -> None:
    made = Made(*case, **shared(case[0]))
    host, seen, order = made.host(), made.seen(2), torch.tensor([2, 0, 3, 1])
    ranking = random_ranking(2, 4)
    permuted = Ranking(ranking.labels[:, order], ranking.scores, ranking.valid)
    found = logits_of(host, seen, permuted)
    torch.testing.assert_close(found, logits_of(host, seen, ranking)[:, order], rtol=1e-4, atol=1e-4)


def test_all_labels_in_order_of_id_are_the_complete_ranking(made: Made) -> None:
    """However probable they are: scores order the labels and do nothing else."""
    host, seen = made.host(), made.seen(2)
    ranked = top_kappa(torch.linspace(0.9, 0.1, K).expand(2, -1), K)
    assert torch.equal(logits_of(host, seen, ranked), logits_of(host, seen, complete_ranking(2, K)))


@pytest.mark.parametrize("options", [{}, {"rank_scale": "rank"}, {"rank_scale": "shared"}, {"unbiased": True}])
def test_padding_ranks_influence_nothing(case: tuple[str, tuple[int, ...]], options: dict[str, Any]) -> None:
    """Image 1 with two labels, padded to four ranks by its neighbour, is as alone with two."""
    if not set(options) <= set(settings(case[0])):
        pytest.skip(f"{case[0]} has no {', '.join(options)}")
    made = Made(*case, **options)
    host, seen = made.host(), made.seen(2)
    padded = logits_of(host, seen, ranking_of([3, 1, 4, 0], [4, 2]))
    alone = logits_of(host, some(seen, slice(1, 2)), ranking_of([4, 2]))
    torch.testing.assert_close(padded[1:, :2], alone, rtol=1e-4, atol=1e-4)
    assert (padded[1, 2:] == PADDING_LOGIT).all()
    full = logits_of(host, some(seen, slice(0, 1)), ranking_of([3, 1, 4, 0]))
    torch.testing.assert_close(padded[:1], full, rtol=1e-4, atol=1e-4)


def test_padding_ranks_get_no_gradient(made: Made) -> None:
    """The label that stands at padding ranks (0) is not learnt through them."""
    host = made.host().train()
    tensors = tensors_of(predicted(host, made.seen(1), ranking_of([4, 2], kappa=4)))
    torch.stack([one.sum() for one in tensors]).sum().backward()
    for parameter in host.parameters():
        if parameter.shape[0] == K:
            assert parameter.grad is not None
            assert (parameter.grad[0] == 0).all()


def test_an_image_without_labels_gives_finite_logits_and_gradients(made: Made) -> None:
    host, seen, ranking = made.host().train(), made.seen(2), ranking_of([], [1, 3])
    given = [one.requires_grad_() for one in inputs(seen)]
    maps = maps_of(predicted(host, seen, ranking))
    assert (maps[0][0] == PADDING_LOGIT).all()
    for logits in maps:
        target = torch.zeros((2, *logits.shape[2:]), dtype=torch.int64)
        F.cross_entropy(logits, target).backward(retain_graph=True)
    gradients = [one.grad for one in (*given, *host.parameters())]
    assert all(g is None or g.isfinite().all() for g in gradients)
    logits, alone = logits_of(host.eval(), seen, ranking), logits_of(host, some(seen, slice(1, 2)), ranking_of([1, 3]))
    torch.testing.assert_close(logits[1:], alone, rtol=1e-4, atol=1e-4)


def test_a_batch_without_a_label_teaches_nothing(made: Made) -> None:
    """Or, where queries predict masks, that these are of no object."""
    host, ranking = made.host().train(), random_ranking(2, 3)
    mask = torch.full((2, 45, 61), IGNORE)
    prediction = predicted(host, made.seen(2), ranking)
    loss, figures = loss_of(host, prediction, mask, ranking)
    loss.backward()
    assert figures["kept"].item() == 0
    if not isinstance(prediction, QueryPrediction):
        assert loss.item() == 0
        assert all(p.grad is None or (p.grad == 0).all() for p in host.parameters())
    else:
        assert figures["class_loss"] > 0
        assert figures["mask_loss"] == figures["dice_loss"] == 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in host.parameters())


def test_autocast_changes_little_and_gives_single_precision(made: Made) -> None:
    host, seen, ranking = made.host(), made.seen(2), ranking_of([3, 1, 4], [4, 2])
    exact = logits_of(host, seen, ranking)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = logits_of(host, seen, ranking)
    assert rough.dtype == torch.float32
    assert (rough[1, 2] == PADDING_LOGIT).all()
    assert (rough - exact)[exact > PADDING_LOGIT].abs().mean() < 0.1 * exact[exact > PADDING_LOGIT].std()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_tensor_has_an_axis_of_all_labels(made: Made, precision: str) -> None:
    host = made.host(num_classes=PRIME, kappa=7).train()
    seen, ranking = made.seen(2), random_ranking(2, 7, PRIME)
    with Created(host) as created, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        predicted(host, seen, ranking)
    assert created.tensors
    assert created.shapes_with(PRIME) == []


@pytest.mark.slow
def test_a_compiled_host_gives_the_same(made: Made) -> None:
    host, seen = made.host(), made.seen(2)
    compiled: Any = torch.compile(host, backend="aot_eager")
    for ranking in (random_ranking(2, 3), ranking_of([3, 1, 4], [4, 2])):
        with torch.no_grad():
            found = maps_of(compiled(decoded(host, seen), ranking))[0]
        torch.testing.assert_close(found, logits_of(host, seen, ranking), rtol=1e-4, atol=1e-4)
