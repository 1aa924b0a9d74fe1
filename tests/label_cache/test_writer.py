from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from label_cache import CacheError, CacheKey, CacheWriter, LabelCache, discard

FORK_WARNS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
Files = Callable[[Path], dict[str, bytes]]


def test_a_part_is_the_promised_parquet(committed: Path) -> None:
    file = pq.ParquetFile(committed / "train-00000.parquet")
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {c.compression for c in columns.values()} == {"ZSTD"}
    for name in ("labels", "scores", "truth", "truth_pixels"):
        assert "BYTE_STREAM_SPLIT" in columns[f"{name}.list.element"].encodings
    assert [name for name, c in columns.items() if c.has_dictionary_page] == ["split", "source"]
    assert group.sorting_columns == (pq.SortingColumn(0),)
    assert not any(field.nullable for field in file.schema_arrow)
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    assert kinds["labels"].endswith("int16 not null>[4]") and kinds["scores"].endswith("float not null>[4]")
    scores = file.read()["scores"].combine_chunks().flatten().to_numpy()
    assert (scores == scores.astype(np.float16)).all()


def test_equal_rows_give_equal_bytes_in_any_order(source: Any, tmp_path: Path, files_of: Files) -> None:
    source.write(tmp_path / "a")
    for parts in source.parts.values():
        for rows in parts:
            for name, values in rows.items():
                rows[name] = values[::-1]
            rows["labels"], rows["scores"] = rows["labels"][:, ::-1], rows["scores"][:, ::-1]
            rows["truth"] = [labels[::-1] for labels in rows["truth"]]
            rows["truth_pixels"] = [pixels[::-1] for pixels in rows["truth_pixels"]]
    source.write(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_differences_below_float16_give_equal_bytes(source: Any, tmp_path: Path, files_of: Files) -> None:
    source.write(tmp_path / "a")
    for parts in source.parts.values():
        for rows in parts:
            rows["scores"] = np.abs(rows["scores"] - np.float32(1e-9))
    source.write(tmp_path / "b")
    assert files_of(tmp_path / "a").keys() == files_of(tmp_path / "b").keys()
    assert np.array_equal(
        LabelCache.open(tmp_path / "a").lookup(source.ids).labels,
        LabelCache.open(tmp_path / "b").lookup(source.ids).labels,
    )


def test_without_commit_there_is_no_cache(source: Any, tmp_path: Path) -> None:
    writer = source.write(tmp_path, commit=False)
    assert not writer.is_committed() and not (tmp_path / "manifest.json").exists()
    writer.commit(source.counts)
    assert writer.is_committed() and LabelCache.open(tmp_path).splits == ("train", "val")


@FORK_WARNS
def test_a_writer_killed_at_any_step_leaves_no_cache_and_is_continued(
    source: Any, tmp_path: Path, files_of: Files, in_child: Callable[[Callable[[], None]], int]
) -> None:
    source.write(tmp_path / "whole")
    for step in range(1, 100):
        path = tmp_path / f"killed-{step}"

        def until(path: Path = path, step: int = step) -> None:
            left, real = [step], {name: getattr(os, name) for name in ("fsync", "replace")}

            def counted(name: str) -> Callable[..., Any]:
                def call(*arguments: Any) -> Any:
                    left[0] -= 1
                    return os._exit(9) if left[0] == 0 else real[name](*arguments)

                return call

            for name in real:
                setattr(os, name, counted(name))
            source.write(path)

        status = in_child(until)
        if (path / "manifest.json").exists():
            LabelCache.open(path).lookup(source.ids)
        else:
            with pytest.raises(CacheError, match=r"no manifest\.json"):
                LabelCache.open(path)
        source.write(path)
        assert files_of(path) == files_of(tmp_path / "whole")
        if status == 0:
            break
        assert status == 9
    assert step == 3 * 4 + 1  # four parts and a manifest: fsync, rename, fsync of the directory; then undisturbed


def test_resuming_writes_only_the_missing_part(source: Any, committed: Path, files_of: Files) -> None:
    before = files_of(committed)
    stamps = {path.name: path.stat().st_mtime_ns for path in committed.iterdir()}
    (committed / "train-00001.parquet").unlink()
    with pytest.raises(CacheError, match=r"part train-00001.parquet of cache .* is missing; run `kappaseg rank` again"):
        LabelCache.open(committed)

    writer = CacheWriter(committed, source.key, source.names)
    assert not writer.is_committed()
    assert writer.part_done("train", 0) and not writer.part_done("train", 1) and writer.part_done("val", 0)
    writer.write_part("train", 1, **source.parts["train"][1])
    assert not (committed / "manifest.json").exists()
    writer.commit(source.counts)

    assert files_of(committed) == before
    for name in ("train-00000.parquet", "val-00000.parquet"):
        assert (committed / name).stat().st_mtime_ns == stamps[name]


def test_a_finished_cache_is_left_alone(source: Any, committed: Path) -> None:
    stamps = {path.name: path.stat().st_mtime_ns for path in committed.iterdir()}
    writer = CacheWriter(committed, source.key, source.names)
    assert writer.is_committed()
    assert writer.commit(source.counts) == LabelCache.open(committed).manifest
    assert {path.name: path.stat().st_mtime_ns for path in committed.iterdir()} == stamps


def test_a_part_of_other_images_or_another_key_is_not_done(source: Any, tmp_path: Path) -> None:
    writer = source.write(tmp_path, commit=False)
    ids = source.parts["train"][0]["ids"]
    assert writer.part_done("train", 0, ids=ids) and writer.part_done("train", 0, ids=ids[::-1])
    assert not writer.part_done("train", 0, ids=ids[:-1]) and not writer.part_done("train", 0, ids=[*ids, "x"])
    other = CacheWriter(tmp_path, replace(source.key, model="e" * 64), source.names)
    assert not other.part_done("train", 0, ids=ids)
    (tmp_path / "val-00007.parquet").write_bytes((tmp_path / "train-00000.parquet").read_bytes())
    assert not writer.part_done("val", 7)


def test_rewriting_removes_the_manifest_first(source: Any, committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CacheWriter(committed, source.key, source.names)
    seen = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append((committed / "manifest.json").exists()), real(a, b)))
    writer.write_part("val", 0, **source.parts["val"][0])
    assert seen == [False]
    with pytest.raises(CacheError, match="unfinished"):
        LabelCache.open(committed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "e" * 64}, "model is c{12} there and e{12} here"),
        ({"k": 3}, "k is 4 there and 3 here"),
        ({"folds": 5}, "folds is 0 there and 5 here"),
        ({"dataset": {"train": "e" * 64, "val": "b" * 64}}, "split train is a{12} there and e{12} here"),
        ({"dataset": {"train": "a" * 64}}, "split val is b{12} there and absent here"),
    ],
)
def test_a_finished_cache_of_another_key_is_not_touched(
    source: Any, committed: Path, files_of: Files, change: dict[str, Any], message: str
) -> None:
    before = files_of(committed)
    with pytest.raises(CacheError, match=rf"holds a cache of something else: [^;]*{message}; delete it"):
        CacheWriter(committed, replace(source.key, **change), source.names)
    assert files_of(committed) == before


def test_an_unfinished_cache_of_another_key_is_written_over(source: Any, tmp_path: Path, files_of: Files) -> None:
    source.write(tmp_path / "a", commit=False)
    source.key = replace(source.key, model="e" * 64)
    source.write(tmp_path / "a")
    source.write(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_parts_of_another_division_and_temporary_files_go_before_the_commit(
    source: Any, tmp_path: Path, files_of: Files
) -> None:
    writer = source.write(tmp_path / "a", commit=False)
    extra = {**source.parts["train"][0], "ids": ["x", "y", "z"]}
    writer.write_part("train", 5, **extra)
    (tmp_path / "a" / ".val-00000.parquet.tmp-elsewhere-1-00000000").write_bytes(b"left by a killed writer")
    foreign = tmp_path / "a" / "photos-00001.parquet"
    foreign.write_bytes(b"of somebody else")
    writer.commit(source.counts)
    assert foreign.exists()
    foreign.unlink()
    source.write(tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@FORK_WARNS
def test_temporary_files_of_dead_writers_go_and_of_live_ones_stay(
    source: Any, tmp_path: Path, in_child: Callable[[Callable[[], None]], int]
) -> None:
    from label_cache.files import temporary_beside

    dead = tmp_path / "dead"
    in_child(lambda: dead.write_text(temporary_beside(tmp_path / "part").name))
    left = [tmp_path / dead.read_text(), temporary_beside(tmp_path / "part")]
    for path in left:
        path.write_bytes(b"half a part")
    CacheWriter(tmp_path, source.key, source.names)
    assert [path.exists() for path in left] == [False, True]


def test_discarding_deletes_the_cache_and_nothing_else(source: Any, committed: Path) -> None:
    LabelCache.open(committed).lookup(source.ids)
    (committed / "notes.txt").write_text("mine")
    discard(committed)
    assert [path.name for path in committed.iterdir()] == ["notes.txt"]
    (committed / "notes.txt").unlink()
    source.write(committed, commit=False)
    discard(committed)
    assert not committed.exists()
    discard(committed)


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(
    source: Any, committed: Path, files_of: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(committed)
    writer = CacheWriter(committed, source.key, source.names)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("label_cache.files.os.replace", full)
    with pytest.raises(CacheError, match=r"cannot write .*val-00000.parquet: No space left on device; free space"):
        writer.write_part("val", 0, **source.parts["val"][0])
    monkeypatch.undo()
    del before["manifest.json"]
    assert files_of(committed) == before
    source.write(committed)
    LabelCache.open(committed)


@FORK_WARNS
def test_a_write_that_the_system_cuts_short_is_one_error(
    source: Any, tmp_path: Path, in_child: Callable[[Callable[[], None]], int]
) -> None:
    def limited() -> None:
        writer = CacheWriter(tmp_path, source.key, source.names)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(CacheError, match=r"cannot write .*File too large"):
            writer.write_part("val", 0, **source.parts["val"][0])

    assert in_child(limited) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_one_error(source: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(CacheError, match=r"cannot write cache .*choose another directory"):
            CacheWriter(path, source.key, source.names)


def test_commit_names_what_is_not_right(source: Any, tmp_path: Path) -> None:
    writer = source.write(tmp_path, commit=False)
    with pytest.raises(CacheError, match=r"part val-00001.parquet of cache .* is missing"):
        writer.commit({"train": 2, "val": 2})
    with pytest.raises(CacheError, match=r"needs parts of the splits train, val, got train"):
        writer.commit({"train": 2})
    (tmp_path / "val-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(CacheError, match=r"part val-00000.parquet of cache .* is damaged .*delete that part"):
        writer.commit(source.counts)
    rows = {**source.parts["val"][0], "ids": ["train/é1-0", "other"]}
    writer.write_part("val", 0, **rows)
    with pytest.raises(CacheError, match=r"'train/é1-0' is in the parts train-00001.parquet and val-00000.parquet"):
        writer.commit(source.counts)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "a"]}, "image id 'a' stands twice"),
        ({"ids": ["a", ""]}, "image id '' is no text"),
        ({"ids": ["a", "\udc80"]}, "is no text that UTF-8 can hold"),
        ({"ids": []}, "at least one image"),
        ({"ids": ["a"]}, r"labels \[2, 4\] and scores \[2, 4\] for 1 images"),
        ({"labels": [[0, 1, 2, 3], [0, 1, 2, 7]]}, r"image 'b': a label id is outside 0\.\.6"),
        ({"labels": [[0, 1, -1, 3], [0, 1, 2, 3]]}, r"image 'a': a label id is outside 0\.\.6"),
        ({"labels": [[0, 1, 2, 3], [5, 1, 2, 5]]}, "image 'b': a label stands twice"),
        ({"labels": [[0.0, 1, 2, 3], [0, 1, 2, 3]]}, "label ids are float64"),
        ({"scores": [[0.5, 0.5, 0.5, 0.5], [0.5, np.nan, 0.5, 0.5]]}, "image 'b': a score is no number from 0 to 1"),
        ({"scores": [[0.5, 0.5, 1.5, 0.5], [0.5, 0.5, 0.5, 0.5]]}, "image 'a': a score is no number from 0 to 1"),
        ({"scores": [[0.5] * 3] * 2}, r"scores \[2, 3\]"),
        ({"labels": [[0, 1, 2]] * 2, "scores": [[0.5] * 3] * 2}, "3 ranks per image .* key says 4"),
        ({"source": ["held-out", "guess"]}, "image 'b': source is none of"),
        ({"truth": [[0], [9]]}, r"image 'b': a true label is outside 0\.\.6"),
        ({"truth": [[0], [2, 2]]}, "image 'b': a true label stands twice"),
        ({"truth": [[0]]}, "truth for 1 of 2 images"),
        ({"truth": [[0], [1]], "truth_pixels": [[5], [0]]}, "image 'b': a true label has no pixels"),
        ({"truth": [[0], [1]], "truth_pixels": [[5], [1, 2]]}, "not one pixel count per true label"),
    ],
)
def test_rows_that_are_not_valid_are_refused(source: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {"ids": ["a", "b"], "labels": [[0, 1, 2, 3]] * 2, "scores": [[0.5] * 4] * 2, "source": "held-out"}
    writer = CacheWriter(tmp_path, source.key, source.names)
    with pytest.raises(CacheError, match=message):
        writer.write_part("val", 0, **(good | change))
    assert list(tmp_path.iterdir()) == []


def test_keys_and_class_lists_that_contradict_themselves_are_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot store 8 ranks of 7 classes; choose 1 to 7"):
        replace(source.key, k=8)
    with pytest.raises(CacheError, match="at least one split"):
        replace(source.key, dataset={})
    with pytest.raises(CacheError, match="do not give the key's class hash"):
        CacheWriter(tmp_path / "c", source.key, source.names[::-1])
    with pytest.raises(CacheError, match="split 'test' is not in the key"):
        CacheWriter(tmp_path / "c", source.key, source.names).write_part("test", 0, **source.parts["val"][0])


def test_a_key_depends_on_every_field_and_not_on_the_order_of_splits(source: Any) -> None:
    key = source.key
    changes: list[dict[str, Any]] = [
        {"dataset": {"train": "a" * 64, "val": "a" * 64}},
        {"classes": "0"},
        {"model": "0"},
        {"preprocess": "0"},
        {"score_kind": "softmax"},
        {"num_classes": 8},
        {"k": 1},
        {"folds": 2},
    ]
    prints = {replace(key, **change).fingerprint() for change in [{}, *changes]}
    assert len(prints) == 1 + len(changes) == 1 + len(key.to_plain())
    turned = replace(key, dataset=dict(reversed(key.dataset.items())))
    assert turned == key and turned.fingerprint() == key.fingerprint() and CacheKey.from_plain(key.to_plain()) == key


def test_odd_split_names_stay_inside_the_cache(source: Any, tmp_path: Path) -> None:
    source.key = replace(source.key, dataset={"../up": "a", "val": "b"})
    source.parts["../up"] = source.parts.pop("train")
    source.write(tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert len(LabelCache.open(tmp_path / "cache").ids("../up")) == 5
