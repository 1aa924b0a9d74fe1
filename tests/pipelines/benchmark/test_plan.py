"""From settings to steps: what is shared, what stands on what, and what a changed setting makes to be done again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kappaseg_core.errors import UserError
from kappaseg_core.scenes import scene_options
from pipelines.arguments import split_settings
from pipelines.benchmark.config import flat, laid_over, load_benchmark, scheme_of, words
from pipelines.benchmark.expand import EVALUATION, UNREAD, expand
from pipelines.benchmark.inputs import Inputs
from pipelines.benchmark.plan import LATER, Plan, read_step, without
from tests.pipelines.benchmark.conftest import SCHEMES, Bench, ids
from tests.pipelines.conftest import Chain, Refused

ROOT = Path(__file__).parents[3]


def changed(before: Plan, after: Plan) -> set[str]:
    """Steps that are new, or of another fingerprint."""
    old = {step.id: step.fingerprint for step in before.steps.values()}
    return {step.id for step in after.steps.values() if old.get(step.id) != step.fingerprint}


def standing_on(plan: Plan, *names: str) -> set[str]:
    """These steps and all that stand on them."""
    found = set(names)
    for step in plan.steps.values():
        if found.intersection(step.needs):
            found.add(step.id)
    return found


def test_schemes_share_their_classifier_and_its_cache(bench: Bench) -> None:
    plan = bench.plan(("seeds", "0,1"))
    assert ids(plan, "stage1", "rank") == [
        "stage1-q2l-seed-0", "rank-q2l-seed-0", "stage1-q2l-seed-1", "rank-q2l-seed-1",
    ]  # fmt: skip
    assert (
        plan.steps["train-small-seed-1"].needs == plan.steps["train-independent-seed-1"].needs == ("rank-q2l-seed-1",)
    )
    assert plan.steps["measure-told-seed-0"].needs == ("train-baseline-seed-0",)
    assert "train-told-seed-0" not in plan.steps
    assert set(plan.steps["cost"].settings["runs"]) == {"baseline", "independent", "small", "joint"}
    assert set(plan.steps["cost"].settings["classifiers"]) == {"independent", "small"}


def test_every_step_comes_after_those_that_it_needs(bench: Bench) -> None:
    plan = bench.plan(("seeds", "0,1"), ("test_kappas", "1,2"))
    order = ids(plan)
    assert all(order.index(need) < order.index(step.id) for step in plan.steps.values() for need in step.needs)
    assert len({step.folder for step in plan.steps.values()}) == len(order)


def test_features_of_a_frozen_backbone_are_computed_once_for_all_networks_of_a_seed(bench: Bench) -> None:
    frozen = {"stage2": {"backbone.frozen": True, "loop.cached_views": 2}}
    bench.write(**frozen, seeds=[0, 1])
    plan = bench.plan()
    features = ids(plan, "features")
    assert len(features) == 2  # a seed has its own views
    for seed, name in enumerate(features):
        trained = [step for step in plan.steps.values() if step.kind == "train" and step.seed == seed]
        assert len(trained) == 4 and all(name in step.needs for step in trained)
    bench.write(**frozen, schemes={**SCHEMES, "wide": {"stage2": {"source.train": "complete", "augment.crop": 40}}})
    assert len(ids(bench.plan(), "features")) == 2  # another crop, other views
    host = {"stage2": {"source.train": "complete", "host.kind": "upernet"}}
    wider = {"stage2": {**host["stage2"], "host.options": {"width": 64}}}
    bench.write(**frozen, schemes={**SCHEMES, "maps": host, "wider": wider})
    assert len(ids(bench.plan(), "features")) == 2  # four maps, the same for both


def test_further_kappas_are_measured_where_the_ranking_is_cut(bench: Bench) -> None:
    plan = bench.plan(("test_kappas", "1,2,3,9"))
    measured = [(step.scheme, step.kappa) for step in plan.steps.values() if step.kappa]
    assert measured == [("independent", 1), ("independent", 3), ("small", 2), ("small", 3), ("joint", 1), ("joint", 3)]
    assert plan.steps["measure-joint-seed-0-kappa-3"].needs == ("train-joint-seed-0",)
    assert plan.notes == ["test_kappas 9: there are only 4 classes; left out"]


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        (("stage1.loop.steps", "9"), ["stage1-q2l-seed-0"]),
        (("rankers.q2l.optim.lr", "5e-3"), ["stage1-q2l-seed-0"]),
        (("rank.part_images", "3"), ["rank-q2l-seed-0"]),
        (("stage2.loop.steps", "9"), [f"train-{n}-seed-0" for n in ("baseline", "independent", "small", "joint")]),
        (("schemes.joint.stage2.labels.weight", "0.5"), ["train-joint-seed-0"]),
        (("schemes.independent.stage2.optim.lr", "0.5"), ["train-independent-seed-0", "train-small-seed-0"]),
        (("schemes.told.stage2.inference.flip", "true"), ["measure-told-seed-0"]),
        (("baseline", "joint"), ["cost"]),
        (("gallery", "2"), [f"measure-{name}-seed-0" for name in SCHEMES]),
    ],
)  # fmt: skip
def test_a_changed_setting_changes_what_stands_on_it_and_nothing_else(
    bench: Bench, setting: tuple[str, str], first: list[str]
) -> None:
    before, after = bench.plan(), bench.plan(setting)
    assert changed(before, after) == standing_on(after, *first)


@pytest.mark.parametrize(
    "same",
    [("stage2.loop.loader_workers", "2"), ("stage1.loop.save_every", "1"), ("schemes.joint.label", "ours"),
     ("name", "x"), ("threads", "2"), ("attempts", "9"), ("data.root", "elsewhere"),
     ("out", "elsewhere")],
)  # fmt: skip
def test_settings_that_change_no_result_change_no_fingerprint(bench: Bench, same: tuple[str, str]) -> None:
    assert changed(bench.plan(), bench.plan(same)) == set()


def test_settings_that_came_later_change_a_step_only_where_they_are_given(bench: Bench) -> None:
    """Records of before keep their worth: steps are not done again because the program can do more."""
    plan = bench.plan()
    for name in ("stage1-q2l-seed-0", "train-joint-seed-0"):
        step = plan.steps.pop(name)
        before = without(step.settings, LATER)
        assert before != step.settings
        assert plan.add(replace(step, settings=before)).fingerprint == step.fingerprint
    for new in ({"head.self_attention": "all"}, {"loss.negatives": 1}):
        bench.write(stage1=new)
        assert changed(plan, bench.plan()) == standing_on(plan, "stage1-q2l-seed-0")


def test_a_later_setting_of_zero_is_not_one_that_was_not_given() -> None:
    """head.shortlist_weight is 1 where it is null."""
    settings = {"head": {"shortlist_weight": 0.0, "groups": None}, "loop": {"compile": False}}
    assert without(settings, (), LATER) == {"head": {"shortlist_weight": 0.0}, "loop": {}}


def test_other_images_or_another_weight_file_change_everything(bench: Bench, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    plans = [bench.plan(), bench.plan(data="others"), bench.plan(("backbone.weights", str(weights)))]
    assert changed(plans[0], plans[1]) == set(ids(plans[1]))
    assert changed(plans[0], plans[2]) == set(ids(plans[2]))
    copy = tmp_path / "copy"
    copy.write_bytes(b"one")
    assert changed(plans[2], bench.plan(("backbone.weights", str(copy)))) == set()


def test_a_further_scheme_leaves_the_others_as_they_are(bench: Bench) -> None:
    before = bench.plan()
    bench.write(schemes={"first": {"stage2": {"source.train": "oracle"}}, **SCHEMES}, seeds=[0, 1])
    after = bench.plan()
    kept = {name for name in ids(before) if name != "cost"}
    assert not kept & changed(before, after)
    assert "train-first-seed-0" in changed(before, after)


def test_only_does_the_schemes_named_with_what_they_stand_on(bench: Bench) -> None:
    plan = bench.plan(("only", "told,small"))
    assert set(plan.schemes) == {"told", "small"}
    assert {step.scheme for step in plan.steps.values() if step.kind == "train"} == {"baseline", "small"}


def test_a_plan_is_read_as_it_was_written(bench: Bench) -> None:
    plan = bench.plan(("test_kappas", "1"))
    bench.out.mkdir()
    plan.write()
    assert [read_step(bench.out, name) for name in plan.steps] == list(plan.steps.values())
    with pytest.raises(UserError, match="no step 'train-x'"):
        read_step(bench.out, "train-x")


# Settings over settings


def test_a_group_changes_what_it_names_and_a_preset_replaces_its_group() -> None:
    under = {"loop": {"steps": 5, "batch_size": 2}, "head": {"preset": "fast", "width": 8}}
    over = {"loop.steps": 7, "head": {"preset": "gap"}}
    assert laid_over(under, over) == {"loop.batch_size": 2, "loop.steps": 7, "head": {"preset": "gap"}}
    assert words({"a": {"b": None, "c": [1, 2]}, "d": "x"}) == [("a.b", "null"), ("a.c", "[1, 2]"), ("d", '"x"')]


LEAVES = st.one_of(st.integers(), st.booleans(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
GROUPS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.one_of(LEAVES, inner), max_size=3),
    max_leaves=8,
)


@given(GROUPS, GROUPS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_upper_settings_win_and_the_lower_ones_stay(under: dict[str, Any], over: dict[str, Any]) -> None:
    both = laid_over(under, over)
    assert both == {**flat(under), **flat(over)}
    assert list(both)[len(both) - len(flat(over)) :] == list(flat(over))
    assert flat(both) == both


def test_the_command_line_wins_over_the_file(bench: Bench) -> None:
    bench.write(stage2={"loop": {"steps": 5}, "loop.batch_size": 2})
    plan = bench.plan(
        ("stage2.loop.steps", "7"), ("schemes.joint.stage2.loop.steps", "8"), ("stage2.loop.batch_size", "4")
    )
    loops = {name: plan.steps[f"train-{name}-seed-0"].settings["loop"] for name in ("baseline", "joint")}
    assert [(loop["steps"], loop["batch_size"]) for loop in loops.values()] == [(7, 4), (8, 4)]


def test_a_scheme_takes_over_what_it_extends(bench: Bench) -> None:
    small = scheme_of(load_benchmark(bench.file), "small")
    assert (small.ranker, small.label, small.stage2) == ("q2l", "small", {"source.kappa": 1})


# Mistakes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schemes": {}}, "schemes is empty"),
        ({"baseline": "base"}, "baseline = 'base' is unknown; schemes has: baseline, independent"),
        ({"only": ["x"]}, "only = 'x' is unknown"),
        ({"seeds": []}, "seeds = [], wanted at least one"),
        ({"seeds": [1, 1]}, "seeds = [1, 1], wanted at least one, each once"),
        ({"attempts": 0}, "attempts = 0, wanted at least 1"),
        ({"test_kappas": [0]}, "test_kappas = [0], wanted whole numbers from 1"),
        ({"stage3": {}}, "unknown setting stage3"),
        ({"stage2": {"loop.stepz": 1}}, "unknown setting loop.stepz; did you mean steps?"),
        ({"stage2": {"out": "x"}}, "stage2.out: the benchmark itself decides this"),
        ({"rankers": {"q2l": {"loop": {"seed": 1}}}}, "rankers.q2l.loop.seed: the benchmark itself decides this"),
        ({"files": {"stage1": "nowhere.yaml"}}, "nowhere.yaml does not exist"),
        ({"weights": "nowhere.pth"}, "nowhere.pth: there is no such file"),
        ({"rankers": {"q2l": {}, "baseline": {}}}, "schemes.baseline and rankers.baseline would have one folder"),
        ({"schemes": {**SCHEMES, "features": {}}}, "schemes.features and the folder of features would have one folder"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(bench: Bench, values: dict[str, Any], message: str) -> None:
    bench.write(**values)
    with pytest.raises(UserError) as caught:
        expand(load_benchmark(bench.file), UNREAD, bench.out, bench.home)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"ranker": "gap"}, "schemes.x.ranker = 'gap' is unknown; rankers has: q2l"),
        ({"extends": "y"}, "schemes.x.extends = 'y' is unknown"),
        ({"extends": "x"}, "schemes extend each other: x → x"),
        ({"of": "told"}, "schemes.x.of = 'told' trains no network of its own"),
        ({"stage2": {"source.train": "cache"}}, "schemes.x: its rankings are from a label cache; set its ranker"),
        ({"of": "baseline", "stage2": {"source.test": "cache"}}, "rankings at test are from a label cache"),
        (
            {"of": "baseline", "stage2": {"host.options.width": 4}},
            "host.options.width is part of the network of baseline",
        ),
        ({"of": "baseline", "seeds": [0, 5]}, "schemes.x.seeds: baseline is not trained with seed 5"),
        ({"stage2": {"source.train": "joint"}}, "schemes.x: "),
        ({"folds": 1}, "schemes.x.folds = 1, wanted 0"),
        ({"sauce": 1}, "unknown setting schemes.x.sauce"),
    ],
)
def test_a_mistake_in_a_scheme_names_it(bench: Bench, scheme: dict[str, Any], message: str) -> None:
    bench.write(schemes={**SCHEMES, "x": scheme})
    with pytest.raises(UserError) as caught:
        expand(load_benchmark(bench.file), UNREAD, bench.out, bench.home)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_ranker_or_scheme_on_the_command_line_is_refused(bench: Bench) -> None:
    for name in ("rankers.gap.optim.lr", "schemes.gap.stage2.optim.lr"):
        with pytest.raises(UserError, match=f"--{name}: .* has no 'gap'"):
            load_benchmark(bench.file, [(name, "1")])


def test_an_evaluation_may_change_what_kappaseg_evaluate_may() -> None:
    from pipelines.evaluate import may_change

    assert all(may_change(name) for name in EVALUATION)


def test_a_mistake_is_told_before_torch_is_loaded_and_leaves_nothing(bench: Bench) -> None:
    bench.write(schemes={"baseline": {"stage2": {"source.train": "cache"}}})
    script = (
        "import sys; from pipelines.cli import main\n"
        f"status = main(['benchmark', {str(bench.file)!r}])\n"
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kappaseg: schemes.baseline: ") and len(done.stderr.splitlines()) == 1
    assert not bench.out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.root", "nowhere"], "data.root = "),
        (["--local", "--ray.address", "auto"], "--local and --ray.address exclude each other"),
        (["--stage2"], "setting --stage2 has no value"),
        (["--seeds", "one"], "seeds[0] = 'one', wanted a whole number"),
    ],
)
def test_the_command_line_is_refused_in_one_line(fresh: Chain, refused: Refused, more: list[str], message: str) -> None:
    schemes = {"baseline": {"stage2": {"source.train": "complete"}}}
    (fresh.home / "benchmark.yaml").write_text(yaml.safe_dump({"schemes": schemes}))
    refused(fresh, ["benchmark", "benchmark.yaml", "--data.root", str(fresh.data), "--out", "out", *more], message)


# Settings files


@pytest.mark.parametrize("name", sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*/benchmark*.yaml")))
def test_a_settings_file_leads_to_a_plan_and_says_how_it_is_used(name: str, tmp_path: Path) -> None:
    path = ROOT / name
    used = f"#   kappaseg benchmark {name} "
    (line,) = (line for line in path.read_text("utf-8").splitlines() if line.startswith(used))
    weights = tmp_path / "weights"
    weights.touch()
    given = (
        line.removeprefix(used).replace("[", "").replace("]", "").replace("mobilenetv2_100.safetensors", str(weights))
    )
    config = load_benchmark(path, split_settings(given.split()))
    scene_options(config.data)
    plan = expand(config, Inputs("images", 171), tmp_path, path.parent)
    kinds = {"baseline": "complete", "independent": "cache", "joint": "joint", "oracle": "oracle"}
    # some compare variants of one scheme, or hosts without a classifier; a study of hosts has all schemes of each
    wanted = {name: kinds[kind] for name in plan.schemes if (kind := name.rpartition("-")[2]) in kinds}
    assert config.baseline in wanted
    assert {name: plan.schemes[name]["source"] for name in wanted} == wanted
