"""What every segmentation host must do, whatever it is made of. A new host is tested by being there."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import PADDING_LOGIT, Ranking, complete_ranking, top_kappa
from stage2_segmentation.hosts import build_host, host_kinds
from tests.tensors import PRIME, Created

K, CHANNELS, TRAINED = 5, 8, 3  # labels, channels of the map, ranks that the scale has parameters for


def host_of(kind: str, *, num_classes: int = K, kappa: int = TRAINED, **options: Any) -> nn.Module:
    """A host with weights so large that everything matters, in evaluation mode."""
    host = build_host(kind, num_classes=num_classes, in_channels=CHANNELS, kappa=kappa, options=options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return host


@pytest.fixture(params=host_kinds())
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host(kind: str) -> nn.Module:
    return host_of(kind)


def maps(images: int, height: int = 3, width: int = 4) -> Tensor:
    return torch.randn(images, CHANNELS, height, width, generator=torch.Generator().manual_seed(images))


def ranking_of(*rows: list[int], kappa: int | None = None) -> Ranking:
    """Rankings with the given labels, padded to the longest or to κ ranks."""
    length = kappa or max(map(len, rows))
    labels = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    valid = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return Ranking(labels, torch.linspace(0.9, 0.1, length) * valid, valid)


def random_ranking(images: int, kappa: int, num_classes: int = K) -> Ranking:
    return top_kappa(torch.rand(images, num_classes, generator=torch.Generator().manual_seed(kappa)), kappa)


def test_the_known_hosts_are_listed_where_one_is_not_known() -> None:
    assert "segmenter" in host_kinds()
    with pytest.raises(UserError, match=f"host.kind = 'nosuch' is unknown; there are: {', '.join(host_kinds())}"):
        build_host("nosuch", num_classes=K, in_channels=CHANNELS, kappa=TRAINED)


def test_a_mistyped_option_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"host\.options\.dpeth"):
        build_host(kind, num_classes=K, in_channels=CHANNELS, kappa=TRAINED, options={"dpeth": 2})


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kappa", range(1, K + 1))
def test_there_is_one_map_of_logits_per_rank(host: nn.Module, kappa: int, images: int) -> None:
    logits = host(maps(images), random_ranking(images, kappa))
    assert logits.shape == (images, kappa, 3, 4)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3)])
def test_any_map_size_is_taken_cell_by_cell(host: nn.Module, height: int, width: int) -> None:
    logits = host(maps(2, height, width), random_ranking(2, 3))
    assert logits.shape == (2, 3, height, width)
    assert logits.isfinite().all()


def test_rows_and_columns_are_not_mixed_up(kind: str) -> None:
    """With the weights that training starts from, a change in one cell shows most in that cell's logits."""
    torch.manual_seed(0)
    host = build_host(kind, num_classes=K, in_channels=CHANNELS, kappa=TRAINED).eval()
    features, ranking = maps(1, 3, 5), random_ranking(1, 3)
    before = host(features, ranking)
    features[0, :, 1, 3] = maps(2)[1, :, 0, 0] * 3
    change = (host(features, ranking) - before).abs().sum(1)[0]
    assert change.argmax().item() == 1 * 5 + 3


def test_every_parameter_gets_a_finite_gradient(host: nn.Module) -> None:
    """κ as in training; tables with one row per label get none in the rows that are not ranked."""
    ranking = ranking_of([4, 1, 0], [1, 4, 2])
    host(maps(2), ranking).square().sum().backward()
    for name, parameter in host.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name
        if parameter.shape[0] == K:
            assert [bool(row.any()) for row in parameter.grad != 0] == [True, True, True, False, True], name


def test_a_batch_of_two_is_two_batches_of_one(host: nn.Module) -> None:
    features, ranking = maps(2), random_ranking(2, 4)
    together = host(features, ranking)
    for image in range(2):
        alone = host(features[image : image + 1], ranking[image : image + 1])
        torch.testing.assert_close(together[image : image + 1], alone, rtol=1e-4, atol=1e-4)


def test_the_labels_at_the_ranks_matter(host: nn.Module) -> None:
    features = maps(1)
    first, second = host(features, ranking_of([0, 1, 2])), host(features, ranking_of([0, 1, 3]))
    assert not torch.allclose(first[:, 2], second[:, 2], atol=1e-2)


def test_permuted_ranks_give_permuted_logits_where_all_share_a_scale(kind: str) -> None:
    options = importlib.import_module(f"stage2_segmentation.hosts.{kind}").Options
    if "rank_scale" not in {field.name for field in dataclasses.fields(options)}:
        pytest.skip(f"{kind} has no rank_scale")
    host = host_of(kind, rank_scale="shared")
    features, order = maps(2), torch.tensor([2, 0, 3, 1])
    ranking = random_ranking(2, 4)
    permuted = Ranking(ranking.labels[:, order], ranking.scores, ranking.valid)
    torch.testing.assert_close(host(features, permuted), host(features, ranking)[:, order], rtol=1e-4, atol=1e-4)


def test_all_labels_in_order_of_id_are_the_complete_ranking(host: nn.Module) -> None:
    """However probable they are: scores order the labels and do nothing else."""
    features, ranked = maps(2), top_kappa(torch.linspace(0.9, 0.1, K).expand(2, -1), K)
    assert torch.equal(host(features, ranked), host(features, complete_ranking(2, K)))


@pytest.mark.parametrize("options", [{}, {"rank_scale": "rank"}, {"rank_scale": "shared"}, {"unbiased": True}])
def test_padding_ranks_influence_nothing(kind: str, options: dict[str, Any]) -> None:
    """Image 1 with two labels, padded to four ranks by its neighbour, is as alone with two."""
    known = importlib.import_module(f"stage2_segmentation.hosts.{kind}").Options.__dataclass_fields__
    if not set(options) <= set(known):
        pytest.skip(f"{kind} has no {', '.join(options)}")
    host, features = host_of(kind, **options), maps(2)
    padded = host(features, ranking_of([3, 1, 4, 0], [4, 2]))
    alone = host(features[1:], ranking_of([4, 2]))
    torch.testing.assert_close(padded[1:, :2], alone, rtol=1e-4, atol=1e-4)
    assert (padded[1, 2:] == PADDING_LOGIT).all()
    torch.testing.assert_close(padded[:1], host(features[:1], ranking_of([3, 1, 4, 0])), rtol=1e-4, atol=1e-4)


def test_padding_ranks_get_no_gradient(host: nn.Module) -> None:
    """The label that stands at padding ranks (0) is not learnt through them."""
    host(maps(1), ranking_of([4, 2], kappa=4)).sum().backward()
    for parameter in host.parameters():
        if parameter.shape[0] == K:
            assert parameter.grad is not None
            assert (parameter.grad[0] == 0).all()


def test_an_image_without_labels_gives_finite_logits_and_gradients(host: nn.Module) -> None:
    features, ranking = maps(2).requires_grad_(), ranking_of([], [1, 3])
    logits = host(features, ranking)
    assert (logits[0] == PADDING_LOGIT).all()
    torch.testing.assert_close(logits[1:], host(features[1:], ranking_of([1, 3])), rtol=1e-4, atol=1e-4)
    F.cross_entropy(logits, torch.zeros(2, 3, 4, dtype=torch.int64)).backward()
    gradients = [features.grad, *(p.grad for p in host.parameters())]
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_autocast_changes_little_and_gives_single_precision(host: nn.Module) -> None:
    features, ranking = maps(2), ranking_of([3, 1, 4], [4, 2])
    exact = host(features, ranking)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = host(features, ranking)
    assert rough.dtype == torch.float32
    assert (rough[1, 2] == PADDING_LOGIT).all()
    assert (rough - exact)[exact > PADDING_LOGIT].abs().mean() < 0.1 * exact[exact > PADDING_LOGIT].std()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_tensor_has_an_axis_of_all_labels(kind: str, precision: str) -> None:
    host = host_of(kind, num_classes=PRIME, kappa=7)
    ranking = random_ranking(2, 7, PRIME)
    with Created(host) as created, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        host(maps(2), ranking)
    assert len(created.tensors) > 5
    assert created.shapes_with(PRIME) == []
