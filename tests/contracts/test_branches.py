"""What every label branch must do, whatever it is made of. A new branch is tested by being there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.backbones import MapShape
from kappaseg_core.errors import UserError
from kappaseg_core.ranking import top_kappa
from stage2_segmentation.branches import branch_kinds, build_branch
from stage2_segmentation.hosts import build_host
from stage2_segmentation.structures import Seen
from tests.tensors import PRIME, Created

K, CHANNELS, WIDTH = 5, 8, 12
SMALL: dict[str, dict[str, Any]] = {"encoder": {"heads": 2, "pooled": 2}, "decoder": {"heads": 2, "ffn": 16},
                                    "group": {"heads": 2, "ffn": 16, "groups": 2}}  # fmt: skip
VARIANTS = [(kind, SMALL.get(kind, {})) for kind in branch_kinds()] + [
    ("encoder", {"heads": 2, "pooled": 0}),
    ("encoder", {"heads": 2, "pooled": 2, "attend": "patches"}),
    ("decoder", {"heads": 2, "ffn": 16, "pooled": 0, "chunk": 2}),
    ("decoder", {"heads": 2, "ffn": 16, "pooled": 2, "shortlist": 3}),
    ("decoder", {"heads": 2, "ffn": 16, "pooled": 0, "shortlist": 3, "shortlist_by": "lse"}),
    ("pooled", {"pooling": "log_sum_exp", "hidden": False}),
    ("projected", {"classes": "own", "width": 6, "pooled": 0, "projection": "linear"}),
    ("projected", {"pooled": 2, "pooling": "max", "attend": "patches"}),
]


def network(kind: str, options: dict[str, Any], num_classes: int = K) -> tuple[nn.Module, nn.Module]:
    """Host and branch with weights so large that everything matters, in evaluation mode."""
    maps, sizes = [MapShape(CHANNELS, 16)], {"width": WIDTH, "heads": 2}
    host = build_host("segmenter", num_classes=num_classes, maps=maps, kappa=3, options=sizes).eval()
    branch = build_branch(kind, host, num_classes=num_classes, in_channels=CHANNELS, options=options)
    assert branch is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [*host.parameters(), *branch.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return host, branch.eval()


def maps(images: int) -> Tensor:
    return torch.randn(images, CHANNELS, 3, 4, generator=torch.Generator().manual_seed(images))


@pytest.fixture(params=VARIANTS, ids=str)
def built(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    return network(*request.param)


def test_an_unknown_branch_is_refused_with_the_known_ones() -> None:
    host = network("pooled", {})[0]
    with pytest.raises(
        UserError, match=r"labels.head = 'nosuch' is unknown; there are: decoder, encoder, group, pooled"
    ):
        build_branch("nosuch", host, num_classes=K, in_channels=CHANNELS, options={})
    with pytest.raises(UserError, match=r"labels\.options\.poled.*did you mean pooled"):
        build_branch("encoder", host, num_classes=K, in_channels=CHANNELS, options={"poled": 2})


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_host_without_class_embeddings_cannot_share_them(kind: str) -> None:
    with pytest.raises(UserError, match=r"no class embeddings to share; use labels.head pooled"):
        build_branch(kind, nn.Linear(1, 1), num_classes=K, in_channels=CHANNELS, options={})


def test_there_is_one_logit_per_label_and_the_host_takes_what_was_seen(built: tuple[nn.Module, nn.Module]) -> None:
    host, branch = built
    features = maps(2)
    seen: Seen = branch(host, features, None)
    assert seen.label_logits is not None
    assert (seen.label_logits.shape, seen.label_logits.dtype) == ((2, K), torch.float32)
    ranking = top_kappa(seen.label_logits.sigmoid(), 3)
    logits = host(seen, ranking).rank_logits
    assert logits.shape == (2, 3, 3, 4)
    assert logits.isfinite().all()


def test_a_batch_of_two_is_two_batches_of_one(built: tuple[nn.Module, nn.Module]) -> None:
    """The released head reshapes class tokens as if there were one image, and fails for two."""
    host, branch = built
    features = maps(2)
    together = branch(host, features, None)
    for image in range(2):
        alone = branch(host, features[image : image + 1], None)
        torch.testing.assert_close(together.label_logits[image : image + 1], alone.label_logits, rtol=1e-4, atol=1e-4)
        for tokens, own in ((together.classes, alone.classes), (together.patches, alone.patches)):
            assert (tokens is None) is (own is None)
            if tokens is not None:
                torch.testing.assert_close(tokens[image : image + 1], own, rtol=1e-4, atol=1e-4)


def test_both_losses_reach_every_parameter(built: tuple[nn.Module, nn.Module]) -> None:
    """The label loss reaches the whole branch; the segmentation loss, all of the host, and the branch through the
    tokens that it refines."""
    host, branch = built
    seen = branch(host, maps(2), None)
    ranking = top_kappa(seen.label_logits.detach().sigmoid(), 3)
    logits = host(seen, ranking).rank_logits
    (seen.label_logits.square().sum() + logits.square().sum()).backward()
    for name, parameter in [*host.named_parameters(), *branch.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and (parameter.grad != 0).any(), name


def test_class_tokens_of_the_images_take_the_place_of_the_hosts(built: tuple[nn.Module, nn.Module]) -> None:
    host, branch = built
    own = host.cls_emb.detach().expand(2, -1, -1).clone()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(branch(host, maps(2), own).label_logits, branch(host, maps(2), None).label_logits)


def test_the_refined_tokens_are_the_ones_segmented_with() -> None:
    host, branch = network("encoder", {"heads": 2, "pooled": 2})
    seen = branch(host, maps(1), None)
    ranking = top_kappa(seen.label_logits.sigmoid(), 3)
    assert seen.classes.shape == (1, K, WIDTH)
    refined, own = host(seen, ranking), host(Seen(seen.features), ranking)
    assert not torch.allclose(refined.rank_logits, own.rank_logits, atol=1e-2)


def test_labels_that_see_patches_alone_do_not_depend_on_each_other() -> None:
    """The linear encoder scores a label the same whatever the other labels' embeddings are; the published one not."""
    for attend, independent in (("patches", True), ("all", False)):
        host, branch = network("encoder", {"heads": 2, "pooled": 2, "attend": attend})
        before = branch(host, maps(1), None).label_logits[0, 0]
        with torch.no_grad():
            host.cls_emb[1:] *= -2  # type: ignore[operator, index]
        after = branch(host, maps(1), None).label_logits[0, 0]
        assert bool(torch.isclose(before, after, atol=1e-5)) is independent


def test_the_linear_encoder_has_the_published_ones_parameters() -> None:
    published, linear = (
        network("encoder", {"heads": 2, "pooled": 2, "attend": attend})[1] for attend in ("all", "patches")
    )
    linear.load_state_dict(published.state_dict())
    with pytest.raises(UserError, match="attend = patches needs pooled cells"):
        network("encoder", {"heads": 2, "pooled": 0, "attend": "patches"})


@pytest.mark.parametrize(
    ("kind", "options"), [v for v in VARIANTS if v[0] != "encoder" or v[1].get("attend") == "patches"], ids=str
)
def test_no_tensor_is_quadratic_in_the_labels(kind: str, options: dict[str, Any]) -> None:
    host, branch = network(kind, options, PRIME)
    with Created(host, branch) as created:
        branch(host, maps(2), None)
    assert created.shapes_with(PRIME)
    assert all(shape.count(PRIME) == 1 for shape in created.shapes_with(PRIME))


def test_a_branch_may_start_from_how_common_labels_are(built: tuple[nn.Module, nn.Module]) -> None:
    """With everything else zero, the logits are the log odds."""
    host, branch = built
    frequency = torch.tensor([0.5, 0.9, 0.1, 0.2, 0.7])
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.zero_()
    branch.set_prior(frequency)  # type: ignore[operator]
    torch.testing.assert_close(branch(host, maps(2), None).label_logits.sigmoid(), frequency.expand(2, -1))


def test_a_branch_that_can_learn_from_some_labels_gives_their_logits_and_ranks_all_as_before(
    built: tuple[nn.Module, nn.Module],
) -> None:
    host, branch = built
    if not getattr(branch, "samples_labels", False):
        return
    labels = torch.tensor([4, 1])
    whole, seen = branch(host, maps(2), None), branch(host, maps(2), None, labels)
    torch.testing.assert_close(seen.label_logits, whole.label_logits)
    assert not seen.label_logits.requires_grad
    everything = branch(host, maps(2), None, torch.arange(K)).learnt_logits
    torch.testing.assert_close(seen.learnt_logits, everything[:, labels])
    own = host.cls_emb.detach().expand(2, -1, -1).clone()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(branch(host, maps(2), own, labels).learnt_logits, seen.learnt_logits)


def test_a_decoder_with_a_shortlist_ranks_the_picked_labels_by_their_own_logits() -> None:
    sizes = {**SMALL["decoder"], "pooled": 0}
    host, branch = network("decoder", {**sizes, "shortlist": 3})
    plain = network("decoder", sizes)[1]
    plain.load_state_dict({k: v for k, v in branch.state_dict().items() if not k.startswith("first.")})
    seen, whole = branch(host, maps(2), None), plain(host, maps(2), None)
    labels = branch.first(maps(2)).topk(3).indices  # type: ignore[operator]
    torch.testing.assert_close(seen.label_logits.gather(1, labels), whole.label_logits.gather(1, labels))
    assert torch.equal(seen.label_logits.topk(3).indices.sort().values, labels.sort().values)
    assert seen.learnt_logits is None and seen.supervised == ()  # there is nothing to learn from in evaluation
    learning = branch.train()(host, maps(2), None)
    assert learning.learnt_logits.shape == (2, K)
    ((weight, first),) = learning.supervised
    assert weight == 1.0 and torch.equal(first, branch.first(maps(2)))  # type: ignore[operator]
    with pytest.raises(UserError, match="shortlist 5 of 5 labels"):
        network("decoder", {**SMALL["decoder"], "shortlist": 5})
