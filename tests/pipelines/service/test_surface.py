"""What the service answers, route by route, to requests that are as they should be."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from kappaseg_core.errors import UserError
from label_cache import LabelCache, class_hash
from pipelines.cli import main
from pipelines.service import records
from pipelines.service.config import ServeConfig
from pipelines.service.house import House, build_house
from tests.pipelines.conftest import CLASSES, HEIGHT, IMAGES, STORED, WIDTH
from tests.pipelines.service.conftest import answering, picture

ALL = [*IMAGES["train"], *IMAGES["val"]]


def photo(finished: Any, image_id: str) -> bytes:
    return finished.photo(image_id).read_bytes()


def rank(client: TestClient, data: bytes, **query: Any) -> Any:
    answer = client.post("/v1/rank", content=data, params=query, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def segment(client: TestClient, data: bytes, **query: Any) -> Any:
    answer = client.post("/v1/segment", content=data, params=query, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def label_map(made: Any) -> np.ndarray:
    values = np.asarray(Image.open(io.BytesIO(base64.b64decode(made["label_map"]["png"]))))
    return values if values.ndim == 2 else values.astype(int) @ [1, 256, 65536]


# ------------------------------------------------------------------------------------------------------------ ranking


def test_the_ranking_of_a_held_out_image_is_its_row_in_the_cache(client: TestClient, finished: Any) -> None:
    cache = LabelCache.open(finished.out / "labels")
    for image_id in IMAGES["val"]:
        served = rank(client, photo(finished, image_id), kappa=STORED)
        row = cache.lookup(image_id)
        assert served["ids"] == row.labels[0].tolist()
        assert np.array_equal(np.float16(served["scores"]), row.scores[0].astype(np.float16))
        assert served["names"] == [CLASSES[label] for label in served["ids"]]
        cached = client.get(f"/v1/caches/labels/labels/{image_id}").json()
        assert (cached["ids"], cached["scores"]) == (served["ids"], served["scores"])


def test_an_image_is_ranked_the_same_alone_and_among_others(client: TestClient, finished: Any) -> None:
    images = [photo(finished, image_id) for image_id in ALL[:4]]
    alone = [rank(client, data, kappa=4) for data in images]
    files = [("image", ("x.jpg", data)) for data in images]
    together = client.post("/v1/rank:batch", files=files, params={"kappa": 4}).json()["results"]
    assert max(result["batch"] for result in together) > 1
    assert [(r["ids"], r["scores"]) for r in together] == [(r["ids"], r["scores"]) for r in alone]


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "application/octet-stream"])
def test_an_image_may_be_the_body_or_a_part_of_a_form(client: TestClient, finished: Any, kind: str) -> None:
    data = photo(finished, "v0")
    body = client.post("/v1/rank", content=data, headers={"Content-Type": kind}).json()
    form = client.post("/v1/rank", files={"image": data}).json()
    assert body["ids"] == form["ids"] and len(form["ids"]) == len(CLASSES)  # 10, or all there are


def test_labels_below_the_threshold_are_left_out(client: TestClient, finished: Any) -> None:
    whole = rank(client, photo(finished, "v0"))
    middle = whole["scores"][1]
    some = rank(client, photo(finished, "v0"), threshold=middle)
    assert some["scores"] == [score for score in whole["scores"] if score >= middle]
    assert some["kappa"] == len(some["ids"]) == len(some["names"]) < len(CLASSES)
    assert rank(client, photo(finished, "v0"), threshold=1)["ids"] == []


def test_one_bad_image_does_not_fail_its_batch(client: TestClient, finished: Any) -> None:
    files = [("image", photo(finished, "v0")), ("image", b"no picture"), ("image", photo(finished, "v1"))]
    answer = client.post("/v1/rank:batch", files=files)
    first, bad, last = answer.json()["results"]
    assert answer.status_code == 200
    assert bad["problem"]["status"] == 415 and "no picture of JPEG, PNG, WEBP" in bad["problem"]["detail"]
    assert first["ids"] == rank(client, photo(finished, "v0"))["ids"]
    assert last["ids"] == rank(client, photo(finished, "v1"))["ids"]


# ----------------------------------------------------------------------------------------------------------- look-ups


def test_a_row_is_that_of_the_cache(client: TestClient, finished: Any) -> None:
    cache = LabelCache.open(finished.out / "labels")
    for image_id in ALL:
        answer = client.get(f"/v1/caches/labels/labels/{image_id}", params={"kappa": 2})
        got, row = records.CachedLabels.model_validate_json(answer.content), cache.lookup(image_id, 2)
        assert got.ids == row.labels[0].tolist() and got.source == row.source[0] and got.version == cache.digest
        assert np.array_equal(np.float32(np.float16(got.scores)), row.scores[0])


def test_a_batch_has_the_rows_in_order_and_names_what_is_missing(client: TestClient, finished: Any) -> None:
    asked = ["v1", "nobody", "a3", "v1"]
    answer = client.post("/v1/caches/labels/labels:batch", json={"image_ids": asked, "kappa": 2})
    got = records.CachedBatch.model_validate_json(answer.content)
    row = LabelCache.open(finished.out / "labels").lookup(["v1", "a3", "v1"], 2)
    assert got.image_ids == ["v1", "a3", "v1"] and got.missing == ["nobody"]
    assert got.ids == row.labels.tolist() and got.source == row.source.tolist()
    assert np.array_equal(np.float32(np.float16(got.scores)), row.scores)


def test_an_empty_batch_is_answered(client: TestClient) -> None:
    got = client.post("/v1/caches/labels/labels:batch", json={"image_ids": []}).json()
    assert (got["ids"], got["scores"], got["image_ids"], got["kappa"]) == ([], [], [], STORED)


def test_an_answer_that_the_client_has_is_not_sent_again(client: TestClient) -> None:
    path = "/v1/caches/labels/labels/v0"
    tag = client.get(path).headers["etag"]
    again = client.get(path, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(path, params={"kappa": 1}, headers={"If-None-Match": tag}).status_code == 200


def test_image_ids_come_page_by_page(client: TestClient) -> None:
    found, start = [], 0
    while start is not None:
        page = client.get("/v1/caches/labels/images", params={"split": "train", "start": start, "limit": 4}).json()
        found += page["image_ids"]
        start = page["next"]
    assert found == list(IMAGES["train"])


@pytest.mark.parametrize("image_id", ["a/b", "über", "a b", "x?y", "a\\b", '"', "50%"])
def test_every_id_that_a_cache_can_hold_is_found(
    settings: Callable[..., ServeConfig], finished: Any, tmp_path: Path, image_id: str
) -> None:
    folder = tmp_path / "labels"
    write_cache(folder, [image_id])
    with answering(settings(classifier=None, segmenter=None, caches=(str(folder),))) as client:
        for path in (quote(image_id, safe=""), quote(image_id)):
            assert client.get(f"/v1/caches/labels/labels/{path}").json()["image_id"] == image_id
        found = client.post("/v1/caches/labels/labels:batch", json={"image_ids": [image_id]}).json()
        assert found["image_ids"] == [image_id] and found["ids"] == [[0, 1, 2]]


def write_cache(folder: Path, image_ids: list[str], *, turn: int = 0, names: tuple[str, ...] = CLASSES) -> None:
    """A cache of these images, all with the labels 0, 1, … moved by `turn`."""
    from label_cache import CacheKey, CacheWriter, discard

    if folder.exists():
        discard(folder)
    key = CacheKey(dataset={"val": "0" * 64}, classes=class_hash(names), model=f"{turn:064x}", preprocess="0" * 64,
                   num_classes=len(names), k=3)  # fmt: skip
    writer = CacheWriter(folder, key, names)
    labels = [[(rank + turn) % len(names) for rank in range(3)]] * len(image_ids)
    writer.write_part("val", 0, ids=image_ids, labels=labels, scores=[[0.9, 0.5, 0.1]] * len(image_ids),
                      source="held-out")  # fmt: skip
    writer.commit({"val": 1})


# ------------------------------------------------------------------------------------------------------- segmentation


def test_a_label_map_is_the_one_of_predict(client: TestClient, finished: Any, tmp_path: Path) -> None:
    words = ["predict", str(finished.out / "stage2-cache"), str(finished.photo("v0")), "--to", str(tmp_path)]
    assert main(words) == 0
    made = segment(client, photo(finished, "v0"))
    assert np.array_equal(label_map(made), np.asarray(Image.open(tmp_path / "v0.labels.png")))
    assert (made["label_map"]["height"], made["label_map"]["width"]) == (HEIGHT, WIDTH)


def test_the_legend_names_the_labels_found_and_those_that_were_not(client: TestClient, finished: Any) -> None:
    made = segment(client, photo(finished, "v1"), kappa=4)
    found = label_map(made)
    shares = {entry["id"]: entry["share"] for entry in made["legend"]}
    assert shares == pytest.approx({int(label): float((found == label).mean()) for label in np.unique(found)})
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert set(made["not_found"]) == set(made["ranking"]["ids"]) - set(shares)
    for entry in made["legend"]:
        assert made["ranking"]["ids"][entry["rank"] - 1] == entry["id"] and CLASSES[entry["id"]] == entry["name"]


def test_a_label_switched_off_gets_no_pixel(client: TestClient, finished: Any) -> None:
    whole = segment(client, photo(finished, "v0"), kappa=3)
    off = whole["legend"][0]["id"]
    rest = segment(client, photo(finished, "v0"), kappa=3, without=[off])
    assert off not in label_map(rest) and rest["ranking"]["without"] == [off]
    assert rest["ranking"]["ids"] == whole["ranking"]["ids"]  # what was switched off can be switched on again
    assert set(np.unique(label_map(rest)).tolist()) <= set(whole["ranking"]["ids"]) - {off}


def test_both_encodings_are_the_same_map(client: TestClient, finished: Any) -> None:
    data = photo(finished, "v0")
    maps = [label_map(segment(client, data, encoding=encoding)) for encoding in ("grey", "rgb")]
    assert np.array_equal(*maps)
    alone = client.post("/v1/segment", content=data, headers={"Content-Type": "image/jpeg", "Accept": "image/png"})
    assert alone.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(alone.content))), maps[0])


def test_ids_above_16_bits_survive_the_rgb_encoding() -> None:
    from pipelines.service.segment import label_map_png

    found = np.array([[0, 255, 256], [65_535, 65_536, 16_777_215]])
    png = label_map_png(found, "rgb")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))).astype(int) @ [1, 256, 65536], found)


def test_more_labels_than_a_grey_map_can_tell_are_refused_and_rgb_is_named(
    client: TestClient, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.service.segmenting.GREY_LABELS", len(CLASSES) - 1)
    refused = client.post("/v1/segment?encoding=grey", files={"image": photo(finished, "v0")})
    assert refused.status_code == 422 and "ask for rgb" in refused.json()["detail"]
    assert segment(client, photo(finished, "v0"), encoding="rgb")["label_map"]["encoding"] == "rgb"


def test_an_image_may_be_segmented_with_the_labels_of_a_cache(client: TestClient, finished: Any) -> None:
    query = {"ranking": "cache", "cache": "labels", "image_id": "v0", "kappa": 2}
    made = segment(client, photo(finished, "v0"), **query)
    assert made["ranking"]["ids"] == client.get("/v1/caches/labels/labels/v0?kappa=2").json()["ids"]
    assert np.array_equal(label_map(made), label_map(segment(client, photo(finished, "v0"), kappa=2)))


def test_all_labels_are_a_ranking_too(client: TestClient, finished: Any) -> None:
    made = segment(client, photo(finished, "v0"), ranking="complete")
    assert made["ranking"]["ids"] == list(range(len(CLASSES)))


def test_a_network_that_ranks_itself_needs_no_classifier(
    settings: Callable[..., ServeConfig], joint_run: Path, finished: Any, tmp_path: Path
) -> None:
    with answering(settings(classifier=None, caches=(), segmenter=str(joint_run))) as client:
        about = client.get("/v1/models").json()["segmenter"]
        assert about["default"] == "own" and set(about["rankings"]) == {"own", "complete"}
        made = segment(client, photo(finished, "v0"))
        assert made["ranking"]["source"] == "own" and len(made["ranking"]["ids"]) == 2
        off = made["ranking"]["ids"][0]
        assert off not in label_map(segment(client, photo(finished, "v0"), without=[off]))
    assert main(["predict", str(joint_run), str(finished.photo("v0")), "--to", str(tmp_path)]) == 0
    assert np.array_equal(label_map(made), np.asarray(Image.open(tmp_path / "v0.labels.png")))


# ---------------------------------------------------------------------------------------------------- what is served


def test_the_service_says_what_it_serves(client: TestClient, house: House) -> None:
    about = records.Models.model_validate_json(client.get("/v1/models").content)
    assert about.classifier is not None and about.segmenter is not None and about.caches == ["labels"]
    assert about.segmenter.rankings == ["classifier", "complete", "cache"] and about.segmenter.default == "classifier"
    words = records.Vocabulary.model_validate_json(client.get("/v1/vocabulary").content)
    assert words.names == list(CLASSES) and words.hash == class_hash(CLASSES) == about.vocabulary
    assert len(set(words.colours)) == len(CLASSES)
    listed = client.get("/v1/caches").json()["caches"]
    assert listed == [client.get("/v1/caches/labels").json()] and listed[0]["images"] == len(ALL)


def test_no_place_on_the_server_is_told(client: TestClient, finished: Any) -> None:
    texts = [client.get(path).text for path in ("/v1/models", "/v1/caches", "/v1/metrics", "/v1/readyz", "/")]
    assert not any(str(finished.home) in text for text in texts)


def test_everything_is_counted(client: TestClient, finished: Any) -> None:
    def count(sample: str) -> float:
        lines = client.get("/v1/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))

    names = ['kappaseg_images_total{task="rank"}', 'kappaseg_lookups_total{cache="labels",found="yes"}',
             'kappaseg_requests_total{method="POST",route="/v1/rank",status="200"}',
             'kappaseg_requests_total{method="GET",route="none",status="404"}', "kappaseg_batch_images_count",
             'kappaseg_stage_seconds_count{stage="forward"}']  # fmt: skip
    before = [count(name) for name in names]
    rank(client, photo(finished, "v0"))
    client.get("/v1/caches/labels/labels/v0")
    client.get("/nowhere/1")
    assert [count(name) - old for name, old in zip(names, before, strict=True)] == [1] * len(names)
    assert count("kappaseg_images_inside") == 0
    assert count('kappaseg_ready{part="classifier"}') == 1


def test_the_open_inference_routes_are_there(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["name"] == "kappaseg"
    for model in ("classifier", "segmenter"):
        assert client.get(f"/v2/models/{model}").json()["name"] == model
        assert client.get(f"/v2/models/{model}/ready").json() == {"name": model, "ready": True}
    assert client.get("/v2/models/other").status_code == 404


def test_parts_with_other_classes_are_not_served_together(settings: Callable[..., ServeConfig], tmp_path: Path) -> None:
    write_cache(tmp_path / "other", ["x"], names=("sky", "road", "bush", "car"))
    with pytest.raises(UserError, match=r"does not fit .*: class 2 is 'bush' there and 'tree' here; serve them apart"):
        build_house(settings(caches=(str(tmp_path / "other"),), segmenter=None))


def test_a_part_that_is_not_served_is_told(settings: Callable[..., ServeConfig]) -> None:
    with answering(settings(classifier=None, segmenter=None)) as client:
        for route, flag in (("rank", "--classifier"), ("rank:batch", "--classifier"), ("segment", "--segmenter")):
            answer = client.post(f"/v1/{route}", files={"image": picture()})
            assert answer.status_code == 404 and flag in answer.json()["detail"]
        assert client.get("/v1/readyz").json() == {
            "ready": True,
            "parts": {"service": "ready", "cache labels": "ready"},
        }
