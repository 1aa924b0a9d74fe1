"""Networks as they leave the project: from images as files hold them to rankings and label maps.

Each is a module with tensors in and a dictionary of tensors out, and with nothing that depends on their values, so that
it can be traced. κ, H and W are fixed; B is free.

Legend: B images, K all labels, κ kept labels, H W pixels, h w cells, Q queries of a mask network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.ranking import IGNORE, OwnRanking, Ranking, complete_ranking, to_label_space, top_kappa
from stage1_multilabel.scoring import label_scores
from stage2_segmentation.model import SegmentationModel
from stage2_segmentation.pixels import to_pixels
from stage2_segmentation.structures import AnyPrediction, QueryPrediction

Tensors = dict[str, Tensor]


class Normalised(nn.Module):
    """Images u8 [B, 3, H, W], RGB → f32, (x / 255 - mean) / std as the backbone's weights want them.

    Inside the exported network, so that nobody has to do it again, and from u8 as image files are: a network that took
    f32 would accept 0..255 for 0..1 in silence.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(backbone.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(backbone.std)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        return (image.float() / 255 - self.mean) / self.std


class Exported(nn.Module):
    """What the exported networks have in common.

    kind: what it is called, in a word.   kappa: κ.   score_step: by how much the scores of equal images may differ,
    beside what the order of sums does.
    """

    kind: str
    score_step = 0.0

    def __init__(self, network: Any, kappa: int) -> None:
        super().__init__()
        self.network, self.kappa, self.normalised = network, kappa, Normalised(network.backbone)

    def examples(self, images: int, size: tuple[int, int], generator: torch.Generator) -> Tensors:
        """Inputs at random, by name: to trace with and to compare with."""
        return {"image": pictures(images, size, generator)}


class RankingNetwork(Exported):
    """A classifier. image u8 [B, 3, H, W] → labels i64 [B, κ], scores f32 [B, κ], label_logits f32 [B, K].

    The ranking is the one that a label cache would store.
    """

    kind = "classifier"
    score_step = 2.0**-11  # they are rounded to half precision: its widest step below 1

    def forward(self, image: Tensor) -> Tensors:
        logits = self.network(self.normalised(image))
        ranking = top_kappa(self.scores(logits), self.kappa)
        return {"labels": ranking.labels, "scores": ranking.scores, "label_logits": logits}

    def scores(self, label_logits: Tensor) -> Tensor:
        """f32 [B, K], by which labels are ranked."""
        return label_scores(label_logits)


class MapNetwork(Exported):
    """A segmentation network among given labels.

    image u8 [B, 3, H, W], labels i64 [B, κ] → label_map i32 [B, H, W] and the logits that it was read from, see
    `logits_of`. The labels are ids in the order of their ranks; IGNORE marks ranks that hold none, which come last.
    """

    kind = "segmenter"

    def __init__(self, network: SegmentationModel, kappa: int, num_classes: int) -> None:
        super().__init__(network, kappa)
        self.num_classes = num_classes

    def forward(self, image: Tensor, labels: Tensor) -> Tensors:
        ranking = given_ranking(labels)
        return mapped(self.network(self.normalised(image), ranking), ranking, image, self.network.cell)

    def kept(self, inputs: Tensors, outputs: Tensors) -> Tensor:
        """Ids of the ranks that there are logits of, i64 [B, κ]; IGNORE where a rank holds none."""
        return inputs["labels"]

    def examples(self, images: int, size: tuple[int, int], generator: torch.Generator) -> Tensors:
        """The last image has labels for half of the ranks only."""
        labels = torch.rand(images, self.num_classes, generator=generator).argsort(1)[:, : self.kappa]
        labels[-1, (self.kappa + 1) // 2 :] = IGNORE
        return {**super().examples(images, size, generator), "labels": labels}


class CompleteMapNetwork(Exported):
    """The plain baseline, among all K labels in order of id: image → label_map and logits, with κ = K."""

    kind = "segmenter"

    def forward(self, image: Tensor) -> Tensors:
        ranking = complete_ranking(image.shape[0], self.kappa, image.device)
        seen = self.network.look(self.normalised(image))
        # not network.segment, which would pick those of the ranking among all K
        return mapped(self.network.host(seen, ranking), ranking, image, self.network.cell)

    def kept(self, inputs: Tensors, outputs: Tensors) -> Tensor:
        return complete_ranking(len(inputs["image"]), self.kappa).labels


class JointNetwork(Exported):
    """A network that ranks for itself: image → label_map and logits, labels, scores, label_logits f32 [B, K]."""

    kind = "joint"

    def forward(self, image: Tensor) -> Tensors:
        seen = self.network.look(self.normalised(image))
        ranking = OwnRanking(self.kappa).of(self.scores(seen.label_logits))
        return {
            **mapped(self.network.segment(seen, ranking), ranking, image, self.network.cell),
            "labels": ranking.labels, "scores": ranking.scores, "label_logits": seen.label_logits,
        }  # fmt: skip

    def scores(self, label_logits: Tensor) -> Tensor:
        return label_logits.float().sigmoid()

    def kept(self, inputs: Tensors, outputs: Tensors) -> Tensor:
        return outputs["labels"]


def pictures(images: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """u8 [B, 3, H, W]: 6 × 6 fields of random colours, and noise. Of noise alone all cells would look the same."""
    colours = torch.randint(192, (images, 3, 6, 6), generator=generator).float()
    fields = F.interpolate(colours, size, mode="nearest").byte()
    return fields + torch.randint(64, (images, 3, *size), dtype=torch.uint8, generator=generator)


def given_ranking(labels: Tensor) -> Ranking:
    """Labels i64 [B, κ], IGNORE for ranks without one, as a ranking.

    Its scores are NaN: nobody gives them, and a host that reads them must not pass the check.
    """
    valid = labels != IGNORE
    return Ranking(labels * valid, torch.full_like(labels, torch.nan, dtype=torch.float32), valid)


def mapped(prediction: AnyPrediction, ranking: Ranking, image: Tensor, cell: int) -> Tensors:
    """label_map: the id of each pixel's best rank, i32 [B, H, W]; and the logits that it was read from."""
    logits = logits_of(prediction)
    scores = rank_scores(logits, (image.shape[-2], image.shape[-1]), cell)
    return {"label_map": to_label_space(scores.argmax(1), ranking).int(), **logits}


def logits_of(prediction: AnyPrediction) -> Tensors:
    """rank_logits f32 [B, κ, h, w]; those of a mask network are class_logits f32 [B, Q, κ + 1] and mask_logits f32
    [B, Q, h, w]."""
    if isinstance(prediction, QueryPrediction):
        return {"class_logits": prediction.class_logits, "mask_logits": prediction.mask_logits}
    return {"rank_logits": prediction.rank_logits}


def rank_scores(outputs: Tensors, size: tuple[int, int], cell: int) -> Tensor:
    """The scores f32 [B, κ, H, W] of ranks at pixels, from the logits among the outputs of a network.

    Those of queries as stage2_segmentation/query_maps.py has them, here with axes of Q and κ at full size: a program
    that is traced cannot go strip by strip.
    """
    if "mask_logits" not in outputs:
        return to_pixels(outputs["rank_logits"], size, cell)
    classes = outputs["class_logits"].softmax(2)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", classes, to_pixels(outputs["mask_logits"], size, cell).sigmoid())
