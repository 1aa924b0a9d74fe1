"""Segmentation networks on a backbone. One module per host; adding a host is adding a file here.

    Options                                                   its settings, a dataclass
    wants(options) -> Wants                                   what it needs of the backbone; without it, one map
    build(options, *, num_classes, maps, kappa) -> nn.Module  maps: a MapShape for each map that it gets

The contract (tests/contracts/test_hosts.py): `host(seen, ranking) → Prediction`, see stage2_segmentation.structures.
`host.cell` is the side of a cell of its rank_logits in pixels. Padding ranks get PADDING_LOGIT and influence nothing.
The label ids reach the host through the rows of a class table alone: no tensor has a channel axis of K.

A mask network's host also has `decode(maps) → Decoded`, which runs before any label is kept (DecodesFirst), and gives a
QueryPrediction. A host that defines `loss(prediction, segments, ranking) → (loss, figures)` learns by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from kappaseg_core.backbones import MapShape, Wants
from kappaseg_core.config import build
from kappaseg_core.parts import kinds_of, part
from kappaseg_core.ranking import Ranking
from kappaseg_core.segments import Segments
from stage2_segmentation.structures import AnyPrediction, Decoded, QueryPrediction, Seen


class Host(Protocol):
    """What a host is to the network around it.   cell: side of a cell of its logits, in pixels."""

    cell: int

    def __call__(self, seen: Seen, ranking: Ranking) -> AnyPrediction: ...


@runtime_checkable
class DecodesFirst(Protocol):
    """What the host of a mask network is beside.

    seen_channels: of `Decoded.looked_at`.   labels_see_queries: whether that are queries, and no grid of cells.
    """

    seen_channels: int
    labels_see_queries: bool

    def decode(self, maps: Sequence[Tensor]) -> Decoded: ...


@runtime_checkable
class LearnsSegments(Protocol):
    """What a host with a loss of its own is beside.

    learns_objects: whether an object of a thing is a segment, or all pixels of a label are one.
    """

    learns_objects: bool

    def loss(
        self, prediction: QueryPrediction, segments: Sequence[Segments], ranking: Ranking
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


def build_host(
    kind: str, *, num_classes: int, maps: Sequence[MapShape], kappa: int, options: dict[str, Any] | None = None
) -> nn.Module:
    """The host module `kind`, with random weights.

    maps: what the backbone gives.   kappa: ranks seen in training (the length of its rank scale).
    options: its settings, by name. Raises UserError for an unknown kind or option.
    """
    module, settings = settings_of(kind, options)
    host: nn.Module = module.build(settings, num_classes=num_classes, maps=maps, kappa=kappa)
    return host


def wants_of(kind: str, options: dict[str, Any] | None = None) -> Wants:
    """What the host `kind` needs of its backbone. Raises UserError for an unknown kind or option."""
    module, settings = settings_of(kind, options)
    wants: Wants = module.wants(settings) if hasattr(module, "wants") else Wants()
    return wants


def learns_objects(kind: str, options: dict[str, Any] | None = None) -> bool:
    """What `learns_objects` of the host `kind` will be, without building it. Raises UserError."""
    return getattr(settings_of(kind, options)[1], "target", "labels") == "objects"


def settings_of(kind: str, options: dict[str, Any] | None) -> tuple[Any, Any]:
    """The module of a host, and its Options with these settings."""
    module = part(__name__, kind, defines="build", setting="host.kind")
    return module, build(module.Options, options or {}, path="host.options")


def host_kinds() -> tuple[str, ...]:
    """The values that host.kind may have."""
    return kinds_of(__name__, defines="build")
