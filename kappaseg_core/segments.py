"""An image cut into segments, as panoptic segmentation has it (Kirillov et al., "Panoptic Segmentation", CVPR 2019).

Legend: H W pixels, K labels, S segments of an image.

A segment of a thing is one object; all pixels of a kind of stuff are one segment. Whether a segment is a thing is a
property of its label, and stands once per data set: `things`, bool [K].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kappaseg_core.ranking import IGNORE
from kappaseg_core.structures import Scene

#: "This pixel is in no segment." In files and in maps of segments.
VOID = 0

#: Number of a pixel of objects that were not told apart (a crowd), in instance maps; objects count from 1, 0 = none.
CROWD = -1


@dataclass(frozen=True)
class Segments:
    """The segments of an image.

    map: i32 [H, W]; n + 1 where a pixel is in segment n = 0..S-1, or VOID.
    labels: i64 [S], the label of each segment.   crowd: bool [S], whether it is objects that were not told apart.
    """

    map: Tensor
    labels: Tensor
    crowd: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Segments:
        return Segments(self.map.to(device), self.labels.to(device), self.crowd.to(device))

    def areas(self) -> Tensor:
        """Pixels of each segment, i64 [S]."""
        return torch.bincount(self.map.flatten(), minlength=len(self) + 1)[1:]

    def label_map(self) -> Tensor:
        """The label of each pixel, i64 [H, W]; IGNORE where it is in no segment."""
        return torch.cat([self.labels.new_tensor([IGNORE]), self.labels])[self.map.long()]


def segments_of(mask: Tensor, instances: Tensor, things: Tensor) -> Segments:
    """The segments of a scene or of a crop of one, ordered by label and by number, a crowd before the objects.

    mask: i32 or i64 [H, W], label ids or IGNORE.   instances: i32 or i64 [H, W], numbers of objects from 1, 0 for none,
    CROWD.   things: bool [K].
    Label and number together make an object, so a number may be used again for another label. Of stuff numbers do not
    count. A pixel of a thing that is in no object is VOID, as one without a label: nobody said which object it is.
    """
    labels, numbers = mask.long(), instances.long()
    thing = things[labels.clamp(min=0)]
    numbers = torch.where(thing, numbers, 0)
    known = (labels != IGNORE) & ~(thing & (numbers == 0))
    span = int(numbers.max()) + 2  # numbers from CROWD = -1 on
    keys, index = torch.where(known, labels * span + numbers + 2, VOID).unique(return_inverse=True)
    voids = int(keys[0] == VOID)
    keys = keys[voids:] - 1
    return Segments((index + (1 - voids)).int(), keys // span, keys % span == 0)


def scene_segments(scene: Scene, things: Sequence[bool]) -> Segments:
    """The true segments of a scene of a set that tells objects apart.   things: of its K labels."""
    assert scene.instances is not None  # since the set has things
    return segments_of(torch.from_numpy(scene.mask), torch.from_numpy(scene.instances), torch.tensor(things))
