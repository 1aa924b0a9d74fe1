"""Products, attention and feed-forward layers of the CPU against torch's own, at sizes where ours are used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core import products
from kappaseg_core.attention import BlockAttention, attention, packed_attention
from kappaseg_core.products import GeluLinear, Linear, LinearProduct, gelu_linear, linear, product, torch_alone

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def on_such_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were one, whatever it is; oneDNN is there with every torch for this kind of processor."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions of ours that were called."""
    calls: list[str] = []
    for kind in (LinearProduct, GeluLinear, BlockAttention):
        apply = kind.apply

        def noting(*given: object, name: str = kind.__name__, apply: Callable[..., Tensor] = apply) -> Tensor:
            calls.append(name)
            return apply(*given)

        monkeypatch.setattr(kind, "apply", noting)
    return calls


def noise(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(kind)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to a share of their size: of sums of many numbers, single ones can be near 0."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    error = (found.double() - wanted.double()).norm() / wanted.double().norm()
    assert error < tolerance, float(error)


def with_gradients(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """What is computed, and the gradients of all inputs for some weighted sum of it."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    found = compute(*leaves)
    return [found, *torch.autograd.grad((found * noise(*found.shape)).sum(), leaves)]


def same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, tolerance: float = 1e-5) -> None:
    for found, wanted in zip(with_gradients(ours, *inputs), with_gradients(theirs, *inputs), strict=True):
        close(found, wanted, tolerance)


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_a_product_is_torchs_whichever_side_lies_in_memory_the_other_way(transposed: tuple[bool, bool]) -> None:
    left, right = noise(130, 150), noise(170, 150)
    laid = [t.T.contiguous().T if turned else t for t, turned in zip((left, right), transposed, strict=True)]
    close(product(*laid), left @ right.T)


def test_a_product_of_slices_is_torchs() -> None:
    """Their rows lie apart in memory."""
    packed = noise(600, 3, 2, 64)
    close(product(packed[:, 0, 1], packed[:, 1, 0]), packed[:, 0, 1] @ packed[:, 1, 0].T)


def test_a_linear_layer_is_torchs(noted: list[str]) -> None:
    same(linear, F.linear, noise(2, 300, 70), noise(90, 70), noise(90))
    same(lambda x, w: linear(x, w, None), F.linear, noise(600, 70), noise(90, 70))
    assert noted == ["LinearProduct"] * 2


def test_a_layer_that_does_not_learn_passes_the_gradient_on(noted: list[str]) -> None:
    layer = Linear(70, 90).requires_grad_(False)
    same(layer, nn.Linear.forward.__get__(layer), noise(600, 70))
    assert noted == ["LinearProduct"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_stands_between_two_layers_is_torchs_and_is_not_kept(dropout: float, autocast: bool) -> None:
    hidden, weight, bias = noise(2, 300, 80), noise(90, 80), noise(90)
    kept: list[Tensor] = []

    def theirs(*given: Tensor) -> Tensor:
        torch.manual_seed(0)
        inputs, *layer = given
        return F.linear(F.dropout(F.gelu(inputs), dropout), *layer)

    def ours(*given: Tensor) -> Tensor:
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            return gelu_linear(*given, dropout=dropout)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        same(ours, theirs, hidden, weight, bias, tolerance=1e-2 if autocast else 1e-5)
    assert sorted({t.dtype for t in kept if t.shape == hidden.shape}, key=str) == (
        [torch.bool, torch.float32] if dropout else [torch.float32]
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads", "queries", "keys"), [(2, 3, 521, 521), (1, 2, 1550, 173), (1, 1, 70, 4100)])
def test_attention_is_torchs(
    kind: torch.dtype, batch: int, heads: int, queries: int, keys: int, noted: list[str]
) -> None:
    """With several blocks of queries, the last one smaller, and with one."""
    given = [noise(batch, heads, count, width, kind=kind) for count, width in ((queries, 20), (keys, 20), (keys, 24))]
    same(attention, F.scaled_dot_product_attention, *given, tolerance=TOLERANCE[kind])
    assert noted == ["BlockAttention"]


def test_blocks_do_not_change_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [noise(1, 2, 600, 16) for _ in range(3)]
    monkeypatch.setattr("kappaseg_core.attention.QUERIES", 7)
    same(attention, F.scaled_dot_product_attention, *given)


def masks() -> list[Tensor]:
    alone = noise(2, 1, 1, 570) > 0
    each = noise(2, 1, 560, 570) > 0
    each[0, 0, 5] = False  # a query that may look at nothing
    return [alone, each, noise(560, 570), noise(2, 3, 560, 570)]


@pytest.mark.parametrize("mask", masks(), ids=["keys", "each", "added", "added to each head"])
def test_masked_attention_is_torchs(mask: Tensor, noted: list[str]) -> None:
    given = noise(2, 3, 560, 16), noise(2, 3, 570, 16), noise(2, 3, 570, 16)
    same(lambda *parts: attention(*parts, mask), lambda *parts: F.scaled_dot_product_attention(*parts, mask), *given)
    assert noted == ["BlockAttention"]


def test_packed_attention_is_that_of_its_parts(noted: list[str]) -> None:
    def apart(packed: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*packed.permute(2, 0, 3, 1, 4))

    same(packed_attention, apart, noise(2, 560, 3, 2, 16))
    assert noted == ["BlockAttention"]


def test_attention_under_autocast_is_in_its_type() -> None:
    given = [noise(1, 2, 600, 16) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        same(attention, F.scaled_dot_product_attention, *given, tolerance=1e-2)


def test_no_weights_of_attention_are_kept() -> None:
    packed, kept = noise(1, 600, 3, 2, 16).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        packed_attention(packed)
    assert [t.data_ptr() for t in kept] == [packed.data_ptr()]


def test_torch_computes_what_is_not_ours(monkeypatch: pytest.MonkeyPatch, noted: list[str]) -> None:
    """Small products, dropout of attention, fp64, another processor, and what is traced or watched."""
    large, small = noise(1, 1, 600, 64), noise(1, 1, 30, 64)
    attention(small, small, small)
    attention(large, large, large, dropout=0.1)
    attention(*[large.double()] * 3)
    linear(small[0], noise(64, 64), None)
    linear(large[0].double(), noise(640, 64).double(), None)
    with torch_alone():
        attention(large, large, large)
        linear(large[0], noise(640, 64), None)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        attention(large, large, large)
        gelu_linear(noise(1, 300, 64).requires_grad_(), noise(640, 64), None)
    monkeypatch.setattr(products, "mkl_is_slow", lambda: False)
    attention(large, large, large)
    linear(large[0], noise(640, 64), None)
    assert noted == []


def test_only_processors_on_which_it_was_measured_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, wide, wanted in (("AMD EPYC", True, True), ("AMD EPYC", False, False), ("Intel Xeon", True, False)):
        products.mkl_is_slow.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda n=name, w=wide: {"cpu_name": n, "avx512_f": w})
        assert products.mkl_is_slow() == (wanted and torch.backends.mkl.is_available())
    products.mkl_is_slow.cache_clear()
