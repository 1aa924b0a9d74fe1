"""What a network costs: parameters and multiply-accumulates (MACs), counted while it runs.

Two counts of the same run. `macs`: all matrix products, convolutions and attention products, by torch's counter.
`macs_paper`: what the published tables give as FLOPs (Tables 3, 6, 7, He et al. 2022), a count that does not see all;
for comparison with those tables only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from kappaseg_core.backbones import Backbone
from kappaseg_core.label_heads.attention import Attention
from kappaseg_core.products import torch_alone

#: modules of transformers, in mask networks, that are an nn.MultiheadAttention in the published code
PUBLISHED_AS_MULTIHEAD = ("MaskFormerDetrSelfAttention", "MaskFormerDetrCrossAttention", "Mask2FormerAttention")


@dataclass(frozen=True)
class Cost:
    """parameters: all of the module, trained or not.   macs: multiply-accumulates of the run (a FLOP count is twice
    that).   macs_paper: the same in the paper's counting."""

    parameters: int
    macs: int
    macs_paper: int

    def __add__(self, other: Cost) -> Cost:
        """Two networks that are deployed together."""
        return Cost(
            self.parameters + other.parameters, self.macs + other.macs, self.macs_paper + other.macs_paper
        )  # fmt: skip


def count(module: nn.Module, run: Callable[[], Any]) -> Cost:
    """The cost of `run()`, which calls `module`, on any device; on "meta" nothing is computed (`Sizes`).

    True MACs leave out what is no product: norms, softmax, upsampling, sorting; and of deformable attention the
    sampling of cells and their weighted sum (its linear layers are counted).

    The paper's counting, found by taking its tables apart: it does not see inside nn.MultiheadAttention, which is all
    attention of the released ViT and of Query2Label (projections and products); of the other attention, that of the
    mask transformer, it counts the projections and one of the two products; and it adds two operations for each
    element of a layer norm. It meets the published values of networks on a plain ViT within 1.3 %; for other backbones
    it is the same rule, with every module of the backbone whose class is named ...Attention unseen.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    with torch.no_grad(), torch_alone(), countable(module), FlopCounterMode(display=False) as counter:
        unseen = Unseen(module, counter)
        with unseen, unseen.hooks():
            run()
    macs = counter.get_total_flops() // 2
    return Cost(parameters, macs, macs - unseen.hidden // 2 - unseen.products // 2 + unseen.norms)


class Sizes(TorchFunctionMode):
    """Lets a network that asks whether all its ranks are valid run on "meta", where tensors have no values: yes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


class Unseen(Sizes):
    """Notes what the paper's counting leaves out or adds.

    hidden: FLOPs inside attention that it does not see.   products: MACs of the attention products elsewhere.
    norms: operations of layer norms elsewhere.
    """

    def __init__(self, module: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()
        self.module, self.counter = module, counter
        self.hidden = self.products = self.norms = 0
        self.depth = self.before = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and not self.depth:
            self.products += attention_macs(*args[:3])
        return super().__torch_function__(func, types, args, kwargs)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Parts of a hidden module are watched too: they are also called without it."""
        with ExitStack() as stack:
            parts = {id(part): part for module in hidden_modules(self.module) for part in module.modules()}
            for part in parts.values():
                stack.callback(part.register_forward_pre_hook(self.enter).remove)
                stack.callback(part.register_forward_hook(self.leave).remove)
            for part in self.module.modules():
                if isinstance(part, nn.LayerNorm) and id(part) not in parts:
                    stack.callback(part.register_forward_hook(self.norm).remove)
            yield

    def enter(self, module: nn.Module, args: Any) -> None:
        if not self.depth:
            self.before = self.counter.get_total_flops()
        self.depth += 1

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.depth -= 1
        if not self.depth:
            self.hidden += self.counter.get_total_flops() - self.before

    def norm(self, module: nn.Module, args: tuple[Tensor], out: Any) -> None:
        self.norms += 2 * args[0].numel()


def hidden_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Attention that is an nn.MultiheadAttention here or in the published code."""
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention | Attention):
            yield part
        elif isinstance(part, Backbone):
            yield from (inner for inner in part.modules() if type(inner).__name__.endswith("Attention"))
        elif type(part).__module__.startswith("transformers.") and type(part).__name__ in PUBLISHED_AS_MULTIHEAD:
            yield part


def attention_macs(queries: Tensor, keys: Tensor, values: Tensor) -> int:
    """MACs of q kᵀ and of the weighted sum: queries [..., N, D], keys [..., M, D], values [..., M, E]."""
    return math.prod(queries.shape[:-1]) * keys.shape[-2] * (queries.shape[-1] + values.shape[-1])


@contextmanager
def countable(module: nn.Module) -> Iterator[None]:
    """Settings under which torch's counter sees everything, for the time of the block.

    In evaluation mode nn.MultiheadAttention becomes one operation that the counter does not know. Pieces of a parameter
    say that they need a gradient even where none is recorded, and the counter then fails to find where it would go.
    """
    fast, trained = torch.backends.mha.get_fastpath_enabled(), [p for p in module.parameters() if p.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in trained:
            parameter.requires_grad_(True)
