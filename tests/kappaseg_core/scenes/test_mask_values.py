"""What mask values mean, against a table made one value at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from kappaseg_core.scenes.mask_values import UNKNOWN, VALUES, describe_unknown, value_table


@given(
    num_classes=st.integers(1, 400),
    ignore=st.none() | st.integers(0, 500),
    id_map=st.dictionaries(st.integers(0, 500), st.integers(-1, 399), max_size=6),
)
def test_a_value_means_its_class_the_ignore_value_nothing_and_all_others_are_unknown(
    num_classes: int, ignore: int | None, id_map: dict[int, int]
) -> None:
    names = tuple(map(str, range(num_classes)))
    meaning = id_map or {value: value for value in range(num_classes)}
    is_bad = any(label >= num_classes for label in meaning.values()) or (
        ignore is not None and meaning.get(ignore, IGNORE) != IGNORE
    )
    if is_bad:
        with pytest.raises(UserError, match=r"data\.options\."):
            value_table(ignore, id_map, names)
        return
    table = value_table(ignore, id_map, names)
    expected = [IGNORE if value == ignore else meaning.get(value, UNKNOWN) for value in range(VALUES)]
    assert table.tolist() == expected


def test_unknown_values_are_described_by_the_first_five_and_what_to_set() -> None:
    text = describe_unknown({9: 1, 10: 2, 11: 3, 12: 4, 13: 5, 14: 6}, None, {}, 5)
    assert text.startswith("value 9 (1 pixel), 10 (2 pixels), 11")
    assert "13 (5 pixels) and 1 more values" in text
    assert "K = 5: 0..4" in text and "there is no ignore value" in text and "set data.options.ignore" in text
