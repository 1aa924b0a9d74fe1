"""Label branches of the joint scheme: the labels of an image from the segmentation network's own map (Sec. 3.2).

One module per branch with a dataclass `Options` and `build(options, host, *, num_classes, in_channels) -> Branch`;
adding a branch is adding a file here. `none` is the network without one.

Legend: B images, C h w the backbone's map, P = h·w, K all labels, κ kept labels, D the host's width.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import Tensor, nn

from kappaseg_core.config import build
from kappaseg_core.errors import UserError
from kappaseg_core.parts import kinds_of, part
from stage2_segmentation.structures import Seen

NONE = "none"


class ClassHost(Protocol):
    """What a branch that shares class embeddings needs of its host."""

    @property
    def cls_emb(self) -> nn.Parameter:
        """[K, D]"""
        ...


class TokenHost(ClassHost, Protocol):
    """The same, of one that also makes patch tokens of the map."""

    def read(self, features: Tensor) -> Tensor:
        """[B, C, h, w] → patch tokens [B, P, D]."""
        ...


class Branch(Protocol):
    """features [B, C, h, w], and where the images have class tokens of their own, those [B, K, D] → Seen.

    samples_labels: whether it can learn from some labels alone; a branch without it cannot. It then takes a fourth
    argument, `labels` i64 [n]: those of this step. All K are ranked in any case, without gradient.
    shares_classes: whether it learns through the host's class embeddings, of all labels or of that sample; a branch
    without it does not.
    """

    samples_labels: bool

    def __call__(self, host: Any, features: Tensor, classes: Tensor | None) -> Seen: ...

    def set_prior(self, frequency: Tensor) -> None:
        """Start from how common each label is: frequency f32 [K], the share of images that hold it."""
        ...


def build_branch(
    kind: str, host: nn.Module, *, num_classes: int, in_channels: int, options: dict[str, Any]
) -> nn.Module | None:
    """The branch module `kind` for a host, with random weights; None for "none".

    Raises UserError for an unknown kind or option, and for a host without class embeddings to share.
    """
    if kind == NONE:
        return None
    module = part(__name__, kind, defines="build", setting="labels.head")
    settings = build(module.Options, options, path="labels.options")
    branch: nn.Module = module.build(settings, host, num_classes=num_classes, in_channels=in_channels)
    return branch


def refuse_heads(heads: int, width: int) -> None:
    """Raise UserError where a host's width cannot be shared out among so many heads."""
    if width % heads:
        raise UserError(f"labels.options.heads = {heads}, wanted a divisor of the host's width {width}")


def class_table(host: Any) -> nn.Parameter:
    """A host's class embeddings [K, D]. Raises UserError where it has none."""
    table = getattr(host, "cls_emb", None)
    if table is None:
        raise UserError("this host has no class embeddings to share; use labels.head pooled and class_tokens host")
    return cast(nn.Parameter, table)


def branch_kinds() -> tuple[str, ...]:
    """The values that labels.head may have, beside "none"."""
    return kinds_of(__name__, defines="build")
