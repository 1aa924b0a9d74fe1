"""What training a network takes in memory: what its forward pass leaves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.cost import Sizes
from kappaseg_core.products import torch_alone


def bytes_kept(module: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of the activations that `run()`, which calls `module`, keeps for its gradient, on any device.

    Each storage counts once, parameters and buffers not at all. Of an attention product queries, keys and values are
    kept (its result by the layer behind it), as the fused kernels of GPUs do it, whatever the kernel here keeps. On
    "meta" nothing is computed.
    """
    kept = Kept(module)
    with (
        torch_alone(),
        torch.enable_grad(),
        kept,
        torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor),
    ):
        run()
    return kept.bytes


class Kept(Sizes):
    """Adds up the storages of the tensors that it is told of."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        #: held, so that no other tensor can take the place of one
        self.held = [*module.parameters(), *module.buffers()]
        self.known = {storage(tensor) for tensor in self.held}
        self.bytes, self.fused = 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention or self.fused:
            return super().__torch_function__(func, types, args, kwargs)
        for tensor in args[:3]:
            self.note(tensor)
        self.fused = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.fused = False

    def note(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is not among the known ones."""
        if not self.fused and storage(tensor) not in self.known:
            self.held.append(tensor)
            self.known.add(storage(tensor))
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
