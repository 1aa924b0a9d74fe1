"""Files that a traced network can be written to, and what such a file computes when it is loaded again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from kappaseg_core.errors import UserError
from pipelines.export.networks import Exported, Tensors

OPSET = 18
#: bytes of weights from which on they get a file of their own: an ONNX file is a protobuf message, 2 GiB at most
ONE_FILE = 2**31 - 2**26
TRACED = 2  # images that are traced with; of one, a tracer takes the batch axis for a constant


@dataclass(frozen=True)
class Format:
    """write(program, file, names of the outputs) makes the file.   load(file) gives inputs → outputs, by name.

    packages: what has to be installed.
    """

    suffix: str
    write: Callable[[ExportedProgram, Path, list[str]], None]
    load: Callable[[Path], Callable[[Tensors], Tensors]]
    packages: tuple[str, ...]

    def refuse_missing(self) -> None:
        """Raise UserError where a package is not installed."""
        for package in self.packages:
            if find_spec(package) is None:
                raise UserError(f"kappaseg export needs {package}, which is missing; pip install 'kappaseg[export]'")


def traced(network: Exported, inputs: Tensors) -> ExportedProgram:
    """The network as a graph, with a free batch axis. inputs: examples, TRACED images of them."""
    batch = Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            network, tuple(inputs.values()), dynamic_shapes={name: {0: batch} for name in inputs}
        )
    for part in graphs(program):
        for node in part.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine, which would stand in the file
    return program


def write_torch_export(program: ExportedProgram, file: Path, outputs: list[str]) -> None:
    torch.export.save(program, file)


def load_torch_export(file: Path) -> Callable[[Tensors], Tensors]:
    network = torch.export.load(file).module()

    def run(inputs: Tensors) -> Tensors:
        with torch.no_grad():
            found: Tensors = network(*inputs.values())
        return found

    return run


def write_onnx(program: ExportedProgram, file: Path, outputs: list[str]) -> None:
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    with quiet("onnxscript"):
        torch.onnx.export(
            program, f=file, dynamo=True, verbose=False, opset_version=OPSET,
            input_names=inputs, output_names=outputs,
            dynamic_shapes={name: {0: "batch" if name == inputs[0] else None} for name in inputs},  # one name for all
            custom_translation_table={
                torch.ops.aten.sort.stable: stable_sort, torch.ops.aten.einsum.default: named_einsum,
            },
            external_data=weights > ONE_FILE,
        )  # fmt: skip


def graphs(program: ExportedProgram) -> Iterator[GraphModule]:
    """The graph, and those inside it: what is kept from autocast is one of its own."""
    return (part for part in program.graph_module.modules() if isinstance(part, GraphModule))


def stable_sort(scores: Any, *, stable: bool, dim: int, descending: bool) -> Any:
    """torch.sort in ONNX. TopK puts the lower index first where values are equal, so that it is stable both ways."""
    from onnxscript import opset18

    return opset18.TopK(scores, opset18.Shape(scores, start=dim, end=dim + 1), axis=dim, largest=int(descending))


def named_einsum(equation: str, tensors: Sequence[Any], path: None = None) -> Any:
    """torch.einsum in ONNX, with a letter for every axis: onnxruntime refuses an ellipsis of different lengths
    (Query2Label has one)."""
    from onnxscript import opset18

    return opset18.Einsum(*tensors, equation=without_ellipsis(equation, [len(tensor.shape) for tensor in tensors]))


def without_ellipsis(equation: str, axes: Sequence[int]) -> str:
    """The equation with letters in the place of each ellipsis, whose axes are aligned at their ends, as torch does it.

    axes: how many each operand has.
    """
    operands, result = equation.split("->")
    named = operands.split(",")
    unnamed = [count - len(letters.replace("...", "")) for letters, count in zip(named, axes, strict=True)]
    free = [letter for letter in ascii_uppercase if letter not in equation][: max(unnamed)]
    full = [
        letters.replace("...", "".join(free[len(free) - count :]))
        for letters, count in zip(named, unnamed, strict=True)
    ]
    return f"{','.join(full)}->{result.replace('...', ''.join(free))}"


def load_onnx(file: Path) -> Callable[[Tensors], Tensors]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> Tensors:
        found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)}

    return run


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """A logger's warnings left out: onnxscript has one for each constant that it leaves as it is."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


FORMATS = {
    "torch-export": Format(".pt2", write_torch_export, load_torch_export, ("torch",)),
    "onnx": Format(".onnx", write_onnx, load_onnx, ("torch", "onnx", "onnxscript", "onnxruntime")),
}
