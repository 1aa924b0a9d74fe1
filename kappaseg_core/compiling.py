"""torch.compile for the parts of a network while it is trained, and no compiler where there is none or it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kappaseg_core.backbones import Backbone
from kappaseg_core.progress import say
from kappaseg_core.weights.files import one_line


def compile_parts(network: nn.Module) -> None:
    """Have the network's parts (backbone, host, head) compiled at their first call that records a gradient.

    Of a backbone, what `maps` calls too: the network that it wraps. A part may name modules that others call by
    themselves, elsewhere than in its `forward`: `called_apart`, as the blocks of a plain ViT that a host begins or
    ends, or a mask network's decoders. These are compiled too, and used where one is called from outside of what is
    compiled.
    Nothing of it shows in names, weights or copies: an averaged copy is not compiled. What is computed without a
    gradient (evaluation, with images of many sizes) is computed as ever.
    """
    for name, child in network.named_children():
        own = child.network if isinstance(child, Backbone) else child
        compiler = Compiler(name)
        for each in (own, *getattr(own, "called_apart", ())):
            each.compile()
            assert each._compiled_call_impl is not None
            each._compiled_call_impl = Compiled(compiler, each, each._compiled_call_impl)


@dataclass
class Compiler:
    """That of a part and of its modules that are called apart.   works: whether it has not failed yet."""

    name: str
    works: bool = True


class Compiled:
    """A part's call: compiled, or as ever from the first failure of the compiler on, which is said in one line.

    Every worker decides for itself, because both calls give the same up to rounding.
    """

    def __init__(self, compiler: Compiler, part: nn.Module, compiled: Callable[..., Any]) -> None:
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        self.compiler, self.part, self.compiled, self.failures = compiler, part, compiled, TorchDynamoException

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiler.works and torch.is_grad_enabled():
            try:
                # a failure must show before anything is computed, also that of the backward pass
                with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                    return self.compiled(*args, **kwargs)
            except self.failures as error:
                self.compiler.works = False
                name = self.compiler.name
                say(f"loop.compile: {name} is computed without the compiler, which failed: {one_line(error)}")
        return self.part._call_impl(*args, **kwargs)
