"""A ranking of labels, and the way between label ids and ranks.

Legend: B images, K all labels, κ kept labels, H W pixels.

This is the whole of label selection (Sec. 3.2, He et al., "RankSeg", ECCV 2022): sort the labels of an image by
score, keep the first κ, classify pixels among those. Nothing here, and nothing that stands on it, holds a K-sized
channel axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: "This pixel has no label." The only value of that meaning in the project; scene sets convert theirs to it.
IGNORE = -1

#: Logit of a padding rank. Its softmax is exactly 0 in every precision, and unlike -inf it can be interpolated
#: (0 · -inf is NaN) and does not make a NaN of an image that has no label at all.
PADDING_LOGIT = -1e4


@dataclass(frozen=True)
class Ranking:
    """The κ labels kept for each image, most probable first.

    labels: i64 [B, κ], ids in 0..K-1, no id twice among an image's valid ranks.
    scores: f32 [B, κ], in [0, 1], descending over the valid ranks.
    valid:  bool [B, κ]; False marks padding (an image with fewer than κ labels). Valid ranks come first. Padding has
            label 0 and score 0, receives no pixels, and must not influence the valid ranks.
    """

    labels: Tensor
    scores: Tensor
    valid: Tensor

    @property
    def kappa(self) -> int:
        return self.labels.shape[1]

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, images: slice) -> Ranking:
        """The rankings of some of the images."""
        return Ranking(self.labels[images], self.scores[images], self.valid[images])

    def to(self, device: torch.device | str) -> Ranking:
        return Ranking(self.labels.to(device), self.scores.to(device), self.valid.to(device))

    def top(self, kappa: int) -> Ranking:
        """The first `kappa` ranks (all of them where there are fewer)."""
        return Ranking(self.labels[:, :kappa], self.scores[:, :kappa], self.valid[:, :kappa])


def top_kappa(scores: Tensor, kappa: int) -> Ranking:
    """The κ highest of scores f32 [B, K], descending; equal scores in order of label id."""
    ordered, labels = torch.sort(scores, dim=1, descending=True, stable=True)
    labels, ordered = labels[:, :kappa], ordered[:, :kappa]
    return Ranking(labels, ordered.float(), torch.ones_like(labels, dtype=torch.bool))


@dataclass(frozen=True)
class OwnRanking:
    """In the place of a Ranking: the network ranks the labels itself, by its label branch, and keeps the best κ.

    keep: what is left of that ranking; None = all of it.
    """

    kappa: int
    keep: Callable[[Ranking], Ranking] | None = None

    def of(self, scores: Tensor) -> Ranking:
        """The ranking of scores f32 [B, K]."""
        best = top_kappa(scores, self.kappa)
        return best if self.keep is None else self.keep(best)


def complete_ranking(images: int, num_classes: int, device: torch.device | str = "cpu") -> Ranking:
    """All K labels in order of id, as if κ = K and nothing were known: the plain baseline."""
    labels = torch.arange(num_classes, device=device).expand(images, -1)
    return Ranking(labels, torch.ones(labels.shape, device=device), torch.ones_like(labels, dtype=torch.bool))


def presence(mask: Tensor, num_classes: int) -> Tensor:
    """Which labels have at least one pixel: mask i64 [B, H, W] (IGNORE allowed) → bool [B, K]."""
    flat = mask.flatten(1) + 1  # IGNORE falls into column 0
    found = torch.zeros(len(mask), num_classes + 1, dtype=torch.bool, device=mask.device)
    return found.scatter_(1, flat, True)[:, 1:]


def oracle_ranking(present: Tensor) -> Ranking:
    """The labels that are there, in ascending id, padded to the longest list of the batch (at least one rank).

    present: bool [B, K]. Ascending order is that of the released ground-truth head (rank means position there, not
    probability).
    """
    count = present.sum(1)
    kappa = max(1, int(count.max()))
    labels = torch.sort(present.byte(), dim=1, descending=True, stable=True).indices[:, :kappa]
    valid = torch.arange(kappa, device=present.device) < count[:, None]
    return Ranking(labels * valid, valid.float(), valid)


def rank_lookup(ranking: Ranking, num_classes: int) -> Tensor:
    """Label id → rank, as a table i64 [B, K]; IGNORE for labels that were not kept."""
    table = torch.full((len(ranking), num_classes + 1), IGNORE, dtype=torch.int64, device=ranking.labels.device)
    ranks = torch.arange(ranking.kappa, device=table.device).expand_as(ranking.labels)
    column = torch.where(ranking.valid, ranking.labels, num_classes)  # padding writes into a column that is cut off
    return table.scatter_(1, column, ranks)[:, :num_classes]


def to_rank_space(mask: Tensor, ranking: Ranking, num_classes: int) -> Tensor:
    """Label ids → ranks for every pixel: mask i64 [B, H, W] → i64 [B, H, W]; IGNORE stays, unselected becomes IGNORE.

    One table of size K per image and one gather. (The released code compares the label map with κ copies of itself.)
    """
    table = rank_lookup(ranking, num_classes)
    table = torch.cat([table, table.new_full((len(table), 1), IGNORE)], dim=1)  # index -1 = IGNORE
    index = torch.where(mask == IGNORE, num_classes, mask)
    return table.gather(1, index.flatten(1)).view_as(mask)


def to_label_space(rank_map: Tensor, ranking: Ranking) -> Tensor:
    """Ranks → label ids for every pixel: i64 [B, H, W] of ranks 0..κ-1 → i64 [B, H, W] of label ids."""
    return ranking.labels.gather(1, rank_map.flatten(1)).view_as(rank_map)


def force_missed(ranking: Ranking, present: Tensor) -> Ranking:
    """Put present labels that the ranking missed into its last ranks (training only; ours, not the paper's).

    The lowest ranks that hold absent labels make room; the rest keep their order. Where an image has more labels than
    κ, the present labels already kept stay and the missed ones enter by id while there is room.
    present: bool [B, K]. Forced labels get score 0.
    """
    labels, valid = ranking.labels, ranking.valid
    batch, kappa, num_classes = len(ranking), ranking.kappa, present.shape[1]
    kept = rank_lookup(ranking, num_classes) != IGNORE
    missed = present & ~kept
    hit = present.gather(1, labels) & valid
    free = ~hit  # ranks that may give way, padding included
    free_from_end = free.flip(1).cumsum(1).flip(1)  # 1 = the last free rank
    room = torch.minimum(missed.sum(1), free.sum(1))
    drop = free & (free_from_end <= room[:, None])

    order = torch.full((batch, num_classes + 1), kappa + num_classes, device=labels.device)
    ranks = torch.arange(kappa, device=labels.device).expand(batch, -1)
    order.scatter_(1, torch.where(drop | ~valid, num_classes, labels), ranks)
    order[:, num_classes] = kappa + num_classes
    order = order[:, :num_classes]
    enters = missed & (missed.cumsum(1) <= room[:, None])
    order = torch.where(enters, kappa + torch.arange(num_classes, device=labels.device), order)

    position, new_labels = torch.sort(order, dim=1, stable=True)
    position, new_labels = position[:, :kappa], new_labels[:, :kappa]
    new_valid = position < kappa + num_classes
    score_of = torch.zeros(batch, num_classes + 1, device=labels.device)
    score_of.scatter_(1, torch.where(valid, labels, num_classes), ranking.scores)
    was_kept = position < kappa
    new_scores = torch.where(was_kept, score_of[:, :num_classes].gather(1, new_labels), 0.0)
    return Ranking(new_labels * new_valid, new_scores, new_valid)


def mix_missed(ranking: Ranking, present: Tensor) -> Ranking:
    """Put present labels that the ranking missed in the place of absent ones at random ranks (training only; ours).

    Where they enter is drawn from torch's generator, so that a rank does not tell that its label is there, as the last
    ranks of `force_missed` do. A label that enters takes the score of the one that leaves; padding is used when no
    absent label is left. Where there is no room, the missed labels enter by id.
    present: bool [B, K].
    """
    labels, valid, num_classes = ranking.labels, ranking.valid, present.shape[1]
    missed = present & (rank_lookup(ranking, num_classes) == IGNORE)
    free = ~(present.gather(1, labels) & valid)
    room = torch.minimum(missed.sum(1), free.sum(1))[:, None]
    turn = torch.rand(labels.shape, device=labels.device)
    turn = torch.where(valid, turn, 1 + torch.arange(ranking.kappa, device=labels.device))  # padding last, in order
    turn = torch.where(free, turn, torch.inf)
    enters_here = free & (turn.argsort(dim=1).argsort(dim=1) < room)
    by_id = torch.where(missed, torch.arange(num_classes, device=labels.device), num_classes).sort(dim=1).values
    which = (enters_here.cumsum(1) - 1).clamp(0, num_classes - 1)
    return Ranking(torch.where(enters_here, by_id.gather(1, which), labels), ranking.scores, valid | enters_here)
