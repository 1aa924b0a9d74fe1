from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kappaseg_core.errors import UserError
from kappaseg_core.label_heads import Query2Label

B, C, K, D = 2, 6, 5, 8
Heads = Callable[..., Query2Label]
Features = Callable[..., Tensor]


def gradients(built: Query2Label, maps: Tensor) -> dict[str, Tensor]:
    built.zero_grad()
    built(maps).square().sum().backward()
    return {name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 2, 3, K, 100])
@pytest.mark.parametrize("kind", ["none", "first"])
def test_chunks_of_labels_give_the_same_logits(head: Heads, features: Features, chunk: int, kind: str) -> None:
    whole, chunked = head(self_attention=kind), head(self_attention=kind, chunk=chunk)
    torch.testing.assert_close(chunked(features()), whole(features()), rtol=1e-6, atol=1e-6)


def test_chunks_of_labels_give_the_same_gradients_while_training(head: Heads, features: Features) -> None:
    whole, chunked = gradients(head().train(), features()), gradients(head(chunk=2).train(), features())
    assert whole.keys() == chunked.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_memory_kept_for_the_backward_pass_does_not_grow_with_the_labels_when_chunked(features: Features) -> None:
    def kept(labels: int, chunk: int | None) -> int:
        built = Query2Label(
            C,
            labels,
            width=D,
            ffn=256,
            heads=2,
            encoder_layers=0,
            decoder_layers=2,
            project=True,
            dropout=0.0,
            chunk=chunk,
        )
        own = {p.untyped_storage().data_ptr() for p in built.parameters()}
        sizes: dict[int, int] = {}

        def note(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            built(features()).sum()
        return sum(sizes.values())

    assert kept(200, None) > 1.8 * kept(100, None)
    assert kept(200, 20) < 0.05 * kept(200, None)


def test_dropout_is_drawn_the_same_when_a_chunk_is_recomputed(head: Heads, features: Features) -> None:
    built = head(chunk=2, dropout=0.5).train()
    weight = built.decoder[0].ffn.narrow.weight
    torch.manual_seed(3)
    loss = built(features()).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        weight += step
    torch.manual_seed(3)
    rise = (built(features()).square().sum() - loss).item()
    assert rise == pytest.approx((gradient * step).sum().item(), rel=0.05)


def test_some_labels_score_as_they_do_among_all(head: Heads, features: Features) -> None:
    labels = torch.tensor([4, 0, 3])
    for chunk in (None, 2):
        built = head(chunk=chunk)
        torch.testing.assert_close(
            built.logits_for(features(), labels), built(features())[:, labels], rtol=1e-6, atol=1e-6
        )


def test_every_image_can_have_its_own_list_of_labels(head: Heads, features: Features) -> None:
    labels = torch.tensor([[4, 0, 3], [1, 1, 2]])
    for chunk in (None, 2):
        built = head(chunk=chunk)
        expected = built(features()).gather(1, labels)
        torch.testing.assert_close(built.logits_for(features(), labels), expected, rtol=1e-6, atol=1e-6)


def test_labels_that_attend_to_each_other_cannot_be_scored_apart(head: Heads, features: Features) -> None:
    for kind in ("not_first", "all"):
        with pytest.raises(ValueError, match="depend on all others"):
            head(self_attention=kind).logits_for(features(), torch.tensor([0]))
        with pytest.raises(UserError, match="chunk 2"):
            head(self_attention=kind, chunk=2)


def test_only_the_first_layers_self_attention_leaves_labels_alone(head: Heads, features: Features) -> None:
    for kind, moves in (("none", False), ("first", False), ("not_first", True), ("all", True)):
        built = head(self_attention=kind)
        before = built(features())
        with torch.no_grad():
            built.queries[0] += 1.0
        change = (built(features()) - before).abs().amax(0)
        assert change[0] > 1e-3
        assert bool((change[1:] > 1e-5).all()) is moves
