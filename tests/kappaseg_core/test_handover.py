"""What loaders hand over is small, and becomes what tasks are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kappaseg_core.handover import Handover, Normalisation, View, collate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LOOK = Normalisation(MEAN, STD)


def pixels(seed: int, side: int = 9) -> Tensor:
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_normalising_is_by_mean_and_deviation_of_each_channel() -> None:
    every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    wanted = (torch.arange(256) / 255 - torch.tensor(MEAN)[:, None]) / torch.tensor(STD)[:, None]
    torch.testing.assert_close(LOOK(every)[:, 0], wanted, rtol=0, atol=1e-6)


def test_a_batch_is_normalised_as_its_images_are_alone() -> None:
    images = torch.stack([pixels(seed) for seed in range(4)])
    assert torch.equal(LOOK(images), torch.stack([LOOK(image) for image in images]))


def test_views_become_a_batch_of_normalised_images_with_their_own_blanks() -> None:
    views = [
        View(pixels(0), LOOK, ((0, 0, 2, 3),)),
        View(pixels(1), LOOK),
        View(pixels(2), LOOK, ((8, 0, 1, 9), (0, 7, 9, 2))),
    ]
    masks = [np.full((9, 9), label, np.int16) for label in (-1, 0, 300)]
    batch = collate(list(zip(views, masks, "abc", strict=True)), target="mask").batch("cpu", progress=0.5)
    assert batch.image is not None and batch.mask is not None
    assert (batch.image_id, batch.labels, batch.features, batch.progress) == (("a", "b", "c"), None, None, 0.5)
    assert batch.image.dtype == torch.float32 and batch.mask.dtype == torch.int64
    assert batch.mask[:, 0, 0].tolist() == [-1, 0, 300]
    for image, view in zip(batch.image, views, strict=True):
        assert torch.equal(image, view.normalised())
    assert (batch.image == 0).flatten(1).sum(1).tolist() == [3 * 6, 0, 3 * (9 + 18 - 2)]


def test_features_and_labels_pass_as_they_are() -> None:
    maps = [(torch.full((2, 1, 1), n / 3), torch.full((1, 2, 3), n / 7)) for n in range(2)]
    samples = [(maps[n], torch.tensor([n, 1 - n], dtype=torch.uint8), "ab"[n]) for n in range(2)]
    batch = collate(samples, target="labels").batch("cpu")
    assert batch.image is None and batch.mask is None
    assert batch.features is not None
    assert all(torch.equal(one[n], maps[n][level]) for level, one in enumerate(batch.features) for n in range(2))
    assert batch.labels is not None and batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [[0, 1], [1, 0]]


def test_a_loader_hands_over_a_quarter_of_the_bytes() -> None:
    handed = collate([(View(pixels(0, 32), LOOK), np.zeros((32, 32), np.int16), "a")], target="mask")
    batch = handed.batch("cpu")
    assert size(batch.image) == 4 * size(handed.pixels)
    assert size(batch.mask) == 4 * size(handed.mask)


def size(tensor: Tensor | None) -> int:
    assert tensor is not None
    return tensor.element_size() * tensor.numel()


@pytest.mark.gpu
def test_on_a_gpu_images_are_normalised_to_the_same_bits() -> None:
    handed = collate(
        [(View(pixels(seed), LOOK, ((1, 2, 3, 4),)), np.zeros((9, 9)), "a") for seed in range(3)], target="mask"
    )
    there, here = handed.pin_memory().batch("cuda").image, handed.batch("cpu").image
    assert there is not None and here is not None
    assert torch.equal(there.cpu(), here)


def test_pinning_reaches_every_tensor_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1)  # which needs a GPU
    handed = Handover(("a",), pixels(0)[None], LOOK, ((),), mask=torch.zeros(1, 2, 2, dtype=torch.int16))
    pinned = handed.pin_memory()
    assert pinned.pixels is not None and torch.equal(pinned.pixels, pixels(0)[None] + 1)
    assert pinned.mask is not None and pinned.mask.unique().tolist() == [1]
    assert (pinned.image_id, pinned.normalise, pinned.blank) == (handed.image_id, LOOK, ((),))
