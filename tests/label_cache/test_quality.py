from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label_cache import CacheError, Columns, LabelCache
from label_cache.quality import check, coverage_at, frequency_prior, kappa_for_coverage, recall_at, summary
from label_cache.rows import arrange, faults


def columns_of(labels: list[list[int]], truth: list[dict[int, int]], num_classes: int) -> Columns:
    """Rows with these rankings, and these pixels of each label."""
    k = len(labels[0])
    return arrange(
        "train",
        [f"i{n}" for n in range(len(labels))],
        labels=labels,
        scores=[np.linspace(0.9, 0.1, k)] * len(labels),
        source="in-sample",
        truth=[list(t) for t in truth],
        truth_pixels=[list(t.values()) for t in truth],
        num_classes=num_classes,
    )


#: Image 0 ranks 2, 0, 4 and shows 0 (10 px), 2 (30 px), 3 (60 px): class 3 is missed.
#: Image 1 ranks 1, 2, 0 and shows 0 (100 px). Image 2 shows nothing that is labelled.
HAND = columns_of([[2, 0, 4], [1, 2, 0], [4, 3, 1]], [{0: 10, 2: 30, 3: 60}, {0: 100}, {}], 6)


def test_coverage_of_a_case_worked_by_hand() -> None:
    found = coverage_at(HAND, [1, 2, 3])
    assert found.micro == pytest.approx((30 / 200, 40 / 200, 140 / 200))
    # class 0: 0, 10, 110 of 110 pixels; class 2: all from κ = 1 on; class 3: never; classes 1, 4, 5 do not occur
    assert found.class_mean == pytest.approx((1 / 3, (10 / 110 + 1) / 3, 2 / 3))
    assert found.classes == 3


def test_recall_of_a_case_worked_by_hand() -> None:
    found = recall_at(HAND, [1, 2, 3])
    assert found.micro == pytest.approx((1 / 4, 2 / 4, 3 / 4))
    assert found.image_mean == pytest.approx((1 / 6, 2 / 6, (2 / 3 + 1) / 2))
    assert found.class_macro == pytest.approx((1 / 3, (1 / 2 + 1) / 3, 2 / 3))


def test_kappa_for_a_share_of_the_pixels() -> None:
    assert kappa_for_coverage(HAND, 0.15) == 1
    assert kappa_for_coverage(HAND, 0.2) == 2
    assert kappa_for_coverage(HAND, 0.7) == 3
    assert kappa_for_coverage(HAND, 0.71) is None
    assert kappa_for_coverage(HAND) is None


def test_the_frequency_prior_ranks_by_images_that_contain_a_label() -> None:
    prior = frequency_prior(HAND, HAND)
    assert prior.labels[0].tolist() == [0, 2, 3, 1, 4, 5] and (prior.labels == prior.labels[0]).all()
    assert prior.scores[0].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 0, 0, 0])
    found = coverage_at(prior, [1, 2, 3])
    assert found.micro == pytest.approx((110 / 200, 140 / 200, 1))
    assert found.class_mean == pytest.approx((1 / 3, 2 / 3, 1))
    assert kappa_for_coverage(prior) == 3
    assert recall_at(prior, [1]).micro == (0.5,)


@st.composite
def cases(draw: st.DrawFn) -> Columns:
    num_classes = draw(st.integers(1, 6))
    k = draw(st.integers(1, num_classes))
    count = draw(st.integers(1, 5))
    labels = [draw(st.permutations(range(num_classes)))[:k] for _ in range(count)]
    pixels = st.dictionaries(st.integers(0, num_classes - 1), st.integers(1, 10**6))
    truth = [draw(pixels) for _ in range(count)]
    truth[0] = truth[0] or {0: 1}
    return columns_of(labels, truth, num_classes)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_quality_equals_counting_one_label_at_a_time(columns: Columns) -> None:
    kappas = range(1, columns.k + 1)
    coverage, recall = coverage_at(columns, kappas), recall_at(columns, kappas)
    for at, kappa in enumerate(kappas):
        pairs = []  # image, label, pixels, kept
        for i in range(len(columns)):
            for t in range(columns.truth_offsets[i], columns.truth_offsets[i + 1]):
                label = int(columns.truth[t])
                pairs.append((i, label, int(columns.truth_pixels[t]), label in columns.labels[i, :kappa]))
        assert coverage.micro[at] == pytest.approx(sum(p * kept for _, _, p, kept in pairs) / sum(p[2] for p in pairs))
        assert recall.micro[at] == pytest.approx(np.mean([kept for *_, kept in pairs]))
        of_class, of_label, of_image = [], [], []
        for label in {p[1] for p in pairs}:
            mine = [p for p in pairs if p[1] == label]
            of_class.append(sum(p[2] * p[3] for p in mine) / sum(p[2] for p in mine))
            of_label.append(np.mean([p[3] for p in mine]))
        for image in {p[0] for p in pairs}:
            of_image.append(np.mean([p[3] for p in pairs if p[0] == image]))
        assert coverage.class_mean[at] == pytest.approx(np.mean(of_class))
        assert recall.class_macro[at] == pytest.approx(np.mean(of_label))
        assert recall.image_mean[at] == pytest.approx(np.mean(of_image))


@settings(max_examples=30, deadline=None)
@given(cases())
def test_all_labels_cover_all_pixels(columns: Columns) -> None:
    everything = columns_of(
        [list(range(columns.num_classes))] * len(columns),
        [{0: 3, columns.num_classes - 1: 4}] * len(columns),
        columns.num_classes,
    )
    for rows in (everything, frequency_prior(columns, columns)):
        assert coverage_at(rows, [columns.num_classes]).micro == (1.0,)
        assert coverage_at(rows, [columns.num_classes]).class_mean == (1.0,)
        assert recall_at(rows, [columns.num_classes]).image_mean == (1.0,)
        assert kappa_for_coverage(rows, 1.0) is not None


def test_large_vocabularies_are_counted_in_pieces(
    make_source: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(rows=(9, 4)).write(tmp_path)
    columns = LabelCache.open(tmp_path).read_split("train")
    whole = coverage_at(columns, [1, 2, 3, 4])
    monkeypatch.setattr("label_cache.quality._TABLE_CELLS", 20)  # two images at a time
    assert coverage_at(columns, [1, 2, 3, 4]) == whole


def test_quality_without_truth_or_beyond_k_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="kappa = 4, but 3 ranks per image are stored"):
        coverage_at(HAND, [1, 4])
    bare = replace(HAND, truth=HAND.truth[:0], truth_offsets=HAND.truth_offsets * 0)
    for measure in (lambda: recall_at(bare, [1]), lambda: frequency_prior(bare, HAND)):
        with pytest.raises(CacheError, match="stores no true labels"):
            measure()
    with pytest.raises(CacheError, match="labels without pixel counts"):
        coverage_at(replace(HAND, truth_pixels=None), [1])


def test_the_summary_counts_rows_and_sources(source: Any, committed: Path) -> None:
    found = summary(LabelCache.open(committed))
    assert found.rows == {"train": 5, "val": 2} and found.parts == 3 and found.key == source.key
    assert found.bytes == sum(path.stat().st_size for path in committed.glob("*.parquet"))
    for split, parts in source.parts.items():
        given_sources = [name for rows in parts for name in rows["source"]]
        assert found.sources[split] == {name: given_sources.count(name) for name in set(given_sources)}


def test_a_sound_cache_has_no_problems(source: Any, committed: Path) -> None:
    assert check(LabelCache.open(committed)) == []
    LabelCache.open(committed).lookup(source.ids)
    assert check(LabelCache.open(committed)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image_ids": ("i1", "i0", "i2")}, "not sorted"),
        ({"image_ids": ("i0", "i0", "i2")}, "not sorted and unique"),
        ({"labels": HAND.labels + 4}, r"label id is outside 0\.\.5"),
        ({"labels": HAND.labels * 0}, "stands twice"),
        ({"scores": HAND.scores + 1}, "from 0 to 1"),
        ({"scores": HAND.scores * np.nan}, "from 0 to 1"),
        ({"scores": HAND.scores / 3}, "float16"),
        ({"scores": HAND.scores[:, ::-1]}, "do not descend"),
        ({"scores": HAND.scores * 0}, "ties"),
        ({"source": np.array(["in-sample", "x", "held-out"])}, "source"),
        ({"truth": HAND.truth + 3}, "true label is outside"),
        ({"truth": HAND.truth[::-1].copy()}, "not ascending"),
        ({"truth_pixels": HAND.truth_pixels * 0}, "no pixels"),
    ],
)
def test_faulty_rows_are_described(change: dict[str, Any], fault: str) -> None:
    assert faults(HAND) == []
    assert any(__import__("re").search(fault, found) for found in faults(replace(HAND, **change)))


def test_check_reports_faulty_rows_in_parts_that_are_otherwise_sound(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(*arguments: Any, **options: Any) -> Columns:
        columns = arrange(*arguments, **options)
        return replace(columns, labels=columns.labels[:, ::-1], scores=columns.scores[:, ::-1])

    monkeypatch.setattr("label_cache.writer.arrange", turned)
    source.write(tmp_path)
    problems = check(LabelCache.open(tmp_path))
    assert len(problems) == 3 and all("scores do not descend" in problem for problem in problems)
