"""What the numbers in mask files mean: a table from mask value to class id, IGNORE or nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE

#: Values that a 16-bit mask can hold.
VALUES = 65536

#: Table entry of values that mean nothing (IGNORE is taken).
UNKNOWN = -2


def value_table(ignore: int | None, id_map: Mapping[int, int], class_names: tuple[str, ...]) -> np.ndarray:
    """Mask value → class id, IGNORE or UNKNOWN, i32 [65536]. Raises UserError where a value would mean two things."""
    num_classes = len(class_names)
    table = np.full(VALUES, UNKNOWN, dtype=np.int32)
    if not id_map:
        table[:num_classes] = np.arange(num_classes)
    for value, label in id_map.items():
        if not IGNORE <= label < num_classes:
            raise UserError(
                f"data.options.id_map gives class {label} to mask value {value}, wanted 0..{num_classes - 1} "
                f"or {IGNORE} for no label; correct the map or classes.txt"
            )
        table[value] = label
    if ignore is None:
        return table
    if table[ignore] >= 0:
        raise UserError(
            f"data.options.ignore = {ignore} is also class {class_names[table[ignore]]!r} (K = {num_classes}); "
            "set it to the value your masks use for no label (often 65535 in 16-bit masks), or to null"
        )
    table[ignore] = IGNORE
    return table


def describe_unknown(counts: Mapping[int, int], ignore: int | None, id_map: Mapping[int, int], num_classes: int) -> str:
    """Values that mean nothing (value → pixels), what would mean something, and the settings to change, in words."""
    named = [f"{value} ({pixels} pixel{'s' * (pixels > 1)})" for value, pixels in list(counts.items())[:5]]
    more = f" and {len(counts) - 5} more values" if len(counts) > 5 else ""
    wanted = "in data.options.id_map" if id_map else f"a class id (K = {num_classes}: 0..{num_classes - 1})"
    ignored = "there is no ignore value" if ignore is None else f"the ignore value is {ignore}"
    return (
        f"value {', '.join(named)}{more}, not {wanted}, and {ignored}; set data.options.ignore or data.options.id_map, "
        "or correct the mask"
    )
