"""Label map and instance map → segments."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kappaseg_core.ranking import IGNORE
from kappaseg_core.segments import CROWD, VOID, segments_of

THINGS = torch.tensor([False, True, True])


def test_an_object_is_a_label_and_a_number_stuff_is_a_label_and_the_rest_is_void() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, IGNORE, 2, 2, 1]])
    instances = torch.tensor([[5, 7, 1, 4, 0], [0, 9, 1, CROWD, 4]])
    found = segments_of(mask, instances, THINGS)
    assert found.labels.tolist() == [0, 1, 1, 2, 2]
    assert found.crowd.tolist() == [False, False, False, True, False]
    assert found.map.tolist() == [[1, 1, 2, 3, VOID], [1, VOID, 5, 4, 3]]
    assert found.map.dtype == torch.int32 and found.areas().tolist() == [3, 1, 2, 1, 1]


def test_a_map_without_a_void_pixel_counts_from_one_and_an_empty_one_has_no_segment() -> None:
    full = segments_of(torch.zeros(2, 3), torch.zeros(2, 3), THINGS)
    assert full.map.tolist() == [[1] * 3] * 2 and full.labels.tolist() == [0]
    none = segments_of(torch.full((2, 3), IGNORE), torch.ones(2, 3), THINGS)
    assert none.map.tolist() == [[VOID] * 3] * 2 and len(none) == 0 and none.areas().tolist() == []


@given(st.integers(0, 10_000))
def test_labels_come_back_but_for_pixels_of_things_in_no_object(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.randint(IGNORE, 3, (5, 7), generator=draw)
    instances = torch.randint(CROWD, 4, (5, 7), generator=draw)
    unnumbered = THINGS[mask.clamp(min=0)] & (instances == 0)
    found = segments_of(mask, instances, THINGS)
    assert found.label_map().equal(torch.where(unnumbered, IGNORE, mask))
    assert found.map.max() <= len(found) and (found.areas() > 0).all()


@given(st.integers(0, 10_000))
def test_pixels_share_a_segment_where_they_share_label_and_number(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.randint(IGNORE, 3, (12,), generator=draw)
    instances = torch.randint(CROWD, 3, (12,), generator=draw)
    found = segments_of(mask[None], instances[None], THINGS).map[0]
    for i in range(12):
        for j in range(12):
            if found[i] != VOID and found[j] != VOID:
                one_object = bool(instances[i] == instances[j]) or not THINGS[mask[i]]
                assert bool(found[i] == found[j]) == (bool(mask[i] == mask[j]) and one_object)
