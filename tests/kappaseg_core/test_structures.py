from __future__ import annotations

import torch
from torch.utils._pytree import tree_leaves

from kappaseg_core.structures import Batch

B, C, K, H, W = 2, 6, 5, 3, 4


def test_a_batch_is_as_long_as_its_names() -> None:
    assert len(Batch(("a", "b"))) == 2


def test_a_batch_moves_with_all_that_it_holds() -> None:
    batch = Batch(
        ("a", "b"),
        image=torch.zeros(B, 3, H, W),
        features=(torch.zeros(B, C, 2, 4), torch.zeros(B, C, 1, 2)),
        mask=torch.zeros(B, H, W, dtype=torch.int64),
        labels=torch.zeros(B, K),
    )
    moved = batch.to("meta")
    tensors = [value for value in tree_leaves(vars(moved)) if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(tensor.is_meta for tensor in tensors)
    assert moved.image_id == batch.image_id and batch.image is not None and not batch.image.is_meta


def test_what_a_batch_does_not_hold_stays_away() -> None:
    moved = Batch(("a",), features=(torch.zeros(1, C, 1, 2),)).to("meta")
    assert moved.image is None and moved.mask is None and moved.labels is None
