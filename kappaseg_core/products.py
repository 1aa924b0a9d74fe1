"""Matrix products in fp32 on the CPU, by the faster of the two libraries that torch comes with.

torch gives products in fp32 to MKL. On AMD processors MKL leaves AVX-512 unused: 80 to 95 GFLOP/s a core on an EPYC of
2025, where oneDNN, which torch uses for bf16, reaches 120 to 230. So there, and from a certain size on, products go to
oneDNN (benchmarks/products.py). The results differ in rounding alone. Everything else is left to torch: other
processors, GPUs, autocast, and networks that are compiled, exported or counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kappaseg_core.precision import full_precision

#: multiply-adds from which a call of oneDNN is worth it, and the shortest side of such a product
WORTH, NARROWEST = 2**21, 16


class Torch:
    """Whether everything is left to torch for now."""

    alone = False


@contextmanager
def torch_alone() -> Iterator[None]:
    """A block in which all products are torch's own, for programs that watch them (kappaseg_core.cost)."""
    before, Torch.alone = Torch.alone, True
    try:
        yield
    finally:
        Torch.alone = before


@cache
def mkl_is_slow() -> bool:
    """Whether this is a processor on which oneDNN was measured to be faster than MKL, and both are there."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    is_slow = str(able.get("cpu_name", "")).startswith("AMD") and bool(able.get("avx512_f"))
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return is_slow and libraries and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def on_cpu(tensor: Tensor) -> bool:
    """Whether what is computed from this tensor is computed on the CPU, and nobody watches how."""
    watched = Torch.alone or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return tensor.device.type == "cpu" and not watched


def is_ours(tensor: Tensor) -> bool:
    """Whether it is computed on a CPU on which oneDNN is faster."""
    return on_cpu(tensor) and mkl_is_slow()


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [N, D] rightᵀ [D, M] + bias [M] → [N, M], all of one type and on the CPU; records no gradient."""
    rows, depth, columns = *left.shape, right.shape[0]
    large = rows * depth * columns >= WORTH and min(rows, depth, columns) >= NARROWEST
    if large and left.dtype == torch.float32:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(dense(left), dense(right), bias, "none", [], "")
        return found
    return F.linear(left, right, bias)


def dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps: with rows or columns that lie apart, oneDNN takes a thousand times as long."""
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


class Linear(nn.Linear):
    """nn.Linear by the faster library."""

    def forward(self, inputs: Tensor) -> Tensor:
        return linear(inputs, self.weight, self.bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [..., D], weight [M, D], bias [M] → [..., M]: F.linear by the faster library."""
    plain = inputs.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not (plain and is_ours(inputs) and inputs.numel() * weight.shape[0] >= WORTH):
        return F.linear(inputs, weight, bias)
    found: Tensor = LinearProduct.apply(inputs, weight, bias)
    return found


class LinearProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return product(inputs.flatten(0, -2), weight, bias).view(*inputs.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        return gradients(ctx.needs_input_grad, grad, inputs, weight)


def gradients(
    wanted: tuple[bool, ...], grad: Tensor, inputs: Tensor, weight: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of a linear layer's inputs [..., D], weight [M, D] and bias [M], those that are wanted, from grad [..., M]."""
    rows = grad.flatten(0, -2)
    return (
        product(rows, weight.T).view_as(inputs) if wanted[0] else None,
        product(rows.T, inputs.flatten(0, -2).T) if wanted[1] else None,
        rows.sum(0) if wanted[2] else None,
    )


def gelu_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, *, dropout: float = 0.0) -> Tensor:
    """F.linear(F.dropout(F.gelu(inputs), dropout), weight, bias), for inputs [..., D].

    On the CPU what stands between the two layers is computed again for the gradient and not kept: of 4 + 4 numbers for
    each of the narrow layer's (8 + 4 with dropout, whose mask is otherwise in fp32) 4 are left, and a byte of the mask.
    """
    if not (on_cpu(inputs) and torch.is_grad_enabled()):
        return linear(F.dropout(F.gelu(inputs), dropout), weight, bias)
    found: Tensor = GeluLinear.apply(inputs, weight, bias, dropout)
    return found


class GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        # the numbers that F.dropout would draw
        kept = torch.empty(inputs.shape, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
        ctx.save_for_backward(inputs, weight, kept)
        ctx.dropout = dropout
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
        with full_precision(inputs.device):
            active = thinned(F.gelu(inputs), kept, dropout).to(kind)
            return linear(active, weight.to(kind), None if bias is None else bias.to(kind))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, kept = ctx.saved_tensors
        with full_precision(grad.device):
            active = thinned(F.gelu(inputs), kept, ctx.dropout).to(grad.dtype)
            before, *others = gradients(ctx.needs_input_grad, grad, active, weight.to(grad.dtype))
            if before is not None:
                before = thinned(before.to(inputs.dtype), kept, ctx.dropout)
                before = torch.ops.aten.gelu_backward(before, inputs)
        return before, *others, None


def thinned(numbers: Tensor, kept: Tensor | None, dropout: float) -> Tensor:
    """Dropout with a given mask, in place."""
    return numbers if kept is None else numbers.mul_(kept.to(numbers.dtype).div_(1 - dropout))
