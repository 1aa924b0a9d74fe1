"""Segmentation networks on a backbone's map. One module per host with a dataclass `Options` and
`build(options, *, num_classes, in_channels, kappa) -> nn.Module`; adding a host is adding a file here.

The contract (tests/contracts/test_hosts.py): `host(features f32 [B, C, h, w], ranking) → rank_logits f32 [B, κ, h, w]`.
Padding ranks get PADDING_LOGIT and influence nothing. The label ids reach the host through the rows of a class table
alone: no tensor has a channel axis of K.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from kappaseg_core.config import build
from kappaseg_core.parts import kinds_of, part


def build_host(
    kind: str, *, num_classes: int, in_channels: int, kappa: int, options: dict[str, Any] | None = None
) -> nn.Module:
    """The host module `kind`, with random weights.

    kappa: ranks seen in training (the length of its rank scale).   options: its settings, by name.
    Raises UserError for an unknown kind or option.
    """
    module = part(__name__, kind, defines="build", setting="host.kind")
    settings = build(module.Options, options or {}, source="host.options", path="host.options")
    host: nn.Module = module.build(settings, num_classes=num_classes, in_channels=in_channels, kappa=kappa)
    return host


def host_kinds() -> tuple[str, ...]:
    """The values that host.kind may have."""
    return kinds_of(__name__, defines="build")
