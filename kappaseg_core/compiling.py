"""torch.compile for the parts of a network while it is trained, and no compiler where there is none or it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kappaseg_core.backbones import Backbone
from kappaseg_core.progress import say
from kappaseg_core.weights.files import one_line


def compile_parts(network: nn.Module) -> None:
    """Have the network's parts (backbone, host, head) compiled at their first call that records a gradient.

    Of a backbone, what `maps` calls too: the network that it wraps. A part may name further modules that it calls
    elsewhere than in `forward`, as a mask network's decoders: `called_apart`.
    Nothing of it shows in names, weights or copies: an averaged copy is not compiled. What is computed without a
    gradient (evaluation, with images of many sizes) is computed as ever.
    """
    for name, child in network.named_children():
        own = child.network if isinstance(child, Backbone) else child
        for part in (own, *getattr(own, "called_apart", ())):
            part.compile()
            assert part._compiled_call_impl is not None
            part._compiled_call_impl = Compiled(name, part, part._compiled_call_impl)


class Compiled:
    """A part's call: compiled, or as ever from the first failure of the compiler on, which is said in one line.

    Every worker decides for itself, because both calls give the same up to rounding.
    """

    def __init__(self, name: str, part: nn.Module, compiled: Callable[..., Any]) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        self.name, self.part, self.compiled, self.failures = name, part, compiled, TorchDynamoException
        self.works = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.works and torch.is_grad_enabled():
            try:
                # a failure must show before anything is computed, also that of the backward pass
                with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                    return self.compiled(*args, **kwargs)
            except self.failures as error:
                self.works = False
                say(f"loop.compile: {self.name} is computed without the compiler, which failed: {one_line(error)}")
        return self.part._call_impl(*args, **kwargs)
