"""Segmentation networks on a backbone's map. One module per host with a dataclass `Options` and
`build(options, *, num_classes, in_channels, kappa) -> nn.Module`; adding a host is adding a file here.

The contract (tests/contracts/test_hosts.py): `host(features f32 [B, C, h, w], ranking) → rank_logits f32 [B, κ, h, w]`.
Padding ranks get PADDING_LOGIT and influence nothing. The label ids reach the host through the rows of a class table
alone: no tensor has a channel axis of K.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from torch import nn

from kappaseg_core.config import build
from kappaseg_core.errors import UserError

NOT_HOSTS = ("transformer",)


def build_host(
    kind: str, *, num_classes: int, in_channels: int, kappa: int, options: dict[str, Any] | None = None
) -> nn.Module:
    """The host module `kind`, with random weights.

    kappa: ranks seen in training (the length of its rank scale).   options: its settings, by name.
    Raises UserError for an unknown kind or option.
    """
    if kind not in host_kinds():
        raise UserError(f"host.kind {kind!r} is not known; wanted one of {', '.join(host_kinds())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    settings = build(module.Options, options or {}, source="host.options", path="host.options")
    host: nn.Module = module.build(settings, num_classes=num_classes, in_channels=in_channels, kappa=kappa)
    return host


def host_kinds() -> tuple[str, ...]:
    """The values that host.kind may have."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in NOT_HOSTS))
