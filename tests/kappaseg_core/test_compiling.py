"""Training with torch.compile: the same numbers, names and files, and training without it where the compiler fails."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kappaseg_core.backbones import Backbone, Wants, build_backbone
from kappaseg_core.checkpoint import RunDirectory
from kappaseg_core.compiling import compile_parts
from kappaseg_core.config import BackboneConfig
from tests.kappaseg_core.test_loop import LOOP, Killed, Net, contents, train

COMPILED = replace(LOOP, steps=6, log_every=1, compile=True)


def losses(folder: Path) -> list[dict[str, Any]]:
    return [line for line in RunDirectory(folder).metrics() if line["kind"] == "train"]


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def compile(self: nn.Module) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise TorchDynamoException("no C++ compiler\nfound")

        self._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", compile)


@pytest.mark.usefixtures("broken_compiler")
def test_where_the_compiler_fails_training_goes_on_without_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "plain", replace(COMPILED, compile=False))
    train(tmp_path / "compiled", COMPILED)
    assert contents(tmp_path / "compiled") == contents(tmp_path / "plain")
    said = [line for line in capsys.readouterr().err.splitlines() if "loop.compile" in line]
    assert said == [
        f"loop.compile: {part} is computed without the compiler, which failed: no C++ compiler found"
        for part in ("backbone", "head")
    ]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kinds of the parts whose compiled call was made, in turn."""
    calls: list[str] = []

    def compile(self: nn.Module) -> None:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(type(self).__name__)
            return self._call_impl(*args, **kwargs)

        self._compiled_call_impl = counted

    monkeypatch.setattr(nn.Module, "compile", compile)
    return calls


def test_all_maps_of_a_backbone_come_from_its_compiled_network(calls: list[str]) -> None:
    backbone = build_backbone(BackboneConfig(kind="small_cnn", name="4"))
    compile_parts(nn.ModuleDict({"backbone": backbone}))
    backbone.maps(torch.randn(1, 3, 32, 32))
    assert calls == [type(backbone.network).__name__]


VIT = BackboneConfig(name="vit_tiny_patch16_224", options={"img_size": 32, "depth": 3, "embed_dim": 8, "num_heads": 2})


def test_blocks_that_others_begin_or_end_are_compiled_one_by_one(calls: list[str]) -> None:
    """The host of `last_blocks` runs two of the three; `with_tokens` all of them."""
    backbone, image = build_backbone(VIT, wants=Wants(last_blocks=2)), torch.randn(1, 3, 32, 32)
    compile_parts(nn.ModuleDict({"backbone": backbone}))
    begun = backbone.begin(image)
    assert calls == ["Block"]
    begun.through(1, begun.through(0, begun.tokens))
    assert calls == ["Block"] * 3
    backbone.with_tokens(image, torch.randn(2, 8))
    assert calls == ["Block"] * 6


@pytest.mark.usefixtures("broken_compiler")
def test_a_compiler_that_fails_on_a_block_is_not_asked_for_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    backbone = build_backbone(VIT, wants=Wants(last_blocks=1))
    compile_parts(nn.ModuleDict({"backbone": backbone}))
    backbone.begin(torch.randn(1, 3, 32, 32))
    said = [line for line in capsys.readouterr().err.splitlines() if "loop.compile" in line]
    assert said == ["loop.compile: backbone is computed without the compiler, which failed: no C++ compiler found"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("left", [0, 2])
def test_a_compiled_plain_vit_gives_the_same_gradients_as_a_whole_and_block_by_block(
    left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(VIT, wants=Wants(last_blocks=left)).double()
    image, found = torch.randn(2, 3, 32, 48, dtype=torch.float64), []
    for step in range(2):
        backbone.zero_grad()
        features = backbone(image) if not left else with_further(backbone, image)
        (features * torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)).sum().backward()
        found.append({name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None})
        if step == 0:
            compile_parts(nn.ModuleDict({"backbone": backbone}))
    assert "loop.compile" not in capsys.readouterr().err
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


def with_further(backbone: Backbone, image: Tensor) -> Tensor:
    """The tokens of a backbone whose last two blocks are run here, with three further ones."""
    begun = backbone.begin(image)
    return begun.norm(begun.through(1, begun.through(0, begun.joined(torch.ones(2, 3, 8)))))


def test_only_calls_that_record_a_gradient_are_compiled(calls: list[str]) -> None:
    network = Net().eval()
    names = list(network.state_dict())
    compile_parts(network)
    image = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        network(image)
    copy.deepcopy(network)(image)
    assert calls == []
    network(image)
    assert calls == ["Sequential", "Sequential"]
    assert list(network.state_dict()) == names


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_run_has_the_losses_and_names_of_a_plain_one_and_goes_on_after_a_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without dropout, whose random numbers are the compiler's own."""
    train(tmp_path / "plain", replace(COMPILED, compile=False), dropout=0.0)
    train(tmp_path / "compiled", COMPILED, dropout=0.0)
    with pytest.raises(Killed):
        train(tmp_path / "killed", COMPILED, kill_at=5, dropout=0.0)
    train(tmp_path / "killed", COMPILED, dropout=0.0)
    assert "loop.compile" not in capsys.readouterr().err
    assert contents(tmp_path / "killed") == contents(tmp_path / "compiled")
    assert (
        load_file(tmp_path / "plain" / "weights.safetensors").keys()
        == load_file(tmp_path / "compiled" / "weights.safetensors").keys()
    )
    plain, compiled = ([line["loss"] for line in losses(tmp_path / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)
