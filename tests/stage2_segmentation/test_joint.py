"""The joint scheme: one network that ranks for itself, trained by the same loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kappaseg_core.config import BackboneConfig, DataConfig, LoopConfig, OptimConfig, build
from kappaseg_core.errors import UserError
from kappaseg_core.loop import Trainer
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import OwnRanking, Ranking, top_kappa
from kappaseg_core.structures import Batch
from stage2_segmentation.config import (
    AugmentConfig,
    BranchLossConfig,
    HostConfig,
    InferenceConfig,
    LabelsConfig,
    SourceConfig,
    Stage2Config,
    joint_config,
)
from stage2_segmentation.evaluate import evaluate_model, load_segmentation, open_test_scenes
from stage2_segmentation.inference import segmented, views
from stage2_segmentation.model import SegmentationModel, build_segmentation
from stage2_segmentation.sources.joint import Joint
from stage2_segmentation.structures import Prediction, Seen
from stage2_segmentation.task import SegmentTask, forced_share, recalled
from stage2_segmentation.train import source_for, train_segmentation

K, KAPPA, STEPS = 6, 2, 4
DATA = DataConfig(kind="synthetic", options={"classes": K, "train": 4, "val": 2, "size": 32})


def config_for(out: Path, **changes: Any) -> Stage2Config:
    settings: dict[str, Any] = {
        "data": DATA, "backbone": BackboneConfig(kind="small_cnn", name="8", frozen=False),
        "host": HostConfig(options={"width": 8, "heads": 2, "depth": 1}),
        "source": SourceConfig("joint", kappa=KAPPA), "labels": LabelsConfig("encoder", {"pooled": 2, "heads": 2}),
        "augment": AugmentConfig(short_side=32, crop=24), "inference": InferenceConfig(short_side=None),
        "optim": OptimConfig(lr=1e-2), "loop": LoopConfig(steps=STEPS, batch_size=2, save_every=1, eval_every=2),
        "out": str(out),
    }  # fmt: skip
    return Stage2Config(**{**settings, **changes})


def task_for(model: SegmentationModel, **changes: Any) -> SegmentTask:
    settings: dict[str, Any] = {
        "missed": SourceConfig("joint", missed="ignore"),
        "labels": LabelsConfig("encoder"),
        "loss_stride": 1,
    }
    return SegmentTask(model, Joint(KAPPA), K, **{**settings, **changes})


def model_for(**changes: Any) -> SegmentationModel:
    torch.manual_seed(0)
    return build_segmentation(config_for(Path("unused"), **changes), K)


def batch_of(progress: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(3)
    mask = torch.randint(0, K, (2, 16, 16), generator=generator)
    return Batch(("a", "b"), image=torch.randn(2, 3, 16, 16, generator=generator), mask=mask, progress=progress)


def test_a_killed_joint_run_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_segmentation(config_for(tmp_path / "whole"))
    step = Trainer.train_step

    def dying(self: Trainer, stream: Any) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        step(self, stream)

    monkeypatch.setattr(Trainer, "train_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train_segmentation(config_for(tmp_path / "killed"))
    monkeypatch.setattr(Trainer, "train_step", step)
    again = train_segmentation(config_for(tmp_path / "killed"))
    assert again.metrics == whole.metrics
    first, second = (load_file(Path(s.run) / "weights.safetensors") for s in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loaded_joint_network_ranks_and_segments_as_in_training(tmp_path: Path) -> None:
    summary = train_segmentation(config_for(tmp_path))
    assert Path(summary.run).name == "stage2-joint"
    model, config, names = load_segmentation(Path(summary.run))
    scenes = open_test_scenes(config, names)
    found = evaluate_model(model, scenes, source_for(config, scenes, at_test=True), config.inference, Placement())
    assert found.numbers() == summary.metrics
    assert found.mean_kappa == KAPPA
    assert found.label_mAP is not None and 0 <= found.label_mAP <= 1
    wider = replace(config, source=replace(config.source, test_kappa=K))
    everything = evaluate_model(model, scenes, source_for(wider, scenes, at_test=True), config.inference, Placement())
    assert (everything.mean_kappa, everything.pixel_coverage) == (K, 1.0)


def test_the_label_branch_is_trained_by_the_label_loss_alone_while_it_warms_up() -> None:
    task = task_for(model_for(), labels=LabelsConfig("encoder", weight=0.5, warm_up=0.5))
    loss, figures = task(batch_of(0.49))
    assert set(figures) == {"label_loss", "label_recall"}
    assert loss.item() == pytest.approx(0.5 * figures["label_loss"].item())
    loss.backward()
    assert all(p.grad is not None for p in task.parameters())
    projection = task.model.host.proj_classes.grad  # type: ignore[union-attr]
    assert (projection == 0).all()
    assert {"kept", "label_loss"} < set(task(batch_of(0.5))[1])


def test_the_label_loss_is_weighted_and_on_the_labels_of_the_crop() -> None:
    model = model_for().eval()
    batch = batch_of()
    with torch.no_grad():
        light, figures = task_for(model, labels=LabelsConfig("encoder", weight=0.1))(batch)
        heavy, _ = task_for(model, labels=LabelsConfig("encoder", weight=1.1))(batch)
        seen = model.look(batch.image)  # type: ignore[arg-type]
    present = torch.zeros(2, K).scatter_(1, batch.mask.flatten(1), 1.0)  # type: ignore[union-attr]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(seen.label_logits, present) * K  # type: ignore[arg-type]
    assert figures["label_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert (heavy - light).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_networks_own_ranking_is_its_best_labels_and_missed_ones_may_be_forced() -> None:
    model, batch = model_for().eval(), batch_of()
    seen = model.look(batch.image)  # type: ignore[arg-type]
    plain = task_for(model).ranking_for(seen, batch)
    best = top_kappa(seen.label_logits.sigmoid(), KAPPA)  # type: ignore[union-attr]
    assert torch.equal(plain.labels, best.labels) and torch.equal(plain.scores, best.scores)
    batch.mask[:] = best.labels[0, 0] if best.labels[0, 0] else 1  # type: ignore[index]
    for missed in ("force", "mix"):
        forced = task_for(model, missed=SourceConfig("joint", missed=missed)).ranking_for(seen, batch)
        assert all(int(batch.mask[i, 0, 0]) in forced.labels[i].tolist() for i in range(2))  # type: ignore[index]


def test_forcing_fades() -> None:
    fading = SourceConfig("joint", missed="mix", fade=0.5)
    assert [forced_share(fading, progress) for progress in (0, 0.125, 0.25, 0.5, 0.9)] == [1, 0.75, 0.5, 0, 0]
    assert {forced_share(SourceConfig(missed="force"), p) for p in (0, 0.5, 1)} == {1}
    assert {forced_share(SourceConfig(), p) for p in (0, 0.5, 1)} == {0}
    assert SourceConfig("joint").treatment == "mix"
    assert {SourceConfig(train).treatment for train in ("cache", "oracle", "complete")} == {"ignore"}


def test_recall_is_one_for_a_perfect_ranking() -> None:
    present = torch.tensor([[True, False, True, False], [False, False, False, True]])
    assert recalled(torch.tensor([[3.0, 1, 2, 0], [0, 1, 2, 3]]), present).item() == 1
    assert recalled(torch.tensor([[0.0, 1, 2, 3], [0, 1, 2, 3]]), present).item() == pytest.approx(2 / 3)
    assert recalled(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("head", ["encoder", "decoder", "pooled"])
@pytest.mark.parametrize("train", ["joint", "complete", "oracle"])
def test_every_branch_trains_under_every_source(tmp_path: Path, head: str, train: str) -> None:
    """complete with a branch is the paper's "+MT": the label loss, and pixels among all labels."""
    config = config_for(tmp_path, source=SourceConfig(train, kappa=KAPPA), labels=LabelsConfig(head))
    summary = train_segmentation(replace(config, loop=replace(config.loop, steps=1)))
    assert Path(summary.run).name == ("stage2-joint" if train == "joint" else f"stage2-{train}-labels")
    assert summary.metrics["mean_kappa"] == KAPPA if train == "joint" else summary.metrics["pixel_coverage"] == 1


def test_the_branch_has_its_own_rate_and_decay() -> None:
    labels = LabelsConfig("encoder", lr=0.1, weight_decay=1e-4)
    groups = task_for(model_for(), labels=labels).parameter_groups(OptimConfig(weight_decay=1e-6))
    rates = {g["name"]: (g["lr_factor"], g["weight_decay"]) for g in groups}
    assert rates == {
        "host, decayed": (1.0, 1e-6), "backbone, decayed": (1.0, 1e-6), "labels, decayed": (0.1, 1e-4),
    }  # fmt: skip


class Windows:
    """A network that ranks label k by the mean of channel k, and segments alike."""

    cell = 1

    def __init__(self) -> None:
        self.asked: list[Ranking] = []
        self.looked = 0

    def look(self, images: Tensor) -> Seen:
        self.looked += len(images)
        return Seen(images, images.mean((2, 3)))

    def segment(self, seen: Seen, ranking: Ranking) -> Prediction:
        self.asked.append(ranking)
        ranks = ranking.labels[..., None, None].expand(-1, -1, *seen.features.shape[2:])
        return Prediction(seen.features.gather(1, ranks))


def test_a_label_of_one_window_is_ranked_for_the_whole_image() -> None:
    """Label 2 fills the right quarter alone; the best two labels of the middle windows would be 0 and 1."""
    image = torch.zeros(3, 4, 16)
    image[0], image[1], image[2, :, 12:] = 0.5, 0.4, 2.0
    network = Windows()
    plan = InferenceConfig("slide", window=4, stride=4)
    found = segmented(network, image, OwnRanking(2), plan, size=(4, 16))
    assert found.ranking.labels.tolist() == [[2, 0]]
    assert found.label_map[0].tolist() == [0] * 12 + [2] * 4
    assert found.label_scores is not None
    torch.testing.assert_close(found.label_scores, torch.tensor([0.5, 0.4, 2.0]).sigmoid())
    assert all(asked.labels[0].tolist() == [2, 0] for asked in network.asked)
    assert network.looked == 4, "every window is looked at once"


def test_all_scales_and_flips_share_the_ranking_of_the_image_as_it_is() -> None:
    network = Windows()
    image = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    plan = InferenceConfig(scales=(0.5, 1.25), flip=True)
    found = segmented(network, image, OwnRanking(2), plan, size=(8, 12))
    assert views(plan)[0] == (1.25, False)
    assert network.looked == 4
    assert all(torch.equal(asked.labels, found.ranking.labels) for asked in network.asked)


def test_a_joint_source_needs_a_branch() -> None:
    with pytest.raises(UserError, match=r"source.train = joint, but labels.head = none ranks nothing"):
        build(Stage2Config, {"source": {"train": "joint"}}, source="x")
    with pytest.raises(UserError, match=r"source.test = joint, but labels.head = none"):
        build(Stage2Config, {"source": {"train": "complete", "test": "joint"}}, source="x")


def test_run_joint_takes_the_settings_of_run_stage2(tmp_path: Path) -> None:
    file = tmp_path / "stage2.yaml"
    file.write_text("source: {train: cache, kappa: 7}\n")
    config = joint_config(file, [("labels.weight", "3")])
    assert (config.source.train, config.source.kappa, config.labels.head, config.labels.weight) == (
        "joint", 7, "encoder", 3.0,
    )  # fmt: skip
    assert joint_config(file, [("labels.head", "pooled")]).labels.head == "pooled"
    with pytest.raises(UserError, match=r"--source.train oracle: run-joint trains on the network's own ranking"):
        joint_config(file, [("source.train", "oracle")])


VIT = BackboneConfig(name="vit_tiny_patch16_224", frozen=False, options={"img_size": 32, "depth": 2, "embed_dim": 24})


def test_class_tokens_in_the_backbone_see_the_image_and_start_apart() -> None:
    """The release starts all of them from zero, where they stay one and the same token."""
    host = HostConfig(options={"heads": 2, "depth": 1})
    model = model_for(backbone=VIT, host=host, class_tokens="backbone").eval()
    images = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    features, classes = model.backbone.with_tokens(images, model.host.cls_emb)  # type: ignore[arg-type]
    assert (features.shape, classes.shape) == ((2, 24, 2, 3), (2, K, 24))
    assert not torch.allclose(classes[0], classes[1], atol=1e-4)
    assert (classes[0, 0] - classes[0, 1]).abs().max() > 1e-2
    alone = model.backbone.with_tokens(images[1:], model.host.cls_emb)[1]  # type: ignore[arg-type]
    torch.testing.assert_close(alone, classes[1:], rtol=1e-4, atol=1e-5)
    task = task_for(model)
    batch = replace(batch_of(), image=images[..., :32])
    task(replace(batch, mask=torch.zeros(2, 32, 32, dtype=torch.int64)))[0].backward()
    assert (model.host.cls_emb.grad != 0).any()  # type: ignore[union-attr]


def test_without_tokens_the_last_block_gives_the_plain_map() -> None:
    model = model_for(backbone=VIT, host=HostConfig(options={"heads": 2, "depth": 1})).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = model.backbone(images)
    torch.testing.assert_close(model.backbone.with_tokens(images, torch.zeros(0, 24))[0], plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "needs a plain ViT; 8 is none"),
        ({"backbone": VIT}, r"needs host.options.width = 24, the backbone's, found 8"),
        ({"backbone": replace(VIT, frozen=True), "host": HostConfig()}, "needs a backbone that is trained"),
    ],
)
def test_class_tokens_that_cannot_join_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_for(class_tokens="backbone", **changes)


DECODER = {"heads": 2, "ffn": 8, "pooled": 2, "dropout": 0.0}
LARGE = 40
WORLD = DataConfig(kind="synthetic", options={"classes": LARGE, "train": 4, "val": 2, "size": 32})


def sampling(**options: Any) -> LabelsConfig:
    return LabelsConfig("decoder", {**DECODER, **options}, BranchLossConfig(negatives=3))


@pytest.mark.parametrize("labels", [sampling(), sampling(shortlist=10), sampling(shortlist=10, chunk=4),
                                    LabelsConfig("decoder", {**DECODER, "shortlist": 10}),
                                    LabelsConfig("pooled", loss=BranchLossConfig(negatives=3))], ids=str)  # fmt: skip
def test_a_network_that_samples_or_lists_labels_is_trained_saved_and_ranks(
    tmp_path: Path, labels: LabelsConfig
) -> None:
    summary = train_segmentation(config_for(tmp_path, data=WORLD, labels=labels))
    model, config, names = load_segmentation(Path(summary.run))
    scenes = open_test_scenes(config, names)
    source = source_for(config, scenes, at_test=True)
    found = evaluate_model(model, scenes, source, config.inference, Placement())
    assert found.numbers() == summary.metrics and found.mean_kappa == KAPPA


@pytest.mark.parametrize("shortlist", [None, 3])
def test_a_joint_step_on_sampled_labels_has_the_ranking_and_on_average_the_loss_of_one_on_all(
    monkeypatch: pytest.MonkeyPatch, shortlist: int | None
) -> None:
    """Two labels are there and four are not: over all pairs of these, the label loss is that of all six."""
    options = {**DECODER, "shortlist": shortlist}
    model, batch = model_for(labels=LabelsConfig("decoder", options)), batch_of()
    batch.mask.remainder_(2)  # type: ignore[union-attr]
    whole, sampled = (
        task_for(model, labels=LabelsConfig("decoder", options, BranchLossConfig(negatives=n))) for n in (None, 2)
    )
    figures = [whole(batch)[1]]
    for chosen in combinations(range(4), 2):
        order = [*chosen, *(turn for turn in range(4) if turn not in chosen)]
        monkeypatch.setattr(torch, "randperm", lambda n, order=order, **_: torch.tensor(order))
        figures.append(sampled(batch)[1])
    losses = torch.stack([each["label_loss"] for each in figures])
    torch.testing.assert_close(losses[1:].mean(), losses[0])
    assert losses[1:].std() > 1e-4
    assert len({each["label_recall"].item() for each in figures}) == len({each["kept"].item() for each in figures}) == 1


def test_the_label_loss_reaches_the_class_embeddings_of_sampled_labels_alone() -> None:
    model, batch = model_for(labels=sampling()), batch_of(progress=0.0)
    batch.mask.fill_(2)  # type: ignore[union-attr]
    task = task_for(model, labels=replace(sampling(), loss=BranchLossConfig(negatives=1), warm_up=0.5))
    task(batch)[0].backward()
    moved = (model.host.cls_emb.grad != 0).any(1)  # type: ignore[union-attr, arg-type]
    assert moved[2] and moved.sum() == 2


def test_an_encoder_branch_cannot_sample_labels() -> None:
    with pytest.raises(
        UserError, match=r"labels\.loss\.negatives = 3, but labels\.head = encoder .* use labels\.head dec"
    ):
        model_for(labels=LabelsConfig("encoder", {"pooled": 2, "heads": 2}, BranchLossConfig(negatives=3)))
