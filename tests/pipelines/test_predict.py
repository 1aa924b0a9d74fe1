"""`kappaseg predict`: which files it writes, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kappaseg_core.ranking import Ranking
from pipelines import predict
from pipelines.cli import main

RUN = "out/stage2-cache"


def labels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_each_image_gives_a_picture_and_a_label_map(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [str(chain.photo(image_id)) for image_id in ("v0", "a1")]
    assert main(["predict", RUN, *photos, "--to", "found/here"]) == 0
    found = {path.name for path in (chain.home / "found" / "here").iterdir()}
    assert found == {"v0.png", "v0.labels.png", "a1.png", "a1.labels.png"}
    printed = capsys.readouterr().out
    assert "written to found/here" in printed and "v0.jpg" in printed and "(rank " in printed


def test_pictures_go_to_predictions_where_no_folder_is_named(chain: Any) -> None:
    assert main(["predict", RUN, str(chain.photo("v0"))]) == 0
    assert (chain.home / "predictions" / "v0.labels.png").exists()


@pytest.mark.parametrize("size", [(44, 36), (17, 29), (130, 61)])
def test_a_label_map_has_the_size_of_its_own_image(chain: Any, size: tuple[int, int]) -> None:
    width, height = size
    Image.open(chain.photo("v0")).resize(size).save("other.png")
    assert main(["predict", RUN, "other.png"]) == 0
    assert labels(Path("predictions/other.labels.png")).shape == (height, width)


def test_a_photo_with_an_exif_rotation_is_segmented_upright(chain: Any) -> None:
    picture = Image.open(chain.photo("v0"))
    rotation = picture.getexif()
    rotation[0x0112] = 6  # to be turned by a quarter
    picture.save("turned.jpg", exif=rotation)
    assert main(["predict", RUN, "turned.jpg"]) == 0
    assert labels(Path("predictions/turned.labels.png")).shape == (picture.width, picture.height)


def test_a_label_map_holds_only_labels_of_its_ranking(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rankings: list[Ranking] = []
    segment = predict.segment_image

    def watched(model: Any, image: Any, ranking: Ranking, *rest: Any) -> Any:
        rankings.append(ranking)
        return segment(model, image, ranking, *rest)

    monkeypatch.setattr(predict, "segment_image", watched)
    names = ("v0", "v1", "a0", "a5")
    assert main(["predict", RUN, *(str(chain.photo(name)) for name in names), "--source.test_kappa", "1"]) == 0
    for name, ranking in zip(names, rankings, strict=True):
        assert ranking.labels.shape == (1, 1)
        assert set(labels(Path(f"predictions/{name}.labels.png")).ravel().tolist()) == {int(ranking.labels[0, 0])}


def test_a_new_image_gets_the_ranking_that_the_cache_holds_for_it(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation images are ranked by the same classifier in `rank` and, live, in `predict`."""
    from label_cache import LabelCache

    seen: list[list[int]] = []
    segment = predict.segment_image

    def watched(model: Any, image: Any, ranking: Ranking, *rest: Any) -> Any:
        seen.append(ranking.labels[0].tolist())
        return segment(model, image, ranking, *rest)

    monkeypatch.setattr(predict, "segment_image", watched)
    words = [str(chain.photo(name)) for name in ("v0", "v1")]
    assert main(["predict", RUN, *words, "--source.test_kappa", "3"]) == 0
    assert seen == LabelCache.open("out/labels").lookup(["v0", "v1"], 3).labels.tolist()


def test_two_predictions_are_the_same_to_the_byte(chain: Any) -> None:
    for folder in ("first", "second"):
        assert main(["predict", RUN, str(chain.photo("v0")), "--to", folder]) == 0
    for name in ("v0.png", "v0.labels.png"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes()


def test_another_prediction_overwrites_its_own_files_and_leaves_others(chain: Any) -> None:
    Path("predictions").mkdir()
    Path("predictions/notes.txt").write_text("mine")
    for _ in range(2):
        assert main(["predict", RUN, str(chain.photo("v0"))]) == 0
    assert {path.name for path in Path("predictions").iterdir()} == {"notes.txt", "v0.png", "v0.labels.png"}


def test_a_small_vocabulary_gives_8_bit_maps_and_one_above_256_labels_16_bit_ones(chain: Any) -> None:
    synthetic = ["--data.kind", "synthetic", "--data.options.train", "2", "--data.options.val", "1",
                 "--data.options.size", "32", "--data.options.classes"]  # fmt: skip
    for classes, mode in (("256", "L"), ("257", "I;16")):
        words = ["run-stage2", "stage2.yaml", "--out", classes, *synthetic, classes, "--source.train", "complete"]
        assert main([*words, "--loop.steps", "1"]) == 0
        assert main(["predict", f"{classes}/stage2-complete", "data/images/v0.jpg", "--to", classes]) == 0
        with Image.open(f"{classes}/v0.labels.png") as found:
            assert found.mode == mode


def test_16_bit_maps_keep_ids_above_255(tmp_path: Path) -> None:
    found = np.array([[0, 255, 256], [299, 1, 40_000]])
    predict.save_labels(found, 40_001, tmp_path / "map.png")
    assert labels(tmp_path / "map.png").tolist() == found.tolist()


def test_a_classifier_of_other_labels_is_refused(chain: Any, refused: Any) -> None:
    record = chain.out / "stage1" / "run.yaml"
    record.write_text(record.read_text().replace("- tree", "- bush"))
    words = ["predict", RUN, "data/images/v0.jpg"]
    refused(chain, words, "another class list than the run: class 2 is 'tree' there and 'bush' here")


def test_a_run_on_rankings_from_elsewhere_asks_for_their_classifier(chain: Any, refused: Any) -> None:
    assert main(chain.words("run-stage2", "--source.cache", "out/labels", "--name", "elsewhere")) == 0
    words = ["predict", "out/stage2-elsewhere", "data/images/v0.jpg"]
    refused(chain, words, "tested on the rankings in out/labels", "add --classifier RUN")
    assert main([*words, "--classifier", "out/stage1"]) == 0


def test_an_oracle_is_refused_and_takes_a_classifier_instead(chain: Any, refused: Any) -> None:
    assert main(chain.words("run-stage2", "--source.train", "oracle")) == 0
    words = ["predict", "out/stage2-oracle", "data/images/v0.jpg"]
    refused(chain, words, "tested on the ground truth, which a new image does not have; add --classifier RUN")
    assert main([*words, "--classifier", "out/stage1"]) == 0
