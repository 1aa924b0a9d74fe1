from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import label_cache
from label_cache import CacheError, CacheKey, CacheWriter, LabelCache, class_hash

FORK_WARNS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@st.composite
def rankings(draw: st.DrawFn) -> dict[str, Any]:
    num_classes = draw(st.integers(1, 9))
    k = draw(st.integers(1, num_classes))
    ids = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True))
    score = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
    return {
        "num_classes": num_classes,
        "ids": ids,
        "labels": [draw(st.permutations(range(num_classes)))[:k] for _ in ids],
        "scores": [draw(st.lists(score, min_size=k, max_size=k)) for _ in ids],
        "truth": [draw(st.lists(st.integers(0, num_classes - 1), unique=True)) for _ in ids],
    }


@settings(max_examples=25, deadline=None)
@given(rankings())
def test_what_was_written_is_read_back(drawn: dict[str, Any]) -> None:
    ids, k = drawn["ids"], len(drawn["labels"][0])
    names = tuple(map(str, range(drawn["num_classes"])))
    key = CacheKey(
        dataset={"s": "0"}, classes=class_hash(names), model="1", preprocess="2", num_classes=len(names), k=k
    )
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter(folder, key, names)
        rows = {name: drawn[name] for name in ("ids", "labels", "scores", "truth")}
        writer.write_part("s", 0, source="held-out", **rows)
        writer.commit({"s": 1})
        cache = LabelCache.open(folder)
        columns = cache.read_split("s")
        found = cache.lookup(ids)

    assert cache.key == key and cache.class_names == names and len(cache) == len(ids)
    assert columns.image_ids == tuple(sorted(ids))
    for i, image_id in enumerate(ids):
        pairs = [(float(np.float16(s)), c) for s, c in zip(drawn["scores"][i], drawn["labels"][i], strict=True)]
        pairs.sort(key=lambda pair: (-pair[0], pair[1]))
        row = columns.image_ids.index(image_id)
        assert list(zip(found.scores[i].tolist(), found.labels[i].tolist(), strict=True)) == pairs
        assert list(zip(columns.scores[row].tolist(), columns.labels[row].tolist(), strict=True)) == pairs
        present = columns.truth[columns.truth_offsets[row] : columns.truth_offsets[row + 1]]
        assert present.tolist() == sorted(drawn["truth"][i])


def test_lookups_equal_the_ranking_they_were_made_from(source: Any, committed: Path) -> None:
    cache, expected = LabelCache.open(committed), source.expected()
    for order in (source.ids, source.ids[::-1], [source.ids[0]] * 3):
        labels, scores = cache.lookup(order)
        assert labels.tolist() == [[c for _, c in expected[i]] for i in order]
        assert scores.tolist() == [[s for s, _ in expected[i]] for i in order]
    assert labels.dtype == np.int32 and scores.dtype == np.float32


@pytest.mark.parametrize("kappa", [1, 2, 3, 4])
def test_a_smaller_kappa_gives_the_first_ranks(source: Any, committed: Path, kappa: int) -> None:
    cache = LabelCache.open(committed)
    whole, cut = cache.lookup(source.ids), cache.lookup(source.ids, kappa)
    assert cut.labels.shape == (len(source.ids), kappa)
    assert np.array_equal(cut.labels, whole.labels[:, :kappa])
    assert np.array_equal(cut.scores, whole.scores[:, :kappa])


def test_one_id_gives_the_row_that_many_ids_give(source: Any, committed: Path) -> None:
    cache = LabelCache.open(committed)
    many = cache.lookup(source.ids, 3)
    for i, image_id in enumerate(source.ids):
        one = cache.lookup(image_id, 3)
        assert one.image_ids == (image_id,)
        assert np.array_equal(one.labels, many.labels[i : i + 1])
        assert np.array_equal(one.scores, many.scores[i : i + 1])
        assert one.source.tolist() == [many.source[i]]


def test_no_ids_give_no_rows(committed: Path) -> None:
    assert LabelCache.open(committed).lookup([], 3).labels.shape == (0, 3)


def test_sources_and_truth_stay_with_their_image(source: Any, committed: Path) -> None:
    cache = LabelCache.open(committed)
    for split, parts in source.parts.items():
        columns = cache.read_split(split)
        for rows in parts:
            for i, image_id in enumerate(rows["ids"]):
                row = columns.image_ids.index(image_id)
                here = slice(columns.truth_offsets[row], columns.truth_offsets[row + 1])
                counted = dict(zip(columns.truth[here].tolist(), columns.truth_pixels[here].tolist(), strict=True))
                assert counted == dict(zip(rows["truth"][i].tolist(), rows["truth_pixels"][i].tolist(), strict=True))
                assert columns.source[row] == rows["source"][i] == cache.lookup(image_id).source[0]


def test_splits_ids_and_membership(source: Any, committed: Path) -> None:
    cache = LabelCache.open(committed)
    assert cache.splits == ("train", "val")
    for split in cache.splits:
        assert cache.ids(split) == cache.read_split(split).image_ids
        assert sorted(cache.ids(split)) == sorted(i for rows in source.parts[split] for i in rows["ids"])
    assert source.ids[0] in cache and "nothing" not in cache and 3 not in cache


def test_more_than_32767_classes_are_stored_as_int32(make_source: Callable[..., Any], tmp_path: Path) -> None:
    source = make_source(num_classes=40_000, k=3)
    source.parts["train"][0]["labels"][0] = [39_999, 32_768, 0]
    source.write(tmp_path)
    cache = LabelCache.open(tmp_path)
    assert cache.read_split("train").labels.dtype == np.int32
    assert sorted(cache.lookup(source.parts["train"][0]["ids"][0]).labels[0].tolist()) == [0, 32_768, 39_999]


def test_the_largest_int16_vocabulary_fits(make_source: Callable[..., Any], tmp_path: Path) -> None:
    source = make_source(num_classes=32_767, k=2)
    source.parts["train"][0]["labels"][0] = [32_766, 0]
    source.write(tmp_path)
    cache = LabelCache.open(tmp_path)
    assert cache.read_split("train").labels.dtype == np.int16
    assert 32_766 in cache.lookup(source.parts["train"][0]["ids"][0]).labels


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        (
            {"class_names": [f"class {i}" for i in range(5)] + ["lynx", "x"]},
            r"class 5 is 'class 5' there and 'lynx' here",
        ),
        ({"class_names": ["class 0"]}, r"7 classes there and 1 here"),
        ({"num_classes": 171}, r"number of classes is 7 there and 171 here"),
        ({"dataset": {"train": "e" * 64}}, r"split train is a{12} there and e{12} here"),
        ({"dataset": {"test": "a" * 64}}, r"holds the splits train, val, wanted test"),
        ({"model": "f" * 64}, r"model is c{12} there and f{12} here"),
        ({"preprocess": "f" * 64}, r"preprocessing is d{12} there and f{12} here"),
        ({"kappa": 5}, r"stores 4 ranks per image, wanted 5"),
    ],
)
def test_a_cache_of_something_else_is_refused_naming_both_sides(
    committed: Path, expect: dict[str, Any], message: str
) -> None:
    with pytest.raises(CacheError, match=message) as error:
        LabelCache.open(committed, expect=expect)
    assert "kappaseg rank" in str(error.value) and "\n" not in str(error.value)


def test_the_right_cache_meets_every_expectation(source: Any, committed: Path) -> None:
    key = source.key
    expect = {"class_names": list(source.names), "dataset": {"val": key.dataset["val"]}, "model": key.model}
    cache = LabelCache.open(committed, expect=expect | {"num_classes": 7, "kappa": 4, "preprocess": key.preprocess})
    assert cache.k == 4


def test_a_mistyped_expectation_is_not_ignored(committed: Path) -> None:
    with pytest.raises(TypeError, match="modle"):
        LabelCache.open(committed, expect={"modle": "x"})


@pytest.mark.parametrize("kappa", [0, -1, 5, 171])
def test_a_kappa_that_is_not_stored_is_refused(committed: Path, kappa: int) -> None:
    with pytest.raises(CacheError, match=rf"kappa = {kappa}, but cache .* stores 4 ranks.*1 to 4"):
        LabelCache.open(committed).lookup("train/é0-0", kappa)


@pytest.mark.parametrize(
    ("asked", "close"),
    [("train/é0-9", "train/é0-"), ("train/é0-1.jpg", "'train/é0-1'"), ("TRAIN/É0-1", "'train/é0-1'")],
)
def test_an_unknown_id_is_named_with_the_closest_one(committed: Path, asked: str, close: str) -> None:
    cache = LabelCache.open(committed)
    for ids in (asked, ["val/é0-0", asked]):
        with pytest.raises(CacheError, match=r"is not among the 7 of cache .*the closest id is") as error:
            cache.lookup(ids)
        assert repr(asked) in str(error.value) and close in str(error.value)


def test_an_id_like_no_other_points_to_ranking_its_split(committed: Path) -> None:
    with pytest.raises(CacheError, match=r"'\?\?' is not among .* rank the split"):
        LabelCache.open(committed).lookup("??")
    with pytest.raises(CacheError, match="is not among"):
        LabelCache.open(committed).lookup("\udcff")


def test_an_unknown_split_is_named_with_the_known_ones(committed: Path) -> None:
    with pytest.raises(CacheError, match=r"split 'test' is not in cache .* holds train, val"):
        LabelCache.open(committed).read_split("test")


def test_what_is_no_finished_cache_says_what_to_run(source: Any, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"does not exist; make it with `kappaseg rank`"):
        LabelCache.open(tmp_path / "nothing")
    with pytest.raises(CacheError, match=r"is no label cache \(no manifest.json\)"):
        LabelCache.open(tmp_path)
    source.write(tmp_path / "half", commit=False)
    with pytest.raises(CacheError, match=r"is unfinished \(3 parts, no manifest.json\); run `kappaseg rank` again"):
        LabelCache.open(tmp_path / "half")


def test_a_damaged_or_newer_manifest_is_refused(committed: Path) -> None:
    manifest = committed / "manifest.json"
    text = manifest.read_text("utf-8")
    for damaged in (text[:-9], text.replace("class 3", "class 8"), text.replace('"k": 4', '"k": 3'), "[]", "{}"):
        manifest.write_text(damaged, "utf-8")
        with pytest.raises(CacheError, match=r"manifest.json is damaged .*run `kappaseg rank` again"):
            LabelCache.open(committed)
    manifest.write_text(text.replace('"schema_version": 1', '"schema_version": 2'), "utf-8")
    with pytest.raises(CacheError, match=r"layout version 2, this program reads 1; use the version"):
        LabelCache.open(committed)


def test_a_cache_written_anew_is_not_read_through_an_old_handle(
    make_source: Callable[..., Any], committed: Path
) -> None:
    cache = LabelCache.open(committed)
    label_cache.discard(committed)
    with pytest.raises(CacheError, match="does not exist"):
        cache.lookup("train/é0-0")
    make_source(seed=1).write(committed)
    for read in (lambda: cache.lookup("train/é0-0"), lambda: cache.read_split("val")):
        with pytest.raises(CacheError, match="written anew since it was opened"):
            read()


def test_a_pickled_cache_carries_no_arrays(source: Any, committed: Path) -> None:
    cache = LabelCache.open(committed)
    before = cache.lookup(source.ids)
    data = pickle.dumps(cache)
    assert len(data) < 5000 and cache.lookup(source.ids).labels.tolist() == before.labels.tolist()
    assert pickle.loads(data).lookup(source.ids).labels.tolist() == before.labels.tolist()


@FORK_WARNS
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_the_same_rows(source: Any, committed: Path, method: str) -> None:
    cache = LabelCache.open(committed)
    here = cache.lookup(source.ids)
    cache.read_split("train")  # whatever threads reading starts, they are running when the fork happens
    with get_context(method).Pool(1) as pool:
        there = pool.apply(cache.lookup, (source.ids,))
        columns = pool.apply(cache.read_split, ("train",))
    assert np.array_equal(here.labels, there.labels) and np.array_equal(here.scores, there.scores)
    assert np.array_equal(columns.labels, cache.read_split("train").labels)


def test_importing_and_reading_loads_no_learning_framework(source: Any, committed: Path) -> None:
    program = (
        "import sys, label_cache, label_cache.quality\n"
        f"label_cache.LabelCache.open({str(committed)!r}).lookup({source.ids!r}, 2)\n"
        "found = {'torch', 'timm', 'ray', 'pandas', 'h5py', 'kappaseg_core'} & set(sys.modules)\n"
        "assert not found, found"
    )
    root = str(Path(label_cache.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": root}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
