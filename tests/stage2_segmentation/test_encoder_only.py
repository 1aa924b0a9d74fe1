"""The host without a decoder: labels' tokens in the last blocks of a plain ViT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig, OptimConfig
from kappaseg_core.cost import count
from kappaseg_core.errors import UserError
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import complete_ranking, top_kappa
from kappaseg_core.structures import Batch
from pipelines.published.networks import segmenter
from stage2_segmentation.branches import branch_kinds
from stage2_segmentation.config import (
    AugmentConfig,
    HostConfig,
    InferenceConfig,
    LabelsConfig,
    SourceConfig,
    Stage2Config,
)
from stage2_segmentation.evaluate import evaluate_model, load_segmentation, open_test_scenes
from stage2_segmentation.hosts.encoder_only import EncoderOnly, masked_share, seen_ranks, within_masks
from stage2_segmentation.model import SegmentationModel, build_segmentation
from stage2_segmentation.sources.joint import Joint
from stage2_segmentation.task import SegmentTask
from stage2_segmentation.train import source_for, train_segmentation

K, KAPPA, SIDE = 7, 3, 32
TINY = {"depth": 4, "embed_dim": 16, "num_heads": 2}
AUGREG = BackboneConfig(name="vit_tiny_patch16_224", options={**TINY, "img_size": 64})
DINOV2 = BackboneConfig(name="vit_small_patch14_reg4_dinov2", options={**TINY, "img_size": 56})
DINOV3 = BackboneConfig(name="vit_small_patch16_dinov3", options=TINY)
EVA02 = BackboneConfig(name="eva02_tiny_patch14_224", options={**TINY, "img_size": 56})
BACKBONES = {"AugReg": AUGREG, "DINOv2": DINOV2, "DINOv3": DINOV3, "EVA-02": EVA02}
ANNEALED = {"mask_attention": "annealed"}


def config_for(
    backbone: BackboneConfig = AUGREG, options: dict[str, Any] | None = None, **changes: Any
) -> Stage2Config:
    settings: dict[str, Any] = {
        "data": DataConfig(kind="synthetic", options={"classes": K, "train": 4, "val": 2, "size": SIDE}),
        "backbone": backbone, "host": HostConfig("encoder_only", {"blocks": 2, "width": 8, **(options or {})}),
        "source": SourceConfig("cache", kappa=KAPPA), "augment": AugmentConfig(short_side=SIDE, crop=SIDE),
        "inference": InferenceConfig(short_side=None),
        "loop": LoopConfig(steps=3, batch_size=2, device="cpu", save_every=1), "out": "unused",
    }  # fmt: skip
    return Stage2Config(**{**settings, **changes})


def model_for(*args: Any, **changes: Any) -> SegmentationModel:
    torch.manual_seed(0)
    return build_segmentation(config_for(*args, **changes), K)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE + 8, generator=torch.Generator().manual_seed(count))


def ranking_of(count: int = 2) -> Any:
    return top_kappa(torch.rand(count, K, generator=torch.Generator().manual_seed(7)), KAPPA)


def task_for(model: SegmentationModel, labels: LabelsConfig) -> SegmentTask:
    missed = SourceConfig("joint", missed="ignore")
    return SegmentTask(model, Joint(KAPPA), K, missed=missed, labels=labels, loss_stride=1)


def batch_of(progress: float = 0.0) -> Batch:
    mask = torch.randint(0, K, (2, SIDE, SIDE + 8), generator=torch.Generator().manual_seed(3))
    return Batch(("a", "b"), image=images(), mask=mask, progress=progress)


@contextmanager
def calls(model: SegmentationModel) -> Iterator[list[tuple[int, int]]]:
    """(number of the block, tokens) of every block of the backbone that is run."""
    network: Any = model.backbone.network
    found: list[tuple[int, int]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, number=number: found.append((number, args[0].shape[1])))
        for number, block in enumerate(network.model.blocks)
    ]
    yield found
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(("name", "cell"), [("AugReg", 4), ("DINOv2", 7), ("DINOv3", 4), ("EVA-02", 7)])
def test_masks_are_four_pixels_fine_or_half_a_patch(name: str, cell: int) -> None:
    model = model_for(BACKBONES[name]).eval()
    logits = model(images(), ranking_of()).rank_logits
    stride = model.backbone.stride
    assert model.cell == cell
    assert logits.shape == (2, KAPPA, *(-(-side // stride) * stride // cell for side in (SIDE, SIDE + 8)))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("options", [{}, ANNEALED])
def test_both_losses_reach_every_parameter(name: str, options: dict[str, Any]) -> None:
    labels = LabelsConfig("pooled")
    model = model_for(BACKBONES[name], options, labels=labels, source=SourceConfig("joint", kappa=KAPPA))
    task = task_for(model, labels)
    task(batch_of())[0].backward()
    for part, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), part


@pytest.mark.parametrize("labels", [LabelsConfig(kind) for kind in branch_kinds()], ids=branch_kinds())
def test_labels_are_ranked_by_what_the_first_blocks_see_in_one_pass(labels: LabelsConfig) -> None:
    """κ tokens are there in the last blocks alone; what is ranked does not depend on the masks."""
    model = model_for(labels=replace(labels, options={}), source=SourceConfig("joint", kappa=KAPPA)).eval()
    with calls(model) as found:
        seen = model.look(images())
        model.segment(seen, ranking_of())
    patches = 1 + 2 * 3  # class token, patches
    assert found == [(0, patches), (1, patches), (2, patches + KAPPA), (3, patches + KAPPA)]
    assert seen.label_logits is not None and seen.label_logits.shape == (2, K)


def test_cost_does_not_grow_with_the_vocabulary() -> None:
    costs = []
    for classes in (K, 1000):
        model = build_segmentation(config_for(), classes).eval()
        costs.append(count(model, lambda model=model: model(images(1), ranking_of(1))).macs)
    assert costs[0] == costs[1]


@pytest.mark.slow
def test_it_saves_an_eighth_of_the_products_of_the_segmenter() -> None:
    """ViT-B/16, 512 pixels, K = 171, κ = 50 (docs/method.md); with masks as wide as EoMT's, a third of that."""
    hosts = [HostConfig(), HostConfig("encoder_only"), HostConfig("encoder_only", {"width": None})]
    source = SourceConfig("cache", kappa=50)
    theirs, ours, wide = (segmenter(Stage2Config(host=host, source=source), 171).cost.macs / 1e9 for host in hosts)
    assert [theirs, ours, wide] == pytest.approx([127.05, 110.78, 121.51], abs=0.01)


def test_the_head_starts_while_the_label_loss_is_alone() -> None:
    """Distributed training waits for all gradients: in the warm-up those of the host and of the last blocks are 0."""
    labels = LabelsConfig("pooled", warm_up=0.5)
    model = model_for(labels=labels, source=SourceConfig("joint", kappa=KAPPA))
    task_for(model, labels)(batch_of(progress=0.2))[0].backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert all((p.grad == 0).all() for p in model.host.parameters())


def test_mask_attention_is_annealed_by_the_published_schedule() -> None:
    """EoMT with ViT-L on ADE20K: of 39,120 steps, blocks anneal in 6520..13040, ..., 26080..32600, by (1 - x)^0.9."""
    for block, start in enumerate((6520, 13040, 19560, 26080)):
        shares = [masked_share(block, 4, step / 39120) for step in (0, start, start + 3260, start + 6520, 39120)]
        assert shares == pytest.approx([1, 1, 0.5**0.9, 0, 0], abs=1e-9)
    assert masked_share(0, 3, 1.0) == 0.0


def begun_of(model: SegmentationModel) -> Any:
    begun = model.look(images(1)).begun
    assert begun is not None
    return begun


def test_labels_look_at_the_patches_that_they_win() -> None:
    begun = begun_of(model_for())
    assert begun.grid == (2, 3) and begun.tokens.shape[1] == 7
    logits = torch.zeros(1, KAPPA, 8, 12)
    logits[0, 1, :4] = 1.0  # the upper patches; the lower ones are rank 2's, and rank 0 wins nowhere
    logits[0, 2, 4:] = 1.0
    allowed = within_masks(begun, logits, 1.0, None)[0, 0].int().tolist()
    everything = [1] * 10
    assert allowed[:7] == [everything] * 7
    assert allowed[7] == everything
    assert allowed[8] == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert allowed[9] == [1, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_a_share_of_the_labels_is_free_and_padding_is_seen_by_none() -> None:
    begun = begun_of(model_for())
    torch.manual_seed(0)
    logits = torch.eye(6).view(1, 6, 2, 3).repeat(1, 1, 4, 4)[:, :KAPPA]  # every label wins some patches
    held = [~within_masks(begun, logits, 0.25, None)[0, 0, 7:].all(1) for _ in range(400)]
    assert torch.stack(held).float().mean().item() == pytest.approx(0.25, abs=0.05)
    valid = torch.tensor([[True, True, False]])
    attend = seen_ranks(begun, valid)
    assert attend is not None
    assert not within_masks(begun, logits, 1.0, attend)[..., -1].any()
    assert seen_ranks(begun, valid[:, :2]) is None


def test_training_sees_masks_until_they_are_annealed_and_evaluation_never() -> None:
    model = model_for(options=ANNEALED)
    host, ranking = model.host, ranking_of()
    assert isinstance(host, EncoderOnly)
    seen = model.look(images())
    plain = host.eval()(seen, ranking)
    assert plain.auxiliary == ()
    early, late = (host.train()(replace(seen, progress=progress), ranking) for progress in (0.0, 0.9))
    assert [(extra.cell, extra.weight) for extra in early.auxiliary] == [(4, 1.0)] * 2
    assert torch.equal(late.rank_logits, plain.rank_logits)
    assert not torch.equal(early.rank_logits, plain.rank_logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": BackboneConfig(name="resnet10t")}, "last blocks of a plain ViT; backbone.name = resnet10t"),
        ({"backbone": replace(AUGREG, frozen=True)}, "to train them; set backbone.frozen false"),
        (
            {"host": HostConfig("encoder_only", {"blocks": 4})},
            r"last 4 blocks, but the backbone \(timm, vit_tiny_patch16_224\) has 4",
        ),
        ({"host": HostConfig("encoder_only", {"blocks": 0})}, "blocks = 0, wanted at least 1"),
        ({"class_tokens": "backbone"}, "puts class tokens into the backbone itself; use class_tokens host"),
    ],
)
def test_what_it_cannot_work_with_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_for(**changes)


@pytest.mark.parametrize("options", [{}, ANNEALED])
def test_a_run_loads_and_measures_as_it_ended(tmp_path: Path, options: dict[str, Any]) -> None:
    """Joint, on images that are no multiple of a patch."""
    config = config_for(
        AUGREG,
        options,
        out=str(tmp_path),
        labels=LabelsConfig("pooled"),
        source=SourceConfig("joint", kappa=KAPPA),
        data=DataConfig(kind="synthetic", options={"classes": K, "train": 4, "val": 2, "size": 40}),
    )
    summary = train_segmentation(config)
    model, loaded, names = load_segmentation(Path(summary.run))
    assert loaded == config
    scenes = open_test_scenes(loaded, names)
    again = evaluate_model(model, scenes, source_for(loaded, scenes, at_test=True), loaded.inference, Placement())
    assert again.numbers() == summary.metrics


def test_all_labels_in_the_last_blocks_are_the_plain_baseline() -> None:
    model = model_for(source=SourceConfig("complete")).eval()
    everything = model(images(), complete_ranking(2, K)).rank_logits
    few = ranking_of()
    picked = everything.gather(1, few.labels[..., None, None].expand(-1, -1, *everything.shape[2:]))
    assert torch.equal(model(images(), few).rank_logits, picked)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, ANNEALED])
def test_it_learns_where_labels_are(tmp_path: Path, options: dict[str, Any]) -> None:
    """Known labels, synthetic scenes, everything from random numbers: 120 steps lead far beyond the 1/6 of chance."""
    config = config_for(
        BackboneConfig(
            name="vit_tiny_patch16_224",
            options={"img_size": 64, "patch_size": 8, "depth": 4, "embed_dim": 64, "num_heads": 2},
        ),
        {"width": 32, **options},
        data=DataConfig(kind="synthetic", options={"classes": 12, "train": 100, "val": 10, "size": 64}),
        source=SourceConfig("oracle"), augment=AugmentConfig(short_side=64, crop=64, photometric=False),
        optim=OptimConfig(lr=1e-3, schedule="cosine", warmup=0.1), out=str(tmp_path),
        loop=LoopConfig(steps=120, batch_size=8, device="cpu"),
    )  # fmt: skip
    metrics = train_segmentation(config).metrics
    assert metrics["mIoU"] > 0.4
