"""What a plan knows of a data set."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kappaseg_core.config import DataConfig
from kappaseg_core.errors import UserError
from pipelines.plan import scan
from pipelines.plan.fingerprint import fingerprint_of, kappas, summed_up
from pipelines.plan.scan import MaskFacts


def mask(*pixels: int, shape: tuple[int, int] = (10, 10)) -> MaskFacts:
    """A mask with so many pixels of label 0, 1, …"""
    counts = np.array(pixels, np.int64)
    labels = np.flatnonzero(counts)
    return MaskFacts(shape, labels, counts[labels])


def test_a_fingerprint_by_hand() -> None:
    """Five labels; the third is never seen. Label 4 is in all images, 0 in two of three, the others in one."""
    facts = [mask(50, 0, 0, 0, 50), mask(90, 9, 0, 0, 1), mask(0, 0, 0, 2, 48, shape=(20, 5))]
    found = summed_up(facts, 5, train=3, val=1)
    assert (found.labels_mean, found.labels_most, found.never) == (2.333, 3, 1)
    assert (found.common, found.median) == (1.0, pytest.approx(1 / 3))
    assert (found.median_size, found.largest_size) == ((10, 10), (10, 10))
    assert found.unlabelled == pytest.approx(50 / 300, abs=1e-6)
    # of 250 pixels the largest label of each image has 50 + 90 + 48, the second 50 + 9 + 2, the third 1
    assert found.kappa_oracle == (2, 3)
    # by images: label 4 has 99 pixels, 0 has 140, 1 has 9, 3 has 2
    assert found.kappa_frequency == (3, 4)


def test_kappa_is_the_least_that_covers_the_share() -> None:
    assert kappas(np.array([990, 9, 1])) == (1, 2)
    assert kappas(np.array([989, 10, 1])) == (2, 2)
    assert kappas(np.array([1])) == (1, 1)


def test_masks_without_a_label_are_refused() -> None:
    with pytest.raises(UserError, match="1 masks hold no labelled pixel; see data"):
        summed_up([mask()], 5, train=1, val=1)


def test_a_folder_is_read_and_not_read_again_until_a_mask_changes(
    chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(root=str(chain.data))
    found = fingerprint_of(data, tmp_path, None)
    assert (found.classes, found.train, found.val, found.scanned) == (4, 6, 2, 6)
    assert found.median_size == (36, 44)
    found.write(tmp_path)

    def again(*_: object) -> None:
        raise AssertionError("the masks were read already")

    with monkeypatch.context() as patched:
        patched.setattr("pipelines.plan.fingerprint.scan", again)
        assert fingerprint_of(data, tmp_path, None) == found
    shutil.copy(chain.data / "masks" / "a1.png", chain.data / "masks" / "a0.png")
    changed = fingerprint_of(data, tmp_path, None)
    assert changed.state != found.state


def test_a_sample_is_drawn_by_names_and_said_to_be_one(chain: Any, tmp_path: Path) -> None:
    data = DataConfig(root=str(chain.data))
    found = fingerprint_of(data, tmp_path, 3)
    assert (found.train, found.scanned) == (6, 3)
    scenes = scan.opened(data)
    assert scan.sample(scenes, 3) == scan.sample(scenes, 3)
    assert set(scan.sample(scenes, 3)) <= set(scan.sample(scenes, 4)) <= set(scan.sample(scenes, None))


def test_every_kind_of_scene_set_can_be_read(tmp_path: Path) -> None:
    data = DataConfig(kind="synthetic", options={"classes": 8, "size": 32, "train": 4, "val": 1})
    found = fingerprint_of(data, tmp_path, None)
    assert (found.classes, found.train, found.median_size) == (8, 4, (32, 32))
    assert found.kappa_oracle[1] <= found.kappa_frequency[1] <= 8


def test_a_missing_mask_is_named(chain: Any, tmp_path: Path) -> None:
    (chain.data / "masks" / "a2.png").unlink()
    with pytest.raises(UserError, match=r"a2\.png does not exist"):
        fingerprint_of(replace(DataConfig(), root=str(chain.data)), tmp_path, None)


def test_wrong_mask_values_are_refused(chain: Any, tmp_path: Path) -> None:
    Image.fromarray(np.full((36, 44), 9, np.uint8)).save(chain.data / "masks" / "a0.png")
    with pytest.raises(UserError, match=r"a0\.png holds"):
        fingerprint_of(DataConfig(root=str(chain.data)), tmp_path, None)
