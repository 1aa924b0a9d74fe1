"""Where rankings come from: a cache, the truth, or nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE
from label_cache import CacheError, CacheKey, CacheWriter, class_hash
from stage2_segmentation.sources import SourceInputs, build_source, ranks_of

NAMES = ("sky", "tree", "road", "car", "dog")
K, STORED = len(NAMES), 4
PRINTS = {"train": "a" * 64, "val": "b" * 64}

#: image → its stored labels with their scores, most probable first
ROWS = {
    "train": {
        "t-0": ([3, 1, 0, 2], [0.9, 0.5, 0.25, 0.0]),
        "t-1": ([0, 4, 1, 2], [0.75, 0.5, 0.5, 0.125]),
        "t-2": ([2, 0, 3, 4], [1.0, 0.875, 0.25, 0.25]),
    },
    "val": {"v-0": ([4, 3, 2, 1], [0.5, 0.375, 0.25, 0.0])},
}


def write_cache(folder: Path, *, source: str = "in-sample", names: tuple[str, ...] = NAMES) -> Path:
    key = CacheKey(
        dataset=PRINTS, classes=class_hash(names), model="c" * 64, preprocess="d" * 64, num_classes=K, k=STORED
    )
    writer = CacheWriter(folder, key, names)
    for split, rows in ROWS.items():
        labels, scores = (np.array([row[part] for row in rows.values()]) for part in (0, 1))
        origin = source if split == "train" else "held-out"
        writer.write_part(split, 0, ids=list(rows), labels=labels, scores=scores.astype(np.float32), source=origin)
    writer.commit({split: 1 for split in ROWS})
    return folder


def inputs_for(cache: Path, *, kappa: int = 3, split: str = "train", print_: str | None = None) -> SourceInputs:
    return SourceInputs(kappa, NAMES, {split: print_ or PRINTS[split]}, cache)


@pytest.mark.parametrize("stored_as", ["in-sample", "out-of-fold"])
@pytest.mark.parametrize("kappa", [1, 3, STORED])
def test_a_cache_gives_the_first_ranks_in_the_order_asked_for(tmp_path: Path, stored_as: str, kappa: int) -> None:
    source = build_source("cache", inputs_for(write_cache(tmp_path, source=stored_as), kappa=kappa))
    asked = ["t-2", "t-0", "v-0", "t-2"]
    ranking = source(asked, None)
    rows = {**ROWS["train"], **ROWS["val"]}
    assert ranking.labels.tolist() == [rows[name][0][:kappa] for name in asked]
    assert ranking.scores.tolist() == [[float(np.float16(s)) for s in rows[name][1][:kappa]] for name in asked]
    assert ranking.valid.all()
    assert (ranking.labels.dtype, ranking.scores.dtype) == (torch.int64, torch.float32)


def test_a_cache_does_not_look_at_the_truth(tmp_path: Path) -> None:
    source = build_source("cache", inputs_for(write_cache(tmp_path)))
    with_truth = source(["t-1"], torch.full((1, 2, 3), 2))
    assert torch.equal(with_truth.labels, source(["t-1"], None).labels)


def test_more_ranks_than_stored_are_refused_when_the_source_is_built(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=f"kappa = {K}, but cache .* stores {STORED} ranks"):
        build_source("cache", inputs_for(write_cache(tmp_path), kappa=K))


def test_more_ranks_than_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"kappa = {K + 1}, but there are only {K} classes"):
        build_source("cache", inputs_for(write_cache(tmp_path), kappa=K + 1))


def test_a_cache_of_another_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="data set fingerprint of split train is aaaaaaaaaaaa there and eeeeeeeeeeee"):
        build_source("cache", inputs_for(write_cache(tmp_path), print_="e" * 64))


def test_a_cache_without_the_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="holds the splits train, val, wanted test"):
        build_source("cache", inputs_for(write_cache(tmp_path), split="test", print_="a" * 64))


def test_a_cache_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="class 4 is 'cat' there and 'dog' here"):
        build_source("cache", inputs_for(write_cache(tmp_path, names=(*NAMES[:4], "cat"))))


def test_an_image_that_was_not_ranked_is_named(tmp_path: Path) -> None:
    source = build_source("cache", inputs_for(write_cache(tmp_path)))
    with pytest.raises(CacheError, match="image id 't-9' is not among the 4"):
        source(["t-0", "t-9"], None)


def test_a_missing_cache_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"does not exist; make it with `kappaseg rank`"):
        build_source("cache", inputs_for(tmp_path / "none"))


def test_caches_of_different_rows_have_different_fingerprints(tmp_path: Path) -> None:
    """What a run is tied to: the same rows in another folder are the same."""
    folders = {"one": "in-sample", "same": "in-sample", "other": "out-of-fold"}
    prints = {
        name: build_source("cache", inputs_for(write_cache(tmp_path / name, source=origin))).fingerprint
        for name, origin in folders.items()
    }
    assert prints["one"] == prints["same"] != prints["other"]


def test_the_oracle_gives_the_labels_that_are_there_in_order_of_id() -> None:
    mask = torch.tensor([[[4, 4, 1], [IGNORE, 3, 4]], [[2, 2, 2], [2, IGNORE, 2]]])
    ranking = build_source("oracle", inputs_for(Path("unused")))(["a", "b"], mask)
    assert ranking.labels.tolist() == [[1, 3, 4], [2, 0, 0]]
    assert ranking.valid.tolist() == [[True, True, True], [True, False, False]]


def test_the_oracle_gives_all_labels_however_small_kappa_is() -> None:
    ranking = build_source("oracle", inputs_for(Path("unused"), kappa=1))(["a"], torch.arange(K)[None, None])
    assert ranking.labels.tolist() == [list(range(K))]


def test_the_oracle_needs_the_truth() -> None:
    with pytest.raises(UserError, match="oracle needs the truth, and photo has no mask"):
        build_source("oracle", inputs_for(Path("unused")))(["photo"], None)


def test_the_complete_source_gives_all_labels_in_order_of_id() -> None:
    ranking = build_source("complete", inputs_for(Path("unused"), kappa=1))(["a", "b"], None)
    assert ranking.labels.tolist() == [list(range(K))] * 2
    assert ranking.valid.all()


def test_the_rank_scale_is_as_long_as_the_source_can_give() -> None:
    assert [ranks_of(kind, 3, K) for kind in ("cache", "oracle", "complete")] == [3, K, K]
    assert ranks_of("cache", 50, K) == K


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"source = 'nosuch' is unknown; there are: cache, complete, joint, oracle"):
        build_source("nosuch", inputs_for(Path("unused")))
