"""What a mask network learns from, where tensors have sizes and no values: for estimates of what its training needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from kappaseg_core.segments import Segments
from kappaseg_core.structures import Batch
from stage2_segmentation.mask_losses import Truth
from stage2_segmentation.query_loss import Pairs
from stage2_segmentation.task import SegmentTask


@contextmanager
def imagined_segments(count: int) -> Iterator[None]:
    """Inside, an image has so many segments, all kept, each matched with a query."""

    def segments(task: SegmentTask, batch: Batch) -> list[Segments]:
        assert batch.mask is not None
        labels = torch.zeros(count, dtype=torch.int64, device=batch.mask.device)
        return [Segments(mask.int(), labels, labels.bool()) for mask in batch.mask]

    def kept(found: Segments, labels: Tensor, valid: Tensor) -> Truth:
        numbers = torch.arange(1, count + 1, dtype=torch.int32, device=found.map.device)
        return Truth(found.map, numbers, found.labels)

    def assigned(costs: Sequence[Tensor]) -> Pairs:
        return [(torch.arange(min(cost.shape), device=cost.device),) * 2 for cost in costs]

    with ExitStack() as stack:
        stack.enter_context(patch.object(SegmentTask, "segments", segments))
        for name, given in (("kept_truth", kept), ("assigned", assigned), ("kept_shares", lambda *_: {})):
            stack.enter_context(patch(f"stage2_segmentation.query_loss.{name}", given))
        yield
