"""From what the steps left to means, intervals, differences and verdicts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kappaseg_core.errors import UserError
from pipelines.benchmark import intervals
from pipelines.benchmark.compare import Comparison, Difference
from pipelines.benchmark.intervals import ImageCounts, draws, resampled_miou, t_interval, t_quantile
from pipelines.benchmark.records import read_records
from pipelines.benchmark.results import lists_in_lines, write_results
from pipelines.benchmark.tables import accuracy_table
from tests.pipelines.benchmark.made_up import SCHEMES, MadeUp, make_up

#: what the demand names for every scheme
WANTED = ("params", "macs", "map", "coverage", "miou", "train_seconds", "peak_memory", "images_per_second")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole benchmark with its results. Not to be changed: copy it."""
    out = make_up(tmp_path_factory.mktemp("made") / "out")
    write_results(out)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture(scope="module")
def results(made: Path) -> dict[str, Any]:
    return dict(json.loads((made / "results.json").read_text()))


def measurement(out: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((out / "measures" / name / "measurement.json").read_text()))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    # two-sided 95 %: any table of Student's distribution, for example NIST/SEMATECH e-Handbook 1.3.6.7.2
    ("freedom", "wanted"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (100, 1.984)],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(freedom: int, wanted: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(wanted, abs=5e-4)


def test_the_interval_of_three_runs_by_hand() -> None:
    low, high = t_interval([1.0, 2.0, 3.0]) or (0, 0)
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)


def test_one_run_has_no_interval() -> None:
    assert t_interval([0.5]) is None


def two_images() -> ImageCounts:
    """Image 0: label 0, 3 of 4 right, the fourth taken for label 1. Image 1: label 1, 2 of 2 right."""
    columns = {"image": [0, 0, 1], "label": [0, 1, 1], "right": [3, 0, 2], "predicted": [3, 1, 2], "truth": [4, 0, 2]}
    return ImageCounts(
        **{name: np.array(values) for name, values in columns.items()}, image_ids=("a", "b"), num_classes=4
    )


def test_resampled_miou_by_hand() -> None:
    found = resampled_miou(two_images(), np.array([[1, 1], [2, 0], [0, 2]], float))
    # both: IoU 3/4 and 2/3; the first alone: 6/8, and 0 for the label that is only predicted; the second alone: 1
    assert found == pytest.approx([(3 / 4 + 2 / 3) / 2, (3 / 4 + 0) / 2, 1])


def test_labels_may_be_summed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resampled_miou(two_images(), draws(2, 20))
    monkeypatch.setattr(intervals, "CELLS_AT_ONCE", 2)
    assert (resampled_miou(two_images(), draws(2, 20)) == whole).all()


def test_a_resample_has_as_many_images_as_the_split_and_is_drawn_the_same_each_time() -> None:
    assert (draws(7, 50).sum(1) == 7).all()
    assert (draws(7, 50) == draws(7, 50)).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(-1, 1))
def test_an_interval_moves_with_its_values(values: list[float], by: float) -> None:
    here, there = t_interval(values), t_interval([value + by for value in values])
    assert here is not None and there is not None
    assert there == pytest.approx((here[0] + by, here[1] + by), abs=1e-9)


def test_a_scheme_does_not_differ_from_itself(made: Path) -> None:
    found = Comparison(read_records(made)).difference("both", "both")
    assert found is not None
    assert (found.mean, found.interval, found.seeds_interval) == (0, (0, 0), (0, 0))


def test_a_difference_is_over_pairs_of_one_seed(made: Path, results: dict[str, Any]) -> None:
    gains = [
        measurement(made, f"both-seed-{s}")["mIoU"] - measurement(made, f"plain-seed-{s}")["mIoU"] for s in range(3)
    ]
    found = results["schemes"]["both"]["miou_difference"]
    assert found["mean"] == pytest.approx(np.mean(gains))
    assert found["seeds_interval"] == pytest.approx(t_interval(gains))
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    assert results["schemes"]["plain"]["miou_difference"] is None


def test_the_interval_over_images_is_of_the_mean_over_seeds(made: Path, results: dict[str, Any]) -> None:
    counts = {name: [ImageCounts.read(made / "measures" / f"{name}-seed-{s}" / "images.npz") for s in range(3)]
              for name in ("both", "plain")}  # fmt: skip
    weights = draws(len(counts["both"][0].image_ids))
    ours, theirs = (np.mean([resampled_miou(c, weights) for c in counts[name]], axis=0) for name in ("both", "plain"))
    found, spread = results["schemes"]["both"]["miou_difference"], ours - theirs
    shift = found["mean"] - spread.mean()
    assert found["interval"] == pytest.approx(np.quantile(spread, [0.025, 0.975]) + shift)


def test_labels_of_one_image_each_do_not_move_the_interval_away_from_what_was_measured() -> None:
    """Half of them right in all pixels, the others never, and one common label: a resample lacks a third of them."""
    rng, images = np.random.default_rng(0), 200
    rare = np.arange(images)
    right = np.where(rare % 2, 100, 0)
    label = np.concatenate([np.full(images, images), rare])
    counts = ImageCounts(
        np.concatenate([rare, rare]), label, np.concatenate([rng.integers(0, 10, images), right]),
        np.concatenate([np.full(images, 10), right]), np.full(2 * images, 100), tuple(map(str, rare)), images + 1,
    )  # fmt: skip
    measured = resampled_miou(counts, np.ones((1, images)))[0]
    low, high = intervals.interval_around(measured, resampled_miou(counts, draws(images)))
    assert low < measured < high and 0.05 < high - low < 0.3


def test_every_scheme_has_the_wanted_numbers(results: dict[str, Any]) -> None:
    trained = [entry for name, entry in results["schemes"].items() if SCHEMES[name].of is None]
    assert all(isinstance(entry[name], float) for entry in trained for name in WANTED)
    assert results["missing"] == []


def test_means_are_those_of_the_measurements(made: Path, results: dict[str, Any]) -> None:
    values = [measurement(made, f"two-seed-{seed}") for seed in range(3)]
    entry = results["schemes"]["two"]
    for name, key in (("miou", "mIoU"), ("map", "mAP_raw"), ("coverage", "pixel_coverage"), ("recall", "recall")):
        assert entry[name] == pytest.approx(np.mean([value[key] for value in values]))
        assert entry[f"{name}_interval"] == pytest.approx(t_interval([value[key] for value in values]))
    assert entry["class_iou"] == pytest.approx(np.mean([v["classes"]["iou"] for v in values], axis=0), abs=1e-6)


def test_the_training_cost_of_the_independent_scheme_has_all_its_parts(made: Path, results: dict[str, Any]) -> None:
    steps = {run["step"]: run["seconds"] for run in results["runs"]}
    wanted = np.mean(
        [sum(steps[f"{kind}-seed-{s}"] for kind in ("stage1-good", "rank-good", "train-two")) for s in range(3)]
    )
    entry = results["schemes"]["two"]
    assert entry["train_seconds"] == pytest.approx(wanted)
    assert entry["train_seconds"] == pytest.approx(
        sum(entry[f"{part}_seconds"] for part in ("classifier", "ranking", "network"))
    )
    assert (entry["params"], entry["classifier_params"], entry["peak_memory"]) == (7e6, 5e6, 300)
    assert "classifier_seconds" not in results["schemes"]["both"]
    assert results["schemes"]["both"]["params"] == 2e6


def test_processor_time_is_told_only_where_all_of_it_is_known(out: Path) -> None:
    before = write_results(out)["schemes"]["mt"]
    assert before["train_cpu_seconds"] == before["train_seconds"]  # as made up
    for seed in range(3):
        change(out / "steps" / f"train-mt-seed-{seed}.json", attempts=2)
    assert "train_cpu_seconds" not in write_results(out)["schemes"]["mt"]


def test_a_ranking_that_another_one_waited_for_costs_it_nothing(out: Path) -> None:
    before = write_results(out)["schemes"]["two"]["ranking_seconds"]
    plan = json.loads((out / "plan.json").read_text())
    plan["steps"]["rank-good-seed-0"]["needs"].append("rank-weak-seed-0")
    change(out / "plan.json", steps=plan["steps"])
    assert write_results(out)["schemes"]["two"]["ranking_seconds"] == before


def test_labels_are_grouped_by_training_images(made: Path, results: dict[str, Any]) -> None:
    groups = results["classes"]["groups"]
    assert {name: group["train_images"] for name, group in groups.items()} == {
        "rare": [1, 3], "common": [4, 6], "frequent": [7, 9],
    }  # fmt: skip
    rare = [np.mean(measurement(made, f"told-seed-{seed}")["classes"]["iou"][:3]) for seed in range(3)]
    assert results["schemes"]["told"]["miou_rare"] == pytest.approx(np.mean(rare))


def test_another_kappa_at_test_stands_apart(made: Path, results: dict[str, Any]) -> None:
    entry = results["schemes"]["both"]
    assert set(entry["kappas"]) == {"2", "8"}
    wanted = np.mean([measurement(made, f"both-seed-{seed}-kappa-2")["mIoU"] for seed in range(3)])
    assert entry["kappas"]["2"]["miou"] == pytest.approx(wanted)
    assert entry["miou"] != entry["kappas"]["2"]["miou"]


def test_calibration_of_several_seeds_is_one_diagram(made: Path, results: dict[str, Any]) -> None:
    runs = [measurement(made, f"two-seed-{seed}")["calibration"]["bins"] for seed in range(3)]
    pooled = results["schemes"]["two"]["calibration"]
    assert sum(b["count"] for b in pooled) == sum(b["count"] for bins in runs for b in bins)
    first = [b for bins in runs for b in bins if b["bin"] == pooled[0]["bin"]]
    share = sum(b["count"] * b["observed"] for b in first) / sum(b["count"] for b in first)
    assert pooled[0]["observed"] == pytest.approx(share)
    assert results["schemes"]["told"]["calibration"] is None


def test_roles_are_told_from_the_networks_and_not_from_names(results: dict[str, Any]) -> None:
    assert results["roles"] == {
        "baseline": "plain", "independent": "two", "joint": "both", "oracle": "told", "MT": "mt", "MT+LS": "sorted",
        "MT+LS+RA": "both",
    }  # fmt: skip


def test_a_temperature_per_rank_is_held_against_the_same_network_without_it(tmp_path: Path) -> None:
    schemes = {
        "plain": MadeUp("complete", 0.4), "forced": MadeUp("joint", 0.6, labels="encoder", missed="force"),
        "sorted": MadeUp("joint", 0.5, labels="encoder", rank_scale="shared_norm"),
        "published": MadeUp("joint", 0.5, labels="encoder"),
    }  # fmt: skip
    found = write_results(make_up(tmp_path / "all", schemes, seeds=(0,)))["roles"]
    assert (found["joint"], found["MT+LS"], found["MT+LS+RA"]) == ("forced", "sorted", "published")
    del schemes["published"]
    assert "MT+LS+RA" not in write_results(make_up(tmp_path / "fewer", schemes, seeds=(0,)))["roles"]


def test_the_baseline_of_the_paper_is_the_plain_network_whatever_is_compared_with(out: Path) -> None:
    change(out / "plan.json", baseline="both")
    found = write_results(out)
    assert found["roles"]["baseline"] == "plain"
    assert found["schemes"]["both"]["miou_difference"] is None
    compared = {claim["claim"]: (claim["better"], claim["worse"]) for claim in found["claims"]}
    assert compared["the joint scheme beats the baseline"] == ("both", "plain")


def test_a_claim_on_one_scheme_alone_says_so(tmp_path: Path) -> None:
    schemes = {"plain": MadeUp("complete", 0.4), "both": MadeUp("joint", 0.6, labels="encoder", rank_scale="shared")}
    missing = write_results(make_up(tmp_path / "out", schemes, seeds=(0,)))["missing"]
    assert not [line for line in missing if line.endswith("no scheme that is ")]


def test_longer_training_is_compared_with_longer_training(tmp_path: Path) -> None:
    schemes = {
        "plain": MadeUp("complete", 0.4), "two": MadeUp("cache", 0.6, ranker="good"),
        "longer plain": MadeUp("complete", 0.9, steps=20),
        "longer two": MadeUp("cache", 0.6, ranker="good", steps=20),
        "longest two": MadeUp("cache", 0.9, ranker="good", steps=30),
    }  # fmt: skip
    claims = write_results(make_up(tmp_path / "out", schemes))["claims"]
    found = {claim["claim"]: (claim["better"], claim["worse"], claim["verdict"]) for claim in claims}
    assert found == {
        "the independent scheme beats the baseline": ("two", "plain", "holds"),
        "the independent scheme beats the baseline, 20 steps": ("longer two", "longer plain", "does not hold"),
    }


def test_rankers_are_compared_where_nothing_else_differs(out: Path) -> None:
    for seed in range(3):
        change(
            out / "measures" / f"two-weak-seed-{seed}" / "measurement.json",
            source={"train": "oracle", "test": "cache"},
        )
    assert not [claim for claim in write_results(out)["claims"] if "follows the ranker" in claim["claim"]]


def test_a_scheme_of_fewer_seeds_is_compared_over_those_that_both_have(out: Path) -> None:
    for seed in (1, 2):
        (out / "steps" / f"measure-plain-seed-{seed}.json").unlink()
    found = write_results(out)
    ours, theirs = measurement(out, "both-seed-0"), measurement(out, "plain-seed-0")
    entry = found["schemes"]["both"]
    assert entry["miou_difference"]["mean"] == pytest.approx(ours["mIoU"] - theirs["mIoU"])
    gains = np.array(ours["classes"]["iou"]) - np.array(theirs["classes"]["iou"])
    assert entry["class_iou_gain"] == pytest.approx(gains, abs=1e-6)
    table = accuracy_table(found)
    assert table is not None and table.columns[1] == "seeds"
    assert {str(row[0]): row[1] for row in table.rows}["scheme plain"] == 1


def test_seeds_are_no_column_where_all_have_the_same(results: dict[str, Any]) -> None:
    table = accuracy_table(results)
    assert table is not None and "seeds" not in table.columns


def test_times_against_another_scheme_are_not_times_of_the_baseline(out: Path) -> None:
    assert write_results(out)["schemes"]["both"]["latency_ratio"] > 0
    change(out / "cost" / "cost.json", baseline="mt")
    found = write_results(out)["schemes"]["both"]
    assert "latency_ratio" not in found and found["latency_p50_ms"] > 0


def test_the_classifier_that_counts_is_the_one_that_ranks_at_test(tmp_path: Path) -> None:
    schemes = {
        "plain": MadeUp("complete", 0.4), "two": MadeUp("cache", 0.5, ranker="good"),
        "swapped": MadeUp("cache", 0.45, of="two", ranker="large"),
    }  # fmt: skip
    out = make_up(tmp_path / "out", schemes, seeds=(0,))
    change(out / "seed-0/large/stage1/summary.json", parameters=50_000_000)
    found = write_results(out)["schemes"]
    assert (found["two"]["params"], found["swapped"]["params"]) == (7e6, 52e6)


def test_the_time_of_a_ranking_that_was_started_again_is_not_known(out: Path) -> None:
    for seed in range(3):
        change(out / "steps" / f"rank-good-seed-{seed}.json", attempts=2)
    found = write_results(out)["schemes"]["two"]
    assert found["train_seconds"] is None and found["network_seconds"] > 0


def test_each_row_has_the_commit_of_its_step(out: Path) -> None:
    change(out / "steps" / "measure-both-seed-1.json", commit="1" * 40)
    assert write_results(out)["commits"] == ["0" * 40, "1" * 40]
    rows = pq.read_table(out / "results.parquet").to_pylist()
    newer = {row["step"] for row in rows if row["commit"] == "1" * 40}
    assert newer == {"measure-both-seed-1"}


def test_accuracy_is_held_against_the_ranker(results: dict[str, Any]) -> None:
    claim = next(claim for claim in results["claims"] if "follows the ranker" in claim["claim"])
    assert (claim["better"], claim["worse"]) == ("two", "two-weak")


@pytest.mark.parametrize(
    ("images", "seeds", "wanted"),
    [
        ((0.1, 0.2), (0.05, 0.3), "holds"),
        ((0.1, 0.2), (-0.05, 0.3), "not decided"),
        ((-0.1, 0.2), (0.05, 0.3), "not decided"),
        ((-0.2, -0.1), (-0.3, -0.05), "does not hold"),
        ((0.1, 0.2), None, "holds"),
    ],
)
def test_a_claim_is_decided_only_where_images_and_seeds_agree(
    images: tuple[float, float], seeds: tuple[float, float] | None, wanted: str
) -> None:
    from pipelines.benchmark.claims import verdict

    assert verdict(Difference(0.1, images, seeds, (0, 1))) == wanted


def test_every_row_says_where_it_comes_from(made: Path, results: dict[str, Any]) -> None:
    rows = pq.read_table(made / "results.parquet").to_pylist()
    assert set(rows[0]) == {
        "scheme", "seed", "kappa", "split", "measure", "value", "step", "run", "fingerprint", "commit",
    }  # fmt: skip
    steps = {run["step"]: run for run in results["runs"]}
    assert all(row["fingerprint"] == steps[row["step"]]["fingerprint"] and row["commit"] == "0" * 40 for row in rows)
    assert all((made / row["run"]).is_dir() for row in rows)
    own = [row["value"] for row in rows if (row["scheme"], row["kappa"], row["measure"]) == ("both", None, "miou")]
    assert np.mean(own) == pytest.approx(results["schemes"]["both"]["miou"])
    late = {row["run"] for row in rows if row["scheme"] == "told-late" and row["measure"] == "miou"}
    assert late == {"seed-0/plain", "seed-1/plain", "seed-2/plain"}


def test_results_name_no_place_of_the_machine(made: Path) -> None:
    assert str(made.parent) not in (made / "results.json").read_text()


def test_lists_stand_in_one_line_and_mean_the_same() -> None:
    values = {"a": [1, 2.5, None], "names": ["x, y", "[z]", "{"], "deep": [[1, 2], [3]], "none": []}
    text = lists_in_lines(json.dumps(values, indent=1))
    assert json.loads(text) == values
    assert '"a": [1, 2.5, null]' in text and "[3]" in text


def test_the_same_files_give_the_same_results(out: Path) -> None:
    before = (out / "results.json").read_bytes()
    write_results(out)
    assert (out / "results.json").read_bytes() == before


def test_a_measurement_that_is_not_there_is_named_and_the_others_stand(out: Path) -> None:
    (out / "steps" / "measure-two-seed-1.json").unlink()
    found = write_results(out)
    assert "measure-two-seed-1: not done" in found["missing"]
    assert found["schemes"]["two"]["seeds"] == [0, 2]
    assert found["schemes"]["two"]["miou_difference"]["seeds"] == [0, 2]


def test_a_step_of_other_settings_is_not_taken(out: Path) -> None:
    change(out / "steps" / "train-two-seed-0.json", fingerprint="another")
    found = write_results(out)
    assert any("train-two-seed-0: made with other settings" in line for line in found["missing"])
    assert found["schemes"]["two"]["train_seconds"] is not None  # of the other two seeds
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert not [row for row in rows if (row["scheme"], row["seed"], row["measure"]) == ("two", 0, "train_seconds")]


def test_costs_that_nobody_measured_are_missing_and_not_zero(out: Path) -> None:
    shutil.rmtree(out / "cost")
    found = write_results(out)
    assert any(line.startswith("cost:") for line in found["missing"])
    assert found["schemes"]["both"]["macs"] is None and found["schemes"]["both"]["images_per_second"] is None


def test_two_schemes_and_one_seed_are_a_benchmark(tmp_path: Path) -> None:
    two = {"plain": MadeUp("complete", 0.4), "told": MadeUp("oracle", 0.9)}
    found = write_results(make_up(tmp_path / "out", two, seeds=(4,)))
    assert found["schemes"]["told"]["miou_interval"] is None
    assert found["schemes"]["told"]["miou_difference"]["seeds_interval"] is None
    assert [claim["claim"] for claim in found["claims"]] == ["known labels would gain over the baseline"]
    assert any("no scheme that is joint" in line for line in found["missing"])


def test_nothing_measured_yet_is_no_error(tmp_path: Path) -> None:
    out = make_up(tmp_path / "out", {"plain": MadeUp("complete", 0.4)}, seeds=(0,))
    for path in (out / "steps").iterdir():
        path.unlink()
    found = write_results(out)
    assert found["schemes"]["plain"]["miou"] is None
    assert {line.rpartition(": ")[2] for line in found["missing"]} >= {"not done"}


def test_other_images_are_not_compared(out: Path) -> None:
    for seed in range(3):
        path = out / "measures" / f"both-seed-{seed}" / "images.npz"
        with np.load(path) as file:
            columns = dict(file)
        columns["image_ids"] = np.array([f"other-{name}" for name in columns["image_ids"]])
        np.savez(path, **columns)
    found = write_results(out)
    assert found["schemes"]["both"]["miou_difference"] is None
    assert any("not measured on the same images" in line for line in found["missing"])


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no plan\.json"):
        write_results(tmp_path)


def test_the_quality_of_segments_stands_beside_miou_where_it_was_measured(out: Path, results: dict[str, Any]) -> None:
    """Two schemes of objects, one of them on data without stuff; benchmarks without any have no such column."""
    before = accuracy_table(results)
    assert before is not None and not any("PQ" in text for text in (*before.columns, before.note))
    for name, stuff in (("plain", 0.5), ("both", None)):
        for seed in range(3):
            segments = {"PQ": 0.3 + seed / 10, "SQ": 0.8, "RQ": 0.6, "PQ_things": 0.25, "PQ_stuff": stuff, "labels": 3}
            change(out / "measures" / f"{name}-seed-{seed}" / "measurement.json", panoptic=segments)
    found = write_results(out)
    assert found["schemes"]["plain"]["pq"] == pytest.approx(0.4)
    low, high = found["schemes"]["plain"]["pq_interval"]
    assert low < 0.4 < high
    table = accuracy_table(found)
    assert table is not None and "PQ, SQ, RQ: panoptic" in table.note
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert cells["scheme plain"]["PQ"] == pytest.approx(40) and cells["scheme plain"]["PQ, stuff"] == pytest.approx(50)
    assert cells["scheme both"]["PQ, stuff"] is None and cells["scheme told"]["PQ"] is None
