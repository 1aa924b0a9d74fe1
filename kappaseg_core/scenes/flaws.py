"""What can be wrong with one scene, by kind, so that `kappaseg data check` can count the kinds."""

from __future__ import annotations

from collections.abc import Mapping

from kappaseg_core.errors import UserError


class SceneFlaw(UserError):
    """A scene that cannot be used. A plain UserError about a scene counts as an unreadable file."""

    kind = "unreadable file"


class MissingMask(SceneFlaw):
    """An image of a split without a label map."""

    kind = "image without a mask"


class MissingInstances(SceneFlaw):
    """An image of a split without an instance map, where the set has them."""

    kind = "image without an instance map"


class MisplacedObject(SceneFlaw):
    """An object where there is no thing, or that lies on several."""

    kind = "object that is not of one thing"


class SizesDiffer(SceneFlaw):
    """A label map that is not as large as its image."""

    kind = "mask and image of different size"


class UnknownValues(SceneFlaw):
    """A mask with values that mean nothing. counts: value → pixels."""

    kind = "mask value outside the vocabulary"

    def __init__(self, line: str, counts: Mapping[int, int] | None = None) -> None:
        super().__init__(line)
        self.counts = dict(counts or {})
