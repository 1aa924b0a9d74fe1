"""How much memory a computation holds at its fullest moment, found without computing it.

Every operator tells the size of what it makes; what is let go of is subtracted when Python lets go of it. Together with
torch's fake tensors, which have shapes and no numbers, a training step of any size is followed in about a second: its
activations, gradients, the state of its optimiser and what an operator needs besides, each as long as it lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kappaseg_core.cost import Sizes


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that live now, and the most that lived at one time. Counts what is made inside `with`.

    Works with real tensors and fake ones. What an operator uses inside itself and gives back (workspaces of
    convolutions and products) is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor))
        return made

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made elsewhere; a storage counts once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.bytes += self.sizes[key]
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


@contextmanager
def imagined(*, fused: bool) -> Iterator[None]:
    """Inside, tensors of the CPU have shapes and no numbers, and questions about their values are answered with yes.

    fused: attention by the kernels of GPUs, which keep no weights, also where these are dropped at random; otherwise
    as a CPU computes it, which keeps them then.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Answers())
        if fused:  # not by a mode of torch: those are not asked when a checkpoint computes its part again
            stack.enter_context(patch.object(F, "scaled_dot_product_attention", fused_attention))
        yield


class Answers(Sizes):
    """`Sizes` for fake tensors, which do not say that they are "meta", and have no place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__:
            return True
        if func is Tensor.data_ptr:  # by which position tables know each other
            return 0
        if func is Tensor.__deepcopy__:  # which asks for the place too
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Tensor:
    found: Tensor = Fused.apply(queries, keys, values)
    return found


class Fused(torch.autograd.Function):
    """Sizes of a fused attention product: queries [..., N, D], keys [..., M, D], values [..., M, E] → [..., N, E]."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        found = queries.new_empty(*queries.shape[:-1], values.shape[-1])
        ctx.save_for_backward(queries, keys, values, found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
