"""Exported networks of every kind compute what the networks themselves compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kappaseg_core.config import BackboneConfig
from kappaseg_core.errors import UserError
from kappaseg_core.handover import Normalisation
from kappaseg_core.placement import Placement
from kappaseg_core.ranking import IGNORE, OwnRanking, Ranking, complete_ranking, top_kappa
from pipelines.export import check, formats
from pipelines.export.check import agreement
from pipelines.export.formats import FORMATS, TRACED, traced, without_ellipsis
from pipelines.export.networks import (
    CompleteMapNetwork,
    Exported,
    JointNetwork,
    MapNetwork,
    RankingNetwork,
    Tensors,
    pictures,
)
from stage1_multilabel.augment import square
from stage1_multilabel.classifier import build_classifier
from stage1_multilabel.config import HeadConfig
from stage1_multilabel.scoring import label_scores
from stage2_segmentation.config import HostConfig, InferenceConfig, LabelsConfig, SourceConfig, Stage2Config
from stage2_segmentation.evaluate import segment_image
from stage2_segmentation.model import build_segmentation
from stage2_segmentation.structures import Prediction, Seen
from tests.contracts.test_hosts import TINY

K, KAPPA, SIZE = 7, 3, (33, 47)
CNN = BackboneConfig(kind="small_cnn", name="8")
VIT = BackboneConfig(name="vit_tiny_patch16_224", options={"depth": 2, "embed_dim": 16, "num_heads": 2})
SWIN = BackboneConfig(name="swin_tiny_patch4_window7_224", options={"depths": [2], "embed_dim": 8, "num_heads": [1]})
RESNET = BackboneConfig(name="resnet18", level=8)
STAGES = BackboneConfig(name="resnet10t")
MOBILENET = BackboneConfig(name="mobilenetv2_050", level=4)
SMALL = {"width": 16, "ffn": 16, "heads": 2, "decoder_layers": 1}


def weighted(network: Any, *parts: Any) -> Any:
    """A network in evaluation mode whose labels and cells differ clearly: large weights in its `parts`, and
    convolutions that keep the size of what they are given."""
    generator = torch.Generator().manual_seed(1)
    for part in network.backbone.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
    for part in parts:
        for name, parameter in part.named_parameters():
            nn.init.normal_(parameter, std=0.1 if "bias" in name else 0.5, generator=generator)
    return network.eval()


def classifier(backbone: BackboneConfig, *, classes: int = K, **head: Any) -> RankingNetwork:
    torch.manual_seed(0)
    model = build_classifier(backbone, HeadConfig(**head), num_classes=classes, image_size=SIZE[0])
    return RankingNetwork(weighted(model, model.head), KAPPA).eval()


def segmentation(backbone: BackboneConfig = CNN, branch: str = "none", **changes: Any) -> Any:
    torch.manual_seed(0)
    options = changes.pop("branch_options", {})
    config = Stage2Config(
        backbone=backbone, host=HostConfig(options={"width": 16, "heads": 2, "depth": 1}),
        source=SourceConfig("cache", kappa=KAPPA), labels=LabelsConfig(branch, options),
    )  # fmt: skip
    model = build_segmentation(Stage2Config(**{**vars(config), **changes}), K)
    return weighted(model, model.host, *([] if model.branch is None else [model.branch]))


def segmenter(backbone: BackboneConfig = CNN, **changes: Any) -> MapNetwork:
    return MapNetwork(segmentation(backbone, **changes), KAPPA, K).eval()


def joint(branch: str, backbone: BackboneConfig = CNN, *, class_tokens: str = "host", **options: Any) -> JointNetwork:
    model = segmentation(backbone, branch, class_tokens=class_tokens, branch_options=options)
    return JointNetwork(model, KAPPA).eval()


def hosted(kind: str, backbone: BackboneConfig, **options: Any) -> MapNetwork:
    return MapNetwork(segmentation(backbone, host=HostConfig(kind, options)), KAPPA, K).eval()


def mask_network(kind: str, branch: str = "none") -> Any:
    """With weights as training starts from: under larger ones masks are wholly 0 or 1, and ranks tie."""
    torch.manual_seed(0)
    options = {"classes": "own", "width": 64, "pooled": 0, "projection": "linear"} if branch != "none" else {}
    config = Stage2Config(
        backbone=STAGES, host=HostConfig(kind, TINY[kind]), source=SourceConfig("cache", kappa=KAPPA),
        labels=LabelsConfig(branch, options),
    )  # fmt: skip
    return build_segmentation(config, K).eval()


def complete() -> CompleteMapNetwork:
    return CompleteMapNetwork(segmentation(source=SourceConfig("complete")), K).eval()


def images(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    return pictures(count, size, torch.Generator().manual_seed(count))


NETWORKS: dict[str, Callable[[], Exported]] = {
    "rankseg head, ViT": lambda: classifier(replace(VIT, options={**VIT.options, "depth": 1}), **SMALL),
    "official head in chunks, Swin": lambda: classifier(SWIN, preset="official", chunk=4, **SMALL),
    "short-list": lambda: classifier(RESNET, preset="fast", shortlist=4, **SMALL),
    "groups": lambda: classifier(RESNET, preset="group", groups=3, **SMALL),
    "gap, ResNet": lambda: classifier(RESNET, preset="gap"),
    "lse, MobileNet": lambda: classifier(MOBILENET, preset="lse"),
    "complete": complete,
    "encoder branch, class tokens in the ViT": lambda: joint("encoder", VIT, class_tokens="backbone", pooled=2),
    "encoder branch, patches alone": lambda: joint("encoder", pooled=2, attend="patches"),
    "decoder branch": lambda: joint("decoder", pooled=2, ffn=16, heads=2, layers=1),
    "pooled branch": lambda: joint("pooled"),
    "group branch": lambda: joint("group", groups=3, heads=2, ffn=16),
    "projected branch": lambda: joint("projected", classes="own", width=16, pooled=2, heads=2),
    "DeepLabV3": lambda: hosted("deeplabv3", STAGES, width=16, dilations=[1, 2, 3]),
    "UPerNet": lambda: hosted("upernet", STAGES, width=16, norm_stages=False),
    "encoder-only": lambda: hosted("encoder_only", VIT, blocks=1, width=8),
    "nearest": lambda: hosted("nearest", CNN),
    "MaskFormer": lambda: MapNetwork(mask_network("maskformer"), KAPPA, K).eval(),
    "Mask2Former, joint": lambda: JointNetwork(mask_network("mask2former", "projected"), KAPPA).eval(),
}  # fmt: skip


#: those of which both files are made in under three seconds
QUICK = ("gap, ResNet", "complete", "pooled branch")


def file_of(network: Exported, form: str, folder: Path) -> Callable[[Tensors], Tensors]:
    """What a network's file computes."""
    return files_of(network, [form], folder)[0]


def files_of(network: Exported, forms: Iterable[str], folder: Path) -> list[Callable[[Tensors], Tensors]]:
    """The same for several formats of one trace."""
    inputs = network.examples(TRACED, SIZE, torch.Generator().manual_seed(0))
    outputs, program = list(network(**inputs)), traced(network, inputs)
    files = [(FORMATS[form], folder / f"network{FORMATS[form].suffix}") for form in forms]
    for form, file in files:
        form.write(program, file, outputs)
    return [form.load(file) for form, file in files]


# Files


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]
)
def test_both_formats_compute_what_the_network_does_in_batches_of_one_to_three(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "BATCHES", (1, 2, 3))
    network = NETWORKS[name]()
    for run in files_of(network, FORMATS, tmp_path):
        found = agreement(network, run, SIZE)
        assert max(found.differences.values()) < 1e-4
        assert min(found.equal.values()) > 0.99


def test_labels_of_equal_scores_are_ranked_in_order_of_id(tmp_path: Path) -> None:
    """Scores that half precision cannot tell apart are equal; an unstable sort shows from some twenty labels on."""
    network = classifier(CNN, classes=60, preset="gap")
    step, linear = 1e-6, network.network.head.linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([1.0, 2.0, 0.5]).repeat(20) + step * torch.arange(60))
    network.kappa = 60
    by_score = [*range(1, 60, 3), *range(0, 60, 3), *range(2, 60, 3)]
    for run in files_of(network, FORMATS, tmp_path):
        found = run({"image": images(3)})
        assert found["labels"].tolist() == [by_score] * 3
        assert torch.equal(found["scores"], found["scores"].half().float())
        assert found["scores"].unique().tolist() == [float(torch.tensor(x).sigmoid().half()) for x in (0.5, 1.0, 2.0)]


@pytest.mark.parametrize(
    ("equation", "axes", "wanted"),
    [
        ("bkd,kd->bk", (3, 2), "bkd,kd->bk"),
        ("...kd,...kd->...k", (3, 2), "Akd,kd->Ak"),
        ("...kd,...kd->...k", (3, 4), "Bkd,ABkd->ABk"),
        ("...A,A->...", (2, 1), "BA,A->B"),
    ],
)
def test_axes_of_an_ellipsis_get_letters_that_are_free(equation: str, axes: tuple[int, ...], wanted: str) -> None:
    assert without_ellipsis(equation, axes) == wanted
    sizes = dict(zip("bkdAB", (2, 3, 4, 5, 6), strict=True))
    tensors = [torch.rand([sizes[letter] for letter in letters]) for letters in wanted.partition("->")[0].split(",")]
    torch.testing.assert_close(torch.einsum(wanted, *tensors), torch.einsum(equation, *tensors))


def test_weights_too_large_for_one_onnx_file_get_a_second_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ONE_FILE", 1000)
    network = classifier(CNN, preset="gap")
    found = agreement(network, file_of(network, "onnx", tmp_path), SIZE)
    assert max(found.differences.values()) < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "network.onnx.data"]


# What is exported is what the project itself computes


def test_a_ranking_is_the_one_that_a_cache_stores() -> None:
    network, pictures = classifier(CNN, **SMALL), images(3)
    normalised = Normalisation(network.network.backbone.mean, network.network.backbone.std)
    wanted = top_kappa(label_scores(network.network(normalised(pictures))), KAPPA)
    found = network(pictures)
    assert torch.equal(found["labels"], wanted.labels)
    assert torch.equal(found["scores"], wanted.scores)


def test_label_maps_are_those_of_images_segmented_at_their_own_size() -> None:
    labels = torch.tensor([[4, 0, 6], [5, 2, IGNORE]])
    given = [Ranking(row.clamp_min(0)[None], torch.zeros(1, KAPPA), (row >= 0)[None]) for row in labels]
    for network, rankings, inputs in (
        (segmenter(), given, {"labels": labels}),
        (segmenter(source=SourceConfig("complete", test="cache")), given, {"labels": labels}),
        (MapNetwork(mask_network("maskformer"), KAPPA, K), given, {"labels": labels}),
        (complete(), [complete_ranking(1, K)] * 2, {}),
        (joint("encoder", pooled=2), [OwnRanking(KAPPA)] * 2, {}),
    ):
        found = network(images(2), **inputs)
        plan = InferenceConfig(short_side=None)
        for index, (image, ranking) in enumerate(zip(images(2), rankings, strict=True)):
            wanted = segment_image(network.network, image, ranking, plan, Placement())
            equal = (found["label_map"][index] == wanted.label_map).double().mean()
            assert equal > 0.999  # one image alone and in a batch: sums in another order
            if "labels" in found:
                assert torch.equal(found["labels"][index], wanted.ranking.labels[0])


def test_ranks_without_a_label_get_no_pixel_and_change_nothing() -> None:
    network = segmenter()
    some = network(images(1), labels=torch.tensor([[5, 2, IGNORE]]))
    two = network(images(1), labels=torch.tensor([[5, 2]]))
    assert set(some["label_map"].unique().tolist()) == {2, 5}
    assert torch.equal(some["label_map"], two["label_map"])
    assert torch.allclose(some["rank_logits"][:, :2], two["rank_logits"], atol=1e-5)


def test_resizing_by_pillow_gives_what_the_project_gives_to_one_grey_level() -> None:
    """The document's example resizes with Pillow."""
    picture = images(1, (61, 83))[0]
    small = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BILINEAR)
    wanted = square(32)(picture).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(small).astype(int) - wanted).max() <= 1


# The comparison


class Changed:
    """A file that computes what the network does, and then something else."""

    def __init__(self, network: Exported, change: Callable[[Tensors], object]) -> None:
        self.network, self.change = network, change

    def __call__(self, inputs: Tensors) -> Tensors:
        found = self.network(**inputs)
        self.change(found)
        return found


def test_the_network_itself_agrees_with_itself() -> None:
    for network in (classifier(CNN, preset="gap"), segmenter(), complete(), joint("pooled")):
        found = agreement(network, Changed(network, lambda outputs: None), SIZE)
        assert set(found.differences.values()) == {0.0}
        assert set(found.equal.values()) == {1.0}


def test_a_single_kept_label_whose_logits_are_all_zero_agrees() -> None:
    model = segmentation()
    with torch.no_grad():
        model.host.rank_scale.bias.zero_()
    network = MapNetwork(model, 1, K).eval()
    assert not network(images(1), labels=torch.tensor([[3]]))["rank_logits"].any()
    found = agreement(network, Changed(network, lambda outputs: None), SIZE)
    assert (found.differences, found.equal) == ({"rank_logits": 0.0, "label_map": 0.0}, {"label_map": 1.0})


def swapped(outputs: Tensors) -> None:
    outputs["labels"] = outputs["labels"].flip(1)


def another_label(outputs: Tensors) -> None:
    outputs["label_map"][0, 0, 0] = (outputs["label_map"][0, 0, 0] + 1) % K


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("label_logits", lambda outputs: outputs["label_logits"].mul_(1.001)),
        ("scores", lambda outputs: outputs["scores"].sub_(0.001)),
        ("labels", swapped),
        ("rank_logits", lambda outputs: outputs["rank_logits"][0, 0].add_(0.01)),
        ("rank_logits", lambda outputs: outputs["rank_logits"].fill_(torch.nan)),
        ("class_logits", lambda outputs: outputs["class_logits"][0, 0, -1].add_(0.01)),
        ("mask_logits", lambda outputs: outputs["mask_logits"][0, 0].add_(0.01)),
        ("label_map", another_label),
    ],
)
def test_another_result_is_refused(name: str, change: Callable[[Tensors], object]) -> None:
    network: Exported = complete() if name in ("rank_logits", "label_map") else classifier(CNN, preset="gap")
    if name in ("class_logits", "mask_logits"):
        network = MapNetwork(mask_network("maskformer"), KAPPA, K).eval()
    with pytest.raises(UserError, match=f"^{name} of the exported network differ by"):
        agreement(network, Changed(network, change), SIZE)


def test_where_logits_tie_either_label_may_win() -> None:
    network = complete()
    with torch.no_grad():
        network.network.host.cls_emb[1:] = network.network.host.cls_emb[0]
        network.network.host.rank_scale.weight.fill_(1.0)
        network.network.host.rank_scale.bias.zero_()
    found = agreement(network, Changed(network, another_label), SIZE)
    assert 0.99 < found.equal["label_map"] < 1.0
    assert found.differences["label_map"] < 1e-4


def test_a_host_that_reads_the_scores_of_its_ranking_is_refused() -> None:
    """Nobody gives them to an exported segmenter."""

    class ByScore(nn.Module):
        cell = 8

        def forward(self, seen: Seen, ranking: Ranking) -> Prediction:
            return Prediction(ranking.scores[..., None, None] * seen.features.mean(1, keepdim=True))

    network = segmenter()
    network.network.host = ByScore()
    with pytest.raises(UserError, match=r"^rank_logits of the exported network differ by nan"):
        agreement(network, Changed(network, lambda outputs: None), SIZE)


def test_a_joint_network_that_ranks_every_image_in_another_way_cannot_be_compared() -> None:
    network = joint("pooled")
    with torch.no_grad():
        network.network.branch.linear.linear.weight.zero_()
        network.network.branch.linear.linear.bias.zero_()  # so that every order of the labels is right
    with pytest.raises(UserError, match="ranks all test images in another way"):
        agreement(network, Changed(network, swapped), SIZE)
