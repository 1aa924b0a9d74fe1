"""AdamW and SGD that change of a class table the rows with a gradient alone (ours; optim.selected_rows).

A step that selects κ labels of each of B images gives at most κ · B rows of a table [K, D] a gradient. Dense AdamW
reads and writes weights and both moments of all K; this one those of the rows with a gradient. Of the others weights
and state keep their bytes.

The rule: **a row goes through exactly the steps of the dense optimiser that it has a gradient in**, as if there were no
others. With t the step, t_r how many steps until t gave row r a gradient, g its gradient (AdamW, Loshchilov and Hutter,
ICLR 2019, Alg. 2):

    m_r ← β1 m_r + (1 - β1) g        v_r ← β2 v_r + (1 - β2) g²
    w_r ← (1 - η_t λ) w_r - η_t (m_r / (1 - β1^t_r)) / (√(v_r / (1 - β2^t_r)) + ε)

SGD with momentum: m_r ← μ m_r + g + λ w_r, w_r ← w_r - η_t m_r.

torch.optim.SparseAdam corrects by t, the steps of the table. Ours: by those of the row, because m and v of a row start
at 0 at its own first step. Corrected by a late t, which is none, that step would be (1 - β1) / √(1 - β2) = 3.2 times as
long as dense AdamW's first one at β = 0.9, 0.999, and those after it up to 6.5 times. SparseAdam has no decay; here it
comes with the row's steps, so that a label that is never kept does not fade.

What differs from the dense optimiser for a row without gradient: no decay, momentum does not carry it on, and m and v
do not fade, so that the next gradient meets moments as old as the row's last one. A table whose rows all have a
gradient in every step is trained as by the dense optimiser, up to rounding.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kappaseg_core.class_rows import gives_rows, touched


class SelectedRows(torch.optim.Optimizer):
    """An optimiser's step, in which tables that give the rows of their gradients are changed by `change`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        tables = [(table, group) for group in self.param_groups for table in group["params"] if gives_rows(table)]
        gradients = [table.grad for table, _ in tables]
        for table, _ in tables:
            table.grad = None  # torch's own step leaves it out
        loss = super().step(closure)
        for (table, group), gradient in zip(tables, gradients, strict=True):
            table.grad = gradient
            if gradient is not None:
                self.change(table, *touched(gradient), group)
        return loss

    @abstractmethod
    def change(self, table: Tensor, rows: Tensor | None, gradient: Tensor, group: dict[str, Any]) -> None:
        """One step of some rows i64 [n] of a table by their gradients [n, ...]; None = all rows."""


class RowAdamW(SelectedRows, torch.optim.AdamW):
    def change(self, table: Tensor, rows: Tensor | None, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[table], group["betas"]
        if not state:
            state["step"] = table.new_zeros(len(table), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        state["step"] = state["step"].to(table.device)  # torch leaves what is loaded under this name on the CPU
        whole = state["step"], state["exp_avg"], state["exp_avg_sq"], table
        steps, average, square, weight = parts = taken(whole, rows)
        steps += 1
        average.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        first, second = (corrected(beta, steps).view(-1, *[1] * (table.ndim - 1)) for beta in (beta1, beta2))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(average / first, (square / second).sqrt_().add_(group["eps"]), value=-group["lr"])
        put_back(whole, rows, parts)


class RowSGD(SelectedRows, torch.optim.SGD):
    def change(self, table: Tensor, rows: Tensor | None, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(table)
        whole = state["momentum_buffer"], table
        momentum, weight = parts = taken(whole, rows)
        momentum.mul_(group["momentum"]).add_(gradient).add_(weight, alpha=group["weight_decay"])
        weight.add_(momentum, alpha=-group["lr"])
        put_back(whole, rows, parts)


def corrected(beta: float, steps: Tensor) -> Tensor:
    """1 - β^steps, to the last digit where β^steps is near 1."""
    return -torch.expm1(steps * math.log(beta))


def taken(tensors: Sequence[Tensor], rows: Tensor | None) -> list[Tensor]:
    """Copies of some rows, or the tensors themselves."""
    return list(tensors) if rows is None else [tensor.index_select(0, rows) for tensor in tensors]


def put_back(tensors: Sequence[Tensor], rows: Tensor | None, parts: Sequence[Tensor]) -> None:
    if rows is not None:
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.index_copy_(0, rows, part)
