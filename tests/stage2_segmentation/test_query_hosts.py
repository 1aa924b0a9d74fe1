"""MaskFormer and Mask2Former: transformers' numbers where all labels are kept, and what ranking changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.backbones import MapShape
from kappaseg_core.config import BackboneConfig, DataConfig
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE, Ranking, complete_ranking, top_kappa
from kappaseg_core.segments import CROWD, Segments, segments_of
from kappaseg_core.structures import Batch
from stage2_segmentation import pixels
from stage2_segmentation.branches import build_branch
from stage2_segmentation.config import AugmentConfig, HostConfig, InferenceConfig, LabelsConfig, SourceConfig
from stage2_segmentation.config import Stage2Config as Config
from stage2_segmentation.hosts import build_host, host_kinds, query_host
from stage2_segmentation.hosts.query_host import QueryHost, whole_cells
from stage2_segmentation.inference import pieces_of_views
from stage2_segmentation.mask_losses import MaskLoss, PointMasks, Truth, WholeMasks, share_inside
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.query_loss import LossRule, accuracy_of_cells, kept_shares, kept_truth, query_loss
from stage2_segmentation.rank_maps import best_ranks, rank_scores
from stage2_segmentation.sources.complete import Complete
from stage2_segmentation.sources.joint import Joint
from stage2_segmentation.structures import QueryPrediction, Seen
from stage2_segmentation.task import SegmentTask
from tests.contracts.test_hosts import TINY

KINDS = ("maskformer", "mask2former")
K, QUERIES, CELL = 5, 7, 4
CHANNELS = (8, 16, 32, 64)
MAPS = [MapShape(channels, stride) for channels, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)]


def host_of(kind: str, *, maps: Sequence[MapShape] = MAPS, kappa: int = K, **options: Any) -> QueryHost:
    torch.manual_seed(0)
    host = build_host(kind, num_classes=K, maps=maps, kappa=kappa, options={**TINY[kind], **options})
    assert isinstance(host, QueryHost)
    return host


# --- as transformers computes it


def theirs_of(kind: str) -> Any:
    """Transformers' network of the same sizes on a tiny Swin, with weights so large that everything matters."""
    import transformers

    options = TINY[kind]
    swin: dict[str, Any] = {
        "image_size": 64, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2,
        "out_features": [f"stage{stage}" for stage in range(1, 5)],
    }  # fmt: skip
    backbone, labels = transformers.SwinConfig(**swin), {"num_labels": K}
    if kind == "mask2former":
        theirs: Any = transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(
                backbone_config=backbone, feature_size=options["width"], mask_feature_size=options["width"],
                hidden_dim=options["width"], encoder_layers=options["encoder_layers"],
                encoder_feedforward_dim=options["encoder_ffn"], decoder_layers=options["layers"] + 1,
                num_attention_heads=options["heads"], dim_feedforward=options["ffn"], num_queries=options["queries"],
                **labels,
            )
        )  # fmt: skip
    else:
        without: dict[str, Any] = {"use_timm_backbone": False}
        decoder = transformers.MaskFormerDetrConfig(
            **without, d_model=options["width"], decoder_layers=options["layers"],
            decoder_attention_heads=options["heads"], decoder_ffn_dim=options["ffn"], num_queries=options["queries"],
        )  # fmt: skip
        theirs = transformers.MaskFormerForInstanceSegmentation(
            transformers.MaskFormerConfig(
                backbone_config=backbone, decoder_config=decoder, fpn_feature_size=options["width"],
                mask_feature_size=options["width"], **labels,
            )
        )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return theirs.eval()


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' names → ours, by their beginnings alone; a backbone's are left out."""
    beginnings = {
        "model.pixel_level_module.decoder.": "pixel_decoder.", "model.transformer_module.": "transformer_module.",
        "mask_embedder.": "mask_embedder.",
    }  # fmt: skip
    found = {
        ours + name.removeprefix(theirs): tensor
        for name, tensor in weights.items() for theirs, ours in beginnings.items() if name.startswith(theirs)
    }  # fmt: skip
    for kind, own in (("weight", "cls_emb"), ("bias", "cls_bias")):
        table = weights[f"class_predictor.{kind}"]
        found[f"classify.{own}"] = table[:K]
        found[f"classify.no_object{'' if kind == 'weight' else '_bias'}"] = table[K:]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_labels_it_is_transformers_network_by_its_own_names(kind: str) -> None:
    theirs, ours = theirs_of(kind), host_of(kind, rank_scale="none", norm_stages=False).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        maps = theirs.model.pixel_level_module.encoder(images).feature_maps
        seen = Seen(maps[-1], maps=tuple(maps), decoded=ours.decode(maps))
        found, wanted = ours(seen, complete_ranking(2, K)), theirs(images)
    torch.testing.assert_close(found.class_logits, wanted.class_queries_logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.mask_logits, wanted.masks_queries_logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "layers"), [("maskformer", 2), ("mask2former", 4)])
def test_every_layer_is_learnt_and_in_mask2former_also_what_is_said_before_the_first(kind: str, layers: int) -> None:
    host, maps = host_of(kind), [torch.randn(1, shape.channels, *[64 // shape.stride] * 2) for shape in MAPS]
    assert len(host.train().decode(maps).masks) == len(host.decode(maps).queries) == layers
    assert len(host.eval().decode(maps).masks) == len(host.decode(maps).queries) == 1


def rand_by_shape(*shape: int, device: torch.device) -> Tensor:
    """Points that depend on nothing but how many they are."""
    return torch.empty(shape).uniform_(generator=torch.Generator().manual_seed(shape[0] * 1000 + shape[1]))


def drawn_prediction(images: int = 2, layers: int = 1, *, kappa: int = K, cells: tuple[int, int] = (8, 12)) -> Any:
    """A prediction, its first layer auxiliary, that remembers its gradients."""
    generator = torch.Generator().manual_seed(images)
    parts = [
        QueryPrediction(
            torch.randn(images, QUERIES, kappa + 1, generator=generator).requires_grad_(),
            (2 * torch.randn(images, QUERIES, *cells, generator=generator)).requires_grad_(),
        )
        for _ in range(layers)
    ]
    return replace(parts[-1], auxiliary=tuple(parts[:-1]))


def drawn_mask(images: int = 2, height: int = 32, width: int = 48) -> Tensor:
    """Labels in squares of 8 pixels, some without."""
    cells = torch.randint(IGNORE, K, (images, height // 8, width // 8), generator=torch.Generator().manual_seed(3))
    return cells.repeat_interleave(8, 1).repeat_interleave(8, 2)


def by_label(mask: Tensor) -> list[Segments]:
    return [segments_of(one, torch.zeros_like(one), torch.zeros(K, dtype=torch.bool)) for one in mask]


def rule_of(masks: MaskLoss) -> LossRule:
    points = isinstance(masks, PointMasks)
    return LossRule(2.0 if points else 1.0, 5.0 if points else 20.0, 5.0 if points else 1.0, 0.1, masks)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_labels_the_loss_is_transformers_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its gradient; points are drawn alike, and each layer is matched for itself."""
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss
    from transformers.models.maskformer.modeling_maskformer import MaskFormerHungarianMatcher, MaskFormerLoss

    monkeypatch.setattr(torch, "rand", rand_by_shape)
    prediction, segments = drawn_prediction(layers=2), by_label(drawn_mask())
    rule = rule_of(PointMasks(40) if kind == "mask2former" else WholeMasks())
    weights = {
        "loss_cross_entropy": rule.class_weight, "loss_mask": rule.mask_weight, "loss_dice": rule.dice_weight
    }  # fmt: skip
    labels: dict[str, Any] = {"num_labels": K}
    theirs: Any = (
        Mask2FormerLoss(Mask2FormerConfig(train_num_points=40, **labels), weights) if kind == "mask2former"
        else MaskFormerLoss(K, MaskFormerHungarianMatcher(*weights.values()), weights, 0.1)
    )  # fmt: skip
    masks = [(found.map == torch.arange(1, len(found) + 1)[:, None, None]).float() for found in segments]
    extra = prediction.auxiliary[0]
    parts = theirs(
        prediction.mask_logits, prediction.class_logits, masks, [found.labels for found in segments],
        [{"masks_queries_logits": extra.mask_logits, "class_queries_logits": extra.class_logits}],
    )  # fmt: skip
    wanted = sum(weights[name.removesuffix("_0")] * part for name, part in parts.items())
    found, _ = query_loss(prediction, segments, complete_ranking(2, K), cell=CELL, rule=rule)
    torch.testing.assert_close(found, wanted)
    learnt = [t for each in (prediction, extra) for t in (each.class_logits, each.mask_logits)]
    for one, other in zip(torch.autograd.grad(found, learnt), torch.autograd.grad(wanted, learnt), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


# --- what ranking changes


def test_segments_whose_label_is_not_kept_and_crowds_are_no_targets() -> None:
    found = Segments(torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), torch.tensor([4, 0, 2, 4]),
                     torch.tensor([False, False, False, True]))  # fmt: skip
    truth = kept_truth(found, torch.tensor([2, 4, 0]), torch.tensor([True, True, False]))
    assert truth.numbers.tolist() == [1, 3]  # 0 stands at a padding rank, and segment 4 is a crowd
    assert truth.ranks.tolist() == [1, 0]


@pytest.mark.parametrize("masks", [PointMasks(40), WholeMasks()], ids=["points", "whole"])
def test_what_is_not_kept_is_as_if_it_were_not_there(masks: MaskLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", rand_by_shape)
    mask, prediction = drawn_mask(), drawn_prediction(kappa=2)
    ranking = top_kappa(torch.tensor([[0.1, 0.9, 0.0, 0.8, 0.2]]).expand(2, -1), 2)
    without = torch.where((mask == 1) | (mask == 3), mask, IGNORE)
    (loss, figures), (alone, every) = (
        query_loss(prediction, by_label(one), ranking, cell=CELL, rule=rule_of(masks)) for one in (mask, without)
    )
    torch.testing.assert_close(loss, alone)
    assert figures["kept"].item() == pytest.approx(((mask == 1) | (mask == 3)).sum() / (mask != IGNORE).sum())
    assert every["kept"] == every["kept_segments"] == 1


@pytest.mark.parametrize("masks", [PointMasks(40), WholeMasks()], ids=["points", "whole"])
def test_nothing_kept_in_one_image_or_in_all_gives_a_finite_loss(masks: MaskLoss) -> None:
    prediction, mask = drawn_prediction(kappa=2), drawn_mask()
    nothing = Ranking(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    mask[0] = IGNORE
    for ranking in (complete_ranking(2, K).top(2), nothing):
        loss, _ = query_loss(prediction, by_label(mask), ranking, cell=CELL, rule=rule_of(masks))
        gradients = torch.autograd.grad(loss, [prediction.class_logits, prediction.mask_logits])
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_batch_without_a_kept_segment_has_no_loss_where_no_object_weighs_nothing() -> None:
    rule = replace(rule_of(PointMasks(40)), no_object=0.0)
    nowhere = by_label(torch.full((2, 32, 48), IGNORE))
    loss, figures = query_loss(drawn_prediction(), nowhere, complete_ranking(2, K), cell=CELL, rule=rule)
    assert loss.item() == figures["class_loss"].item() == 0


def test_the_same_seed_draws_the_same_loss() -> None:
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(query_loss(drawn_prediction(), by_label(drawn_mask()), complete_ranking(2, K), cell=CELL,
                                 rule=rule_of(PointMasks(40)))[0])  # fmt: skip
    assert losses[0] == losses[1] != losses[2]


def test_cells_beyond_the_edge_of_an_image_count_for_nothing() -> None:
    """An image of 29 x 45 pixels in 8 x 12 cells: what the last cells say of pixels that are not there."""
    mask, masks = drawn_mask()[:, :29, :45], torch.zeros(1, 1, 8, 12, requires_grad=True)
    truth = kept_truth(by_label(mask)[0], torch.arange(1), torch.ones(1, dtype=torch.bool))
    found = WholeMasks().image_losses(masks[0], truth, CELL)[0]
    up = F.interpolate(masks, scale_factor=CELL, mode="bilinear")[0, :, :29, :45]
    plain = F.binary_cross_entropy_with_logits(up, (mask[:1] == 0).float()) * 0.25  # of σ = 1/2
    inside = (mask[0] == 0).float().mean()
    assert found.item() == pytest.approx((plain * (0.25 * inside + 0.75 * (1 - inside))).item(), rel=1e-4)


@pytest.mark.parametrize("masks", [PointMasks(40), WholeMasks()], ids=["points", "whole"])
def test_cells_that_begin_beyond_an_image_change_no_loss(masks: MaskLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pyramid of a plain ViT has them, where the sides of a crop are no multiples of its patches."""
    monkeypatch.setattr(torch, "rand", rand_by_shape)
    own, segments = drawn_prediction(), by_label(drawn_mask()[:, :29, :45])
    wide = replace(own, mask_logits=F.pad(own.mask_logits, (0, 4, 0, 8), value=9.0))
    (loss, figures), (same, of_wide) = (
        query_loss(each, segments, complete_ranking(2, K), cell=CELL, rule=rule_of(masks)) for each in (own, wide)
    )
    torch.testing.assert_close(same, loss)
    torch.testing.assert_close(of_wide, figures)


def test_points_are_in_segments_as_a_sampled_mask_says() -> None:
    mask = drawn_mask(1)[:, :29, :45]
    (segments,) = by_label(mask)
    truth = Truth(segments.map, torch.arange(1, len(segments) + 1, dtype=torch.int32), segments.labels)
    points = torch.rand(len(segments), 50, 2)
    one_hot = (segments.map == truth.numbers[:, None, None]).float()
    sampled = F.grid_sample(one_hot[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(share_inside(truth, points), sampled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(share_inside(truth, points[:1])[0], sampled[0], rtol=1e-4, atol=1e-5)


def test_cells_of_all_maps_stay_in_place_when_maps_are_made_whole() -> None:
    maps = [torch.randn(1, 2, 5, 9), torch.randn(1, 2, 2, 3)]
    fine, coarse = whole_cells(maps, [8, 32])
    assert torch.equal(coarse, maps[1])
    assert torch.equal(fine[..., :5, :9], maps[0])
    assert torch.equal(fine[0, :, 7, 11], maps[0][0, :, 4, 8])


# --- label maps


@dataclass
class Pictured:
    """A network whose masks are products with the image, and whose classes depend on it."""

    cell: int = CELL

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.queries = torch.randn(QUERIES, 3, generator=generator)
        self.classes = torch.randn(QUERIES, K + 1, generator=generator)

    def look(self, images: Tensor) -> Seen:
        return Seen(F.avg_pool2d(images, CELL, ceil_mode=True))

    def segment(self, seen: Seen, ranking: Ranking) -> QueryPrediction:
        masks = 4 * torch.einsum("qc,bchw->bqhw", self.queries, seen.features)
        classes = self.classes * (1 + seen.features.mean((1, 2, 3))[:, None, None])
        kept = classes.gather(2, ranking.labels[:, None].expand(-1, QUERIES, -1))
        return QueryPrediction(torch.cat([kept, classes[..., -1:]], 2), masks)


def plain_scores(image: Tensor, ranking: Ranking, size: tuple[int, int]) -> Tensor:
    """The published formula, [κ, H, W] at once: masks upsampled, cut to the image, resized, σ, times the classes."""
    network = Pictured()
    found = network.segment(network.look(image[None]), ranking)
    masks = F.interpolate(found.mask_logits, scale_factor=CELL, mode="bilinear")[
        ..., : image.shape[1], : image.shape[2]
    ]
    masks = F.interpolate(masks, size, mode="bilinear")
    return torch.einsum("qk,qhw->khw", found.class_logits[0].softmax(1)[:, :-1], masks[0].sigmoid())


def scores_of(image: Tensor, ranking: Ranking, plan: InferenceConfig, size: tuple[int, int]) -> Tensor:
    pieces = pieces_of_views(Pictured(), image, ranking, plan, size=size)
    scores = torch.cat(list(rank_scores(pieces, size))).permute(2, 0, 1)
    assert torch.equal(best_ranks(pieces, size), scores.argmax(0))
    return scores


@pytest.fixture
def thin_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "STRIP", {"cpu": 2000})  # of an image of 43 pixels across, 6 rows


RANKING = top_kappa(torch.tensor([[0.4, 0.9, 0.1, 0.7, 0.2]]), 3)
IMAGE = torch.randn(3, 30, 43, generator=torch.Generator().manual_seed(6))


@pytest.mark.usefixtures("thin_strips")
@pytest.mark.parametrize("size", [(30, 43), (57, 80)])
def test_the_map_of_a_whole_image_is_the_published_formula_at_full_resolution(size: tuple[int, int]) -> None:
    plan = InferenceConfig(short_side=None)
    torch.testing.assert_close(scores_of(IMAGE, RANKING, plan, size), plain_scores(IMAGE, RANKING, size))


@pytest.mark.usefixtures("thin_strips")
def test_windows_are_averaged_as_scores() -> None:
    plan, total, count = InferenceConfig("slide", None, 20, 12), torch.zeros(3, 30, 43), torch.zeros(30, 43)
    for top in (0, 10):
        for left in (0, 12, 23):
            window = IMAGE[:, top : top + 20, left : left + 20]
            total[:, top : top + 20, left : left + 20] += plain_scores(window, RANKING, (20, 20))
            count[top : top + 20, left : left + 20] += 1
    torch.testing.assert_close(scores_of(IMAGE, RANKING, plan, (30, 43)), total / count)


@pytest.mark.usefixtures("thin_strips")
def test_scales_and_mirrored_views_are_averaged_as_scores() -> None:
    plan = InferenceConfig(short_side=None, scales=(0.5, 1.0), flip=True)
    small, size = F.interpolate(IMAGE[None], (15, 22), mode="bilinear")[0], (30, 43)
    views = [plain_scores(image, RANKING, size) for image in (IMAGE, small)]
    views += [plain_scores(image.flip(2), RANKING, size).flip(2) for image in (IMAGE, small)]
    found = scores_of(IMAGE, RANKING, plan, size)
    torch.testing.assert_close(found, torch.stack(views).mean(0), rtol=1e-4, atol=1e-5)


# --- networks


def config_for(kind: str, **changes: Any) -> Config:
    head = changes.pop("labels", LabelsConfig())
    return Config(**{
        "data": DataConfig(kind="synthetic", options={"classes": K, "train": 4, "val": 2, "size": 40}),
        "backbone": BackboneConfig(name="resnet10t"),
        "host": HostConfig(kind, {**TINY[kind], **changes.pop("options", {})}),
        "source": SourceConfig("complete"),
        "augment": AugmentConfig(short_side=40, crop=40),
        "labels": head,
        **changes,
    })  # fmt: skip


PROJECTED = LabelsConfig("projected", {"classes": "own", "width": 64, "pooled": 0, "projection": "linear"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("see", ["queries", "pixels"])
def test_labels_are_learnt_from_queries_or_pixels(kind: str, see: str) -> None:
    """All parameters have gradients, also while the label loss is alone: distributed training waits for them."""
    source = SourceConfig("joint", kappa=3)
    labels = replace(PROJECTED, warm_up=0.5)
    torch.manual_seed(0)
    model = build_segmentation(config_for(kind, labels=labels, source=source, options={"labels_see": see}), K)
    task = SegmentTask(model, Joint(3), K, missed=source, labels=labels, loss_stride=1)
    images, mask = torch.randn(2, 3, 40, 40), torch.randint(K, (2, 40, 40))
    for progress in (0.1, 0.9):
        model.zero_grad(set_to_none=True)
        loss, figures = task(Batch(("a", "b"), image=images, mask=mask, progress=progress))
        loss.backward()
        assert ("kept_segments" in figures) == (progress > 0.5)
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    seen = model.eval().look(images)
    assert seen.decoded is not None
    assert seen.decoded.looked_at.shape == ((2, 32, QUERIES, 1) if see == "queries" else (2, 512, 2, 2))


def test_the_maps_are_not_kept_behind_the_queries() -> None:
    """Those of all windows of a large image would be, where its labels are ranked before it is segmented."""
    model = build_segmentation(config_for("maskformer", labels=PROJECTED), K).eval()
    seen = model.look(torch.randn(1, 3, 40, 40))
    assert seen.decoded is not None
    assert seen.maps == ()
    assert seen.features.shape == (1, 512, 2, 2)


def test_the_released_label_branch_has_its_parameters() -> None:
    """3.439, 3.412 and 3.326 million for 150, 124 and 40 labels, with the layer normalisation over κ = K ranks."""
    for classes, wanted in ((150, 3.439), (124, 3.412), (40, 3.326)):
        with torch.device("meta"):
            branch = build_branch(
                "projected", nn.Module(), num_classes=classes, in_channels=256,
                options={"classes": "own", "width": 512, "pooled": 0, "projection": "linear"},
            )  # fmt: skip
        assert branch is not None
        count = sum(p.numel() for p in branch.parameters()) + 2 * (classes + 1)
        assert round(count / 1e6, 3) == wanted


def test_a_branch_that_averages_neighbours_is_refused_for_queries() -> None:
    with pytest.raises(UserError, match=r"labels\.head = projected looks at the queries of maskformer"):
        build_segmentation(config_for("maskformer", labels=LabelsConfig("projected", {"classes": "own"})), K)


def test_a_network_trained_on_all_labels_picks_among_its_classes() -> None:
    model = build_segmentation(config_for("maskformer"), K).eval()
    seen = model.look(torch.randn(2, 3, 40, 33))
    everything, some = (model.segment(seen, complete_ranking(2, K).top(kept)) for kept in (K, 2))
    assert isinstance(everything, QueryPrediction) and isinstance(some, QueryPrediction)
    assert torch.equal(some.class_logits, everything.class_logits[..., [0, 1, K]])
    assert torch.equal(some.mask_logits, everything.mask_logits)


def test_objects_are_learnt_where_they_are_told_apart() -> None:
    model = build_segmentation(config_for("mask2former", options={"target": "objects"}), K)
    parts: dict[str, Any] = {"missed": SourceConfig("complete"), "labels": LabelsConfig(), "loss_stride": 1}
    with pytest.raises(UserError, match=r"host\.options\.target = objects needs a data set that tells objects apart"):
        SegmentTask(model, Complete(K), K, **parts)
    task = SegmentTask(model, Complete(K), K, **parts, things=torch.tensor([True, False, True, False, False]))
    mask = torch.tensor([[0, 0, 0, 1], [2, 2, 1, IGNORE]]).repeat_interleave(20, 0).repeat_interleave(10, 1)[None]
    numbers = torch.tensor([[1, 2, 2, 0], [1, CROWD, 0, 0]]).repeat_interleave(20, 0).repeat_interleave(10, 1)[None]
    batch = Batch(("a",), image=torch.randn(1, 3, 40, 40), mask=mask, instances=numbers)
    (segments,) = task.segments(batch)
    assert segments.labels.tolist() == [0, 0, 1, 2, 2]
    loss, figures = task(batch)
    assert loss.isfinite()
    assert figures["kept_segments"].item() == figures["kept"].item() == 1  # the crowd is no target
    shares = kept_shares([segments], [kept_truth(segments, torch.tensor([2, 1]), torch.tensor([True, True]))])
    assert (shares["kept_segments"].item(), shares["kept"].item()) == (2 / 4, 3 / 6)


def test_pixels_of_a_crowd_are_neither_right_nor_wrong() -> None:
    crowd = Segments(torch.tensor([[1, 2, 0]], dtype=torch.int32), torch.tensor([0, 1]), torch.tensor([False, True]))
    truth = kept_truth(crowd, torch.tensor([0, 1]), torch.tensor([True, True]))
    prediction = QueryPrediction(torch.tensor([[[9.0, 0.0, 0.0]]]), torch.ones(1, 1, 1, 3))
    assert accuracy_of_cells(prediction, [crowd], [truth], 1).item() == 1


def test_a_stride_of_the_pixel_loss_is_refused() -> None:
    model = build_segmentation(config_for("maskformer"), K)
    with pytest.raises(UserError, match=r"loss\.stride = 2"):
        SegmentTask(model, Complete(K), K, missed=SourceConfig("complete"), labels=LabelsConfig(), loss_stride=2)


@pytest.mark.parametrize("kind", KINDS)
def test_without_transformers_one_line_says_what_to_install(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_host, "find_spec", lambda package: None)
    assert kind in host_kinds()
    with pytest.raises(
        UserError, match=rf"{kind} needs transformers, which is missing; pip install 'kappaseg\[hosts\]'"
    ):
        host_of(kind)


@pytest.mark.parametrize(("name", "value"), [("width", 48), ("heads", 3), ("queries", 0), ("no_object", 1.5)])
def test_sizes_that_do_not_fit_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name if name != 'heads' else 'width'} = "):
        host_of("mask2former", **{name: value})


def set_dropout(host: nn.Module, share: float) -> None:
    for module in host.modules():
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if hasattr(module, name):
                setattr(module, name, share)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_segment_what_its_maps_tell(kind: str) -> None:
    mask = drawn_mask(4, 64, 64)
    one_hot = F.one_hot(mask + 1, K + 1).permute(0, 3, 1, 2).float()
    shapes = [MapShape(K + 1, shape.stride) for shape in MAPS]
    host = host_of(kind, maps=shapes, rank_scale="none").train()
    set_dropout(host, 0.0)
    maps, ranking, right = [F.avg_pool2d(one_hot, shape.stride) for shape in shapes], complete_ranking(4, K), []
    optimizer = torch.optim.AdamW(host.parameters(), 3e-3)
    for _ in range(70):
        loss, figures = host.loss(host(Seen(maps[-1], decoded=host.decode(maps)), ranking), by_label(mask), ranking)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(host.parameters(), 1.0)
        optimizer.step()
        right.append(figures["pixel_accuracy"].item())
    assert right[-1] > 0.9 > right[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_decoders_give_the_same(kind: str) -> None:
    host = host_of(kind).eval()
    maps = [torch.randn(2, shape.channels, 64 // shape.stride, 96 // shape.stride) for shape in MAPS]
    wanted = host.decode(maps)
    for part in host.called_apart:
        part.compile(backend="aot_eager")
    found = host.decode(maps)
    torch.testing.assert_close(found.queries, wanted.queries, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.masks[-1], wanted.masks[-1], rtol=1e-4, atol=1e-4)
