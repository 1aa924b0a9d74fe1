from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.placement import Placement
from kappaseg_core.ranking import top_kappa
from kappaseg_core.structures import Scene
from stage1_multilabel.classifier import Classifier
from stage1_multilabel.scoring import label_scores, scores_of

N, K, SIZE = 5, 4, 6


class Scenes:
    """Random images of different sizes; their masks must not be read."""

    class_names, split = tuple("abcd"), "val"
    image_ids = tuple(f"image {i}" for i in range(N))

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.images = [random.integers(0, 256, (3, 7 + i, 9 - i), dtype=np.uint8) for i in range(N)]

    def __len__(self) -> int:
        return N

    def image(self, index: int) -> np.ndarray[Any, Any]:
        return self.images[index]

    def __getitem__(self, index: int) -> Scene:
        raise AssertionError("ranking reads no masks")


class Pooling(nn.Module):
    """A backbone of one cell: mean and largest value of each channel."""

    mean, std, channels = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 6

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.amax((2, 3))], dim=1)[:, :, None, None]


@dataclass(frozen=True)
class Seat(Placement):
    """One of several workers, whose sums are not added up: each shows its own share."""

    def total(self, value: Tensor) -> Tensor:
        return value


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(Pooling(), nn.Sequential(nn.Flatten(), nn.Linear(6, K)), K)


@pytest.fixture
def scenes() -> Any:
    return Scenes()


def test_every_image_gets_its_scores_whatever_the_batch(model: Classifier, scenes: Any) -> None:
    rows = list(range(N))
    together = scores_of(model, scenes, rows, SIZE, Placement())
    assert together.shape == (N, K) and len(set(map(tuple, together.tolist()))) == N
    for batch_size in (1, 2, N):
        found = scores_of(model, scenes, rows, SIZE, Placement(), batch_size=batch_size)
        torch.testing.assert_close(found, together, rtol=1e-3, atol=0)  # one step of half precision
    torch.testing.assert_close(scores_of(model, scenes, [3, 0], SIZE, Placement()), together[[3, 0]], rtol=1e-3, atol=0)


def test_scores_are_those_of_the_normalised_image(model: Classifier, scenes: Any) -> None:
    scenes.images[0] = np.full((3, 5, 8), 102, np.uint8)  # 0.4 in every channel, whatever the resizing
    look = torch.tensor([(0.4 - 0.5) / 0.2, (0.4 - 0.4) / 0.3, (0.4 - 0.3) / 0.4]).view(1, 3, 1, 1)
    expected = model(look.expand(1, 3, 2, 2)).sigmoid()
    torch.testing.assert_close(scores_of(model, scenes, [0], SIZE, Placement()), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("world", [2, 3, N + 2])
def test_workers_share_the_images_without_overlap(model: Classifier, scenes: Any, world: int) -> None:
    whole = scores_of(model, scenes, list(range(N)), SIZE, Placement())
    shares = [scores_of(model, scenes, list(range(N)), SIZE, Seat(worker, world)) for worker in range(world)]
    assert sum((share > 0).all(1).long() for share in shares).tolist() == [1] * N
    torch.testing.assert_close(torch.stack(shares).sum(0), whole, rtol=1e-3, atol=0)


def test_scores_are_probabilities_that_half_precision_holds_exactly() -> None:
    logits = torch.tensor([[-60.0, -3.0, 0.0, 1.2345, 60.0]])
    scores = label_scores(logits)
    assert scores.dtype == torch.float32 and torch.equal(scores, scores.half().float())
    torch.testing.assert_close(scores, logits.sigmoid(), rtol=1e-3, atol=1e-7)
    assert scores[0, 0] == 0 and scores[0, 2] == 0.5 and scores[0, 4] == 1


def test_scores_that_half_precision_cannot_tell_apart_are_ranked_by_label() -> None:
    logits = torch.tensor([[1.0, 1.00001, 1.00002, 2.0]])
    assert logits.sigmoid().unique().numel() == 4
    assert top_kappa(label_scores(logits), 4).labels.tolist() == [[3, 0, 1, 2]]


def test_logits_of_low_precision_are_made_probabilities_in_single() -> None:
    logits = torch.tensor([[-7.0, 3.0]], dtype=torch.bfloat16)
    assert torch.equal(label_scores(logits), label_scores(logits.float()))
