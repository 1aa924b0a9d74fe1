"""Optimisers that change selected rows alone: those as the dense ones do, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.class_rows import class_tables, rows_of
from kappaseg_core.compiling import compile_parts
from kappaseg_core.config import OptimConfig
from kappaseg_core.optim import Part, build_optimizer, clip_gradients, parameter_groups, set_rate

K, D = 7, 3
KINDS = ["adamw", "sgd"]


class Tables(nn.Module):
    """A table and a bias with a row per label, and a weight that every step reads."""

    class_tables = ("table", "part.bias")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(K, D))
        self.part = nn.Linear(D, K)
        self.part.weight = nn.Parameter(torch.randn(D, D))

    def forward(self, labels: Tensor) -> Tensor:
        """A loss by labels [B, n], each a different function."""
        rows, bias = rows_of(self.table, labels), rows_of(self.part.bias, labels)
        return ((rows @ self.part.weight).sin().sum(-1) * bias.cos()).sum()


class Training:
    """Steps on given labels, as the loop makes them."""

    def __init__(self, kind: str, *, selected: bool, clip: float | None = None, decay: float = 0.1) -> None:
        self.optim = OptimConfig(kind=kind, lr=0.05, weight_decay=decay, clip=clip, selected_rows=selected)  # type: ignore[arg-type]
        self.network, self.norms, self.done = Tables(), list[float](), 0
        self.optimizer = build_optimizer(parameter_groups([Part("all", self.network)], self.optim), self.optim)

    def step(self, *micro_batches: Sequence[Sequence[int]]) -> None:
        set_rate(self.optimizer, self.optim, self.done, 20)
        self.optimizer.zero_grad(set_to_none=True)
        for labels in micro_batches:
            self.network(torch.tensor(labels)).div(len(micro_batches)).backward()
        self.norms.append(clip_gradients(self.network.parameters(), self.optim))
        self.optimizer.step()
        self.done += 1

    def rows(self) -> dict[str, Tensor]:
        """Weights and state with an axis of K, copied."""
        found = {name: table.detach().clone() for name, table in self.network.named_parameters() if len(table) == K}
        for name, table in self.network.named_parameters():
            if len(table) == K:
                found |= {f"{name} {key}": value.clone() for key, value in self.optimizer.state[table].items()}
        return found


def test_tables_are_those_that_the_parts_of_a_network_name() -> None:
    network = Tables()
    assert [id(table) for table in class_tables(nn.ModuleList([network]))] == [id(network.table), id(network.part.bias)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_gradient_keep_the_bytes_of_weights_and_state(kind: str) -> None:
    training = Training(kind, selected=True, clip=0.5)
    training.step([[0, 1, 2, 3], [4, 5, 6, 0]])
    before = training.rows()
    training.step([[1, 4]], [[4, 6]])
    after = training.rows()
    assert len(after) == {"adamw": 8, "sgd": 4}[kind]
    for name, rows in after.items():
        changed = (rows != before[name]).view(K, -1).any(1).tolist()
        assert changed == [False, True, False, False, True, False, True], name


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_rows_are_selected_in_every_step_the_weights_are_those_of_the_dense_optimiser(kind: str) -> None:
    """Also in the loop's micro-batches, with a schedule, and where a gradient is clipped or not."""
    dense, ours = (Training(kind, selected=selected, clip=6.5) for selected in (False, True))
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        first, second = (torch.randperm(K, generator=generator).tolist() for _ in range(2))
        for training in (dense, ours):
            training.step([first[:4], first[:4]], [first[4:], second[:3]])
    assert dense.norms == pytest.approx(ours.norms, rel=1e-5)
    assert min(dense.norms) < 6.5 < max(dense.norms)
    for (name, a), b in zip(dense.network.named_parameters(), ours.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_goes_through_the_dense_steps_that_it_has_a_gradient_in(kind: str) -> None:
    """At a constant rate: row 2, seen in two of five steps, is where two dense steps on it alone take it."""
    ours, dense = Training(kind, selected=True), Training(kind, selected=False)
    for training in (ours, dense):
        training.optim = OptimConfig(lr=0.05, schedule="constant", clip=None)
        training.network.part.weight.requires_grad_(False)
    for labels in ([0], [0], [0, 2], [5], [0, 2, 5]):  # beside a row that has come more often
        ours.step([labels])
    dense.step([[2]])
    dense.step([[2]])
    torch.testing.assert_close(ours.network.table[2], dense.network.table[2], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.network.part.bias[2], dense.network.part.bias[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_is_read_as_a_whole_is_trained_as_by_the_dense_optimiser(kind: str) -> None:
    """Alone and beside a use of some rows, and where single steps read some rows alone, nothing is lost."""
    dense, ours = (Training(kind, selected=selected, decay=0.0) for selected in (False, True))
    for training in (dense, ours):
        for _ in range(3):
            training.optimizer.zero_grad(set_to_none=True)
            (training.network.table.square().sum() + training.network(torch.tensor([[1, 3]]))).backward()
            clip_gradients(training.network.parameters(), training.optim)
            training.optimizer.step()
    torch.testing.assert_close(dense.network.table, ours.network.table, rtol=0, atol=1e-6)
    before = ours.rows()
    ours.step([[5]])
    after = ours.rows()
    assert all((after[name] != before[name]).view(K, -1).any(1)[5] for name in after)
    assert torch.equal(after["table"][:5], before["table"][:5])


@pytest.mark.parametrize("clip", [None, 0.1, 1e6])
def test_gradient_norms_and_clipped_gradients_are_those_of_dense_gradients(clip: float | None) -> None:
    gradients: list[list[Tensor]] = []
    norms = []
    for selected in (False, True):
        training = Training("adamw", selected=selected, clip=clip)
        for labels in ([[1, 3], [3, 5]], [[3, 0], [0, 0]]):  # a row several times, in a step and over micro-batches
            training.network(torch.tensor(labels)).backward()
        norms.append(clip_gradients(training.network.parameters(), training.optim))
        gradients.append([p.grad.to_dense() for p in training.network.parameters() if p.grad is not None])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_row_that_is_named_with_a_gradient_of_zero_is_not_changed() -> None:
    """As row 0 is by padding ranks."""
    training = Training("adamw", selected=True)
    before = training.network.table.detach().clone()
    rows = rows_of(training.network.table, torch.tensor([0, 4]))
    (rows * torch.tensor([[0.0], [1.0]])).sum().backward()
    training.optimizer.step()
    assert [bool(row.any()) for row in training.network.table != before] == [False] * 4 + [True] + [False] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_taken_up_again_to_the_bit(kind: str) -> None:
    whole, cut = Training(kind, selected=True), Training(kind, selected=True)
    steps: list[list[list[int]]] = [[[0, 1]], [[1, 2]], [[4, 1]], [[1, 6]]]
    for labels in steps:
        whole.step(labels)
    for labels in steps[:2]:
        cut.step(labels)
    again = Training(kind, selected=True)
    again.network.load_state_dict(cut.network.state_dict())
    again.optimizer.load_state_dict(cut.optimizer.state_dict())
    again.done = 2
    for labels in steps[2:]:
        again.step(labels)
    found: dict[str, Any] = again.rows()
    assert all(torch.equal(value, found[name]) for name, value in whole.rows().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_tables_that_name_rows_are_read_where_the_rest_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[list[Tensor]] = []
    for compiled in (False, True):
        training = Training("adamw", selected=True)
        if compiled:
            compile_parts(nn.ModuleDict({"network": training.network}))
        training.step([[1, 3], [3, 5]])
        assert training.network.table.grad is not None and training.network.table.grad.is_sparse
        found.append([p.detach() for p in training.network.parameters()])
    assert "loop.compile" not in capsys.readouterr().err
    torch.testing.assert_close(found[1], found[0])
