"""Class tables: parameters with a row per label, of which a step reads the rows of some labels.

A module names its tables, and reads them by `rows_of`:

    class_tables = ("cls_emb",)

Where K is large, most rows get no gradient in a step, and yet the gradient of the whole table is made, measured and
taken in. Of tables that were told to (`give_rows`) it names the rows that it has instead (a sparse tensor of torch),
and an optimiser of kappaseg_core.row_optim changes those alone.

Legend: B images, K all labels, n some of them, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

READER = "read_by_rows"  # attribute of a table that was told to


def rows_of(table: Tensor, labels: Tensor) -> Tensor:
    """Rows of a table [K] or [K, D] for labels i64 of any shape [...] → [...] or [..., D].

    Of [B, K, D], where every image has a table of its own, for labels [n] or [B, n] → [B, n, D].
    """
    if table.ndim == 3:
        if labels.ndim == 1:
            return table[:, labels]
        return table.gather(1, labels[..., None].expand(-1, -1, table.shape[2]))
    if gives_rows(table):
        found: Tensor = getattr(table, READER)(table, labels)
        return found
    return F.embedding(labels, table) if table.ndim == 2 else table[labels]


def class_tables(network: nn.Module) -> Iterator[nn.Parameter]:
    """The tables that the parts of a network name; a name may lead into a part (`linear.weight`)."""
    for part in network.modules():
        named = getattr(part, "class_tables", ())
        yield from (parameter for name, parameter in part.named_parameters() if name in named)


def give_rows(tables: Iterable[nn.Parameter]) -> None:
    """From now on, have the gradients of these tables name their rows where they come through `rows_of` alone.

    A sum with the gradient of another use, which reads the whole table, is one of all rows.
    """
    reader = torch.compiler.disable(read_sparsely)  # the compiler (loop.compile) cannot make a sparse gradient
    for table in tables:
        setattr(table, READER, reader)


def gives_rows(table: Tensor) -> bool:
    return hasattr(table, READER)


def read_sparsely(table: Tensor, labels: Tensor) -> Tensor:
    """`rows_of` a table [K] or [K, D], with a gradient that names the rows."""
    if table.ndim == 2:
        return F.embedding(labels, table, sparse=True)
    return table.gather(0, labels.flatten(), sparse_grad=True).view_as(labels)


def touched(gradient: Tensor) -> tuple[Tensor | None, Tensor]:
    """The rows i64 [n] that have a gradient, each once, and their gradients [n, ...]; None = all rows.

    Rows named with a gradient of zero have none: padding ranks read the row of label 0, and do nothing with it.
    """
    if not gradient.is_sparse:
        return None, gradient
    gradient = gradient.coalesce()
    (rows,), values = gradient.indices(), gradient.values()
    moved = values.bool() if values.ndim == 1 else values.any(1)
    return rows[moved], values[moved]
