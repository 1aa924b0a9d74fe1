from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kappaseg_core.class_rows import class_tables, give_rows
from kappaseg_core.config import LabelLossConfig, OptimConfig, build
from kappaseg_core.errors import UserError
from kappaseg_core.label_heads import Shortlisted, build_head
from kappaseg_core.structures import Batch
from stage1_multilabel.classifier import Classifier
from stage1_multilabel.config import HeadConfig, Stage1Config
from stage1_multilabel.task import MultiLabelTask

B, C, K = 2, 8, 6
HEADS: dict[str, dict[str, Any]] = {
    "rankseg": {"ffn": 12, "heads": 2, "dropout": 0.0}, "official": {"ffn": 12, "heads": 2, "dropout": 0.0, "chunk": 2},
    "gap": {}, "lse": {},
}  # fmt: skip
TARGETS = torch.tensor([[0, 1, 0, 0, -1, 0], [0, 0, 0, 1, 0, 0]]).float()
OTHERS = 4


def task_for(preset: str = "rankseg", negatives: int | None = None, **changes: Any) -> MultiLabelTask:
    torch.manual_seed(0)
    head = build_head(preset, C, K, **HEADS.get(preset, {}), **changes)
    trunk = nn.Conv2d(3, C, 1)
    return MultiLabelTask(Classifier(trunk, head, K), LabelLossConfig(negatives=negatives))  # type: ignore[arg-type]


def batch(images: int = B) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(images, 3, 3, 4, generator=generator)
    return Batch(("",) * images, image=image, labels=TARGETS.repeat(images // B, 1))


def gradients(task: MultiLabelTask) -> tuple[Tensor, dict[str, Tensor]]:
    task.zero_grad()
    loss, _ = task(batch())
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", HEADS)
def test_a_step_on_sampled_labels_is_on_average_one_on_all(monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """Loss and the gradient of every parameter, the backbone's too, over all draws that there are."""
    loss, expected = gradients(task_for(preset))
    losses, found = [], []
    for chosen in combinations(range(OTHERS), 2):
        order = [*chosen, *(turn for turn in range(OTHERS) if turn not in chosen)]
        monkeypatch.setattr(torch, "randperm", lambda n, order=order, **_: torch.tensor(order))
        value, gradient = gradients(task_for(preset, negatives=2))
        losses.append(value)
        found.append(gradient)
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    assert found[0].keys() == expected.keys()
    for name, whole in expected.items():
        mean = torch.stack([gradient[name] for gradient in found]).mean(0)
        torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("preset", HEADS)
def test_with_enough_negatives_a_step_is_bitwise_one_on_all_labels(preset: str) -> None:
    for changes in {}, {"dropout": 0.5}:
        task, whole = task_for(preset, OTHERS), task_for(preset)
        for each in task, whole:
            for module in each.modules():
                if isinstance(module, nn.Dropout):
                    module.p = changes.get("dropout", 0.0)
        torch.manual_seed(5)
        loss, found = gradients(task)
        torch.manual_seed(5)
        expected, gradient = gradients(whole)
        assert torch.equal(loss, expected)
        assert found.keys() == gradient.keys() and all(torch.equal(found[name], gradient[name]) for name in found)


def test_draws_follow_the_seed_and_all_labels_present_are_in_them() -> None:
    task = task_for(negatives=1)
    found = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        loss, numbers = task(batch())
        found.append(loss.item())
        assert numbers["recall_at_half"] == task_for()(batch())[1]["recall_at_half"]
    assert found[0] == found[1] and len(set(found)) > 2


def test_a_sample_costs_the_labels_in_it() -> None:
    """1 label present and 3 drawn of 1,000: no part of the decoder sees more."""
    torch.manual_seed(0)
    head = build_head("rankseg", C, 1000, **HEADS["rankseg"])
    task = MultiLabelTask(Classifier(nn.Conv2d(3, C, 1), head, 1000), LabelLossConfig(negatives=3))  # type: ignore[arg-type]
    widths = []
    head.decoder[0].register_forward_hook(lambda _, inputs, out: widths.append(out.shape[1]))
    labels = torch.zeros(B, 1000)
    labels[:, 77] = 1
    task(Batch(("",) * B, features=(torch.randn(B, C, 2, 2),), labels=labels))
    assert widths == [4]


def test_the_layer_that_picks_learns_beside_the_head() -> None:
    task = task_for(shortlist=2, shortlist_weight=0.25)
    head = task.model.head
    assert isinstance(head, Shortlisted)
    features = task.model.backbone(batch().image)
    then, first = (task.loss(part(features), TARGETS) for part in (head.then, head.first))
    loss, gradient = gradients(task)
    torch.testing.assert_close(loss, then + 0.25 * first)
    assert {name for name, _ in task.named_parameters()} == gradient.keys()
    groups = task.parameter_groups(OptimConfig())
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in task.parameters())


def test_the_layer_that_picks_learns_from_all_labels_where_the_head_does_not() -> None:
    whole, sampled = (gradients(task_for(negatives=n, shortlist=2))[1] for n in (None, 1))
    name = "model.head.first.linear.weight"
    torch.testing.assert_close(sampled[name], whole[name])
    assert not torch.allclose(sampled["model.head.then.weight"], whole["model.head.then.weight"])


@pytest.mark.parametrize("preset", HEADS)
def test_tables_name_the_rows_of_the_sampled_labels_and_have_the_same_gradients(preset: str) -> None:
    """What optim.selected_rows asks for."""
    found = []
    for told in (False, True):
        task = task_for(preset, negatives=2)
        give_rows(class_tables(task) if told else ())
        torch.manual_seed(2)
        found.append(gradients(task)[1])
    named = {name for name, gradient in found[1].items() if gradient.is_sparse}
    assert named == {name for name, p in task.named_parameters() if p.shape[0] == K}
    torch.testing.assert_close(found[0], {name: gradient.to_dense() for name, gradient in found[1].items()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"negatives": 0}}, "loss.negatives = 0, wanted at least 1"),
        ({"optim": {"selected_rows": True}}, "optim.selected_rows = true, but loss.negatives = null learns all labels"),
        ({"loss": {"negatives": 5}, "head": {"self_attention": "all"}}, "loss.negatives = 5, but with self_att"),
        ({"loss": {"negatives": 5}, "head": {"preset": "group"}}, "loss.negatives = 5, but preset = group has"),
        ({"head": {"shortlist": 5, "self_attention": "not_first"}}, "head.shortlist = 5, but with self_att"),
        ({"head": {"shortlist": 5, "preset": "gap"}}, "head.shortlist = 5, but preset = gap is linear"),
        ({"head": {"shortlist": 5, "preset": "group"}}, "head.shortlist = 5, but preset = group has a query per group"),
        ({"head": {"shortlist": 0}}, "head.shortlist = 0, wanted at least 1"),
        ({"head": {"shortlist_by": "lse"}}, "head.shortlist_by = lse does nothing without a shortlist"),
        ({"head": {"groups": 5}}, "head.groups = 5 does nothing without preset group"),
        ({"head": {"preset": "group", "group_seed": 1}}, "head.group_seed = 1, but only grouping = shuffled draws"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_together_are_one_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Stage1Config, settings)
    assert message in str(caught.value)


def test_what_a_user_sets_reaches_the_head() -> None:
    given = HeadConfig(
        preset="rankseg", shortlist=2, shortlist_by="lse", shortlist_weight=0.5, chunk=2, heads=2, ffn=12
    )
    head = build_head(given.preset, C, K, **given.overrides())
    assert isinstance(head, Shortlisted)
    assert (head.size, head.weight, head.first.pooling, head.then.chunk) == (2, 0.5, "log_sum_exp", 2)
