"""Watching which tensors a computation makes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: A number of labels that is the length of nothing else.
PRIME = 1009


class Created(TorchDispatchMode):
    """Collects the floating tensors made in its block, without those that share memory with the module's parameters."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.own = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tensors += [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
        return out

    def shapes_with(self, length: int) -> list[tuple[int, ...]]:
        """Shapes with an axis of this length."""
        found = (t for t in self.tensors if length in t.shape and t.untyped_storage().data_ptr() not in self.own)
        return [tuple(t.shape) for t in found]
