"""One real network of each kind, measured; and the arithmetic of a pass by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kappaseg_core.errors import UserError
from kappaseg_core.ranking import IGNORE, Ranking
from pipelines.benchmark.intervals import ImageCounts, resampled_miou
from pipelines.benchmark.measure import measure_run
from pipelines.benchmark.presence import calibration, presence_quality
from pipelines.benchmark.tally import Tally
from pipelines.cli import main
from pipelines.evaluate import evaluate_run
from tests.pipelines.conftest import CLASSES, HEIGHT, IMAGES, STORED, WIDTH, Chain


def measured(run: Path, folder: Path, **more: Any) -> dict[str, Any]:
    measure_run(run, folder, **more)
    values: dict[str, Any] = json.loads((folder / "measurement.json").read_text())
    return values


def ranking(*labels: int) -> Ranking:
    kept = torch.tensor([labels])
    return Ranking(kept, torch.ones(kept.shape), torch.ones_like(kept, dtype=torch.bool))


def hand_worked() -> Tally:
    """Two images of four pixels, three labels; the second image's label 2 is not kept, and one pixel has no label."""
    tally = Tally(2, 3)
    tally.add(0, mask=torch.tensor([[0, 0], [1, 1]]), label_map=torch.tensor([[0, 1], [1, 1]]), ranking=ranking(1, 0),
              scores=torch.tensor([0.9, 0.8, 0.1]))  # fmt: skip
    tally.add(1, mask=torch.tensor([[2, 2], [0, IGNORE]]), label_map=torch.tensor([[0, 0], [0, 1]]),
              ranking=ranking(0, 1), scores=torch.tensor([0.7, 0.6, 0.2]))  # fmt: skip
    return tally


def test_the_measures_of_a_pass_are_those_worked_out_by_hand() -> None:
    found = hand_worked().numbers()
    # label 0: right 1 + 1, true 2 + 1, predicted 1 + 3; label 1: right 2, true 2, predicted 3 (where there is a truth)
    assert found["classes"]["iou"] == pytest.approx([2 / 5, 2 / 3, 0])
    assert found["mIoU"] == pytest.approx((2 / 5 + 2 / 3) / 3)
    assert found["pixel_accuracy"] == pytest.approx(4 / 7)
    assert found["zero_iou_share"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(3 / 4)  # of the labels 0 1 and 0 2, all but the last one
    assert found["image_recall"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["class_recall"] == pytest.approx(2 / 3)
    assert found["pixel_coverage"] == pytest.approx(5 / 7)
    assert found["class_coverage"] == pytest.approx(2 / 3)
    assert found["mean_kappa"] == 2
    assert found["labels_per_image"] == [0, 0, 2]


def test_ranked_labels_say_which_of_them_are_there_and_how_many_come_later() -> None:
    assert hand_worked().ranked(1, 2) == {
        "labels": [0, 1], "scores": [0.7, 0.6], "present": [True, False], "missed": 1,
    }  # fmt: skip


def test_the_kept_pixel_counts_give_back_the_miou(tmp_path: Path) -> None:
    tally = hand_worked()
    np.savez(tmp_path / "images.npz", **tally.sparse(["a", "b"]))
    counts = ImageCounts.read(tmp_path / "images.npz")
    assert counts.image_ids == ("a", "b")
    assert resampled_miou(counts, np.ones((1, 2)))[0] == pytest.approx(tally.numbers()["mIoU"])


def test_calibration_by_hand() -> None:
    scores = torch.tensor([[0.95, 0.05, 0.45], [0.91, 0.09, 0.0]])
    present = torch.tensor([[True, False, True], [False, False, False]])
    found = calibration(scores, present, 3)
    low, middle, high = found["bins"]
    assert (low["bin"], low["count"], low["observed"]) == (0, 3, 0)
    assert (middle["count"], middle["observed"]) == (1, 1)
    assert (high["bin"], high["observed"]) == (9, 0.5)
    assert high["score"] == pytest.approx(0.93)
    error = 3 / 6 * (0.14 / 3) + 1 / 6 * 0.55 + 2 / 6 * 0.43
    assert found["error"] == pytest.approx(error)


def test_only_labels_with_a_score_of_their_own_count_for_calibration() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.0, 0.0]])
    assert calibration(scores, torch.ones(1, 4, dtype=torch.bool), 2)["pairs"] == 2


def test_perfect_scores_have_the_best_of_every_measure() -> None:
    pixels = torch.tensor([[3, 0, 1], [0, 2, 0]])
    found = presence_quality((pixels > 0).float(), pixels, 3)
    assert found["mAP_raw"] == found["mAP_envelope"] == 1
    assert found["calibration"]["error"] == 0
    assert found["curves"]["kappa"] == [1, 2, 3]
    assert found["curves"]["pixel_coverage"] == pytest.approx([(3 + 2) / 6, 1, 1])


@pytest.mark.parametrize(
    ("settings", "presence", "kept"),
    [
        (("--source.train", "cache"), "label cache", 2),
        (("--source.train", "complete"), "pixel scores", len(CLASSES)),
        (("--source.train", "oracle"), "truth", None),
        (("--source.train", "joint", "--labels.head", "encoder"), "label branch", 2),
        (("--source.train", "complete", "--labels.head", "pooled"), "label branch", len(CLASSES)),
    ],
)
def test_a_network_of_each_kind_is_measured_as_it_is_evaluated(
    chain: Chain, settings: tuple[str, ...], presence: str, kept: int | None
) -> None:
    run = chain.out / "stage2-it"
    assert main(chain.words("run-stage2", *settings, "--name", "it")) == 0
    found = measured(run, chain.home / "measure", gallery=1)
    told = evaluate_run(run)
    for measure, value in told.numbers().items():
        if measure in found:
            assert found[measure] == pytest.approx(value), measure
    assert found["classes"]["iou"] == pytest.approx(list(told.class_iou.values()))
    assert found["presence"] == presence
    assert kept is None or found["mean_kappa"] == kept
    if told.label_mAP is not None:
        assert found["mAP_envelope"] == pytest.approx(told.label_mAP)
    if presence == "truth":
        assert found["mAP_raw"] == found["recall"] == found["pixel_coverage"] == 1
    assert (found["rank_scale"] is None) == (presence not in ("label cache", "label branch") or kept == len(CLASSES))
    assert [example["image_id"] for example in found["ranked"]] == [IMAGES["val"][0]]
    with Image.open(chain.home / "measure" / found["gallery"][0]["file"]) as picture:
        assert picture.size == (WIDTH, HEIGHT)
        assert set(np.unique(np.asarray(picture))) <= set(range(len(CLASSES)))


def test_a_ranking_from_a_cache_is_scored_with_all_that_the_cache_stores(chain: Chain) -> None:
    found = measured(chain.out / "stage2-cache", chain.home / "measure", settings=[("source.test_kappa", "1")])
    assert found["mean_kappa"] == found["kappa"] == 1
    assert found["curves"]["kappa"] == list(range(1, STORED + 1))
    assert found["calibration"]["pairs"] == STORED * len(IMAGES["val"])
    assert found["settings"] == {"source.test_kappa": "1"}


def test_frequencies_are_counted_in_images_of_the_training_split(chain: Chain) -> None:
    found = measured(chain.out / "stage2-cache", chain.home / "measure")
    masks = [np.asarray(Image.open(chain.mask(image_id))) for image_id in IMAGES["train"]]
    assert found["train_images"] == [sum((mask == label).any() for mask in masks) for label in range(len(CLASSES))]
    assert sum(found["train_labels_per_image"]) == len(masks)


def test_measuring_again_replaces_the_measurement_and_nothing_else(chain: Chain) -> None:
    folder = chain.home / "measure"
    measured(chain.out / "stage2-cache", folder, gallery=2)
    measured(chain.out / "stage2-cache", folder, gallery=1)
    assert [path.name for path in (folder / "gallery").iterdir()] == ["000.png"]
    (folder / "measurement.json").rename(folder / "notes.json")
    with pytest.raises(UserError, match="no measurement to replace"):
        measure_run(chain.out / "stage2-cache", folder)
    assert (folder / "notes.json").exists()


def test_a_setting_of_the_network_is_refused(chain: Chain) -> None:
    with pytest.raises(UserError, match="part of the trained network"):
        measure_run(chain.out / "stage2-cache", chain.home / "measure", settings=[("host.options.width", "16")])
    assert not (chain.home / "measure").exists()
