"""What the service makes of parameters, bodies and forms that want to break it."""

from __future__ import annotations

import gc
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from pipelines.service.config import ServeConfig
from pipelines.service.house import House
from tests.pipelines.service.conftest import LIMITS, answering, picture
from tests.pipelines.service.hostile import (
    ANY,
    FORM,
    JSON,
    LOOKUPS,
    PART,
    ROUTES,
    body_limits,
    sent,
    told,
)

LONG = "9" * 5000


@pytest.mark.parametrize("kappa", ["0", "-1", "5", "1" + 30 * "0", LONG, "x", "", "1.5", "nan", "%00", "%ff", "1e1"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_kappa_that_cannot_be_is_refused(client: TestClient, route: str, kappa: str) -> None:
    answer = client.post(f"{route}?kappa={kappa}", files={"image": picture()})
    told(answer, status=422, field="kappa", limit=4 if kappa.isdigit() and 4 < len(kappa) < 4000 else None)


@pytest.mark.parametrize("threshold", ["nan", "inf", "-inf", "-0.1", "1.1", "1e999", "x", ""])
@pytest.mark.parametrize("route", ROUTES[:2])
def test_a_threshold_that_is_no_probability_is_refused(client: TestClient, route: str, threshold: str) -> None:
    told(client.post(f"{route}?threshold={threshold}", files={"image": picture()}), status=422, field="threshold")


@pytest.mark.parametrize(("query", "status", "field", "limit"), [
    ("without=4", 422, "without", 3), ("without=-1", 422, "without", 3), ("without=1" + 30 * "0", 422, "without", 3),
    (f"without={LONG}", 422, "without.0", None), ("&".join(["without=0"] * 1001), 422, "without", 1000),
    ("without=0&without=1&without=2&without=3&kappa=4", 422, "without", None),
    ("ranking=x", 422, "ranking", None), ("encoding=x", 422, "encoding", None), ("ranking=own", 422, "ranking", None),
    ("ranking=cache", 422, "cache", None), ("ranking=cache&cache=labels", 422, "image_id", None),
    ("ranking=cache&cache=..%2f..&image_id=v0", 404, "cache", None),
    ("ranking=cache&cache=labels&image_id=../../etc/passwd", 404, "image_id", None),
    ("ranking=cache&cache=labels&image_id=v0&kappa=4", 422, "kappa", 3),
])  # fmt: skip
def test_what_segmentation_cannot_do_is_refused(
    client: TestClient, query: str, status: int, field: str, limit: float | None
) -> None:
    told(client.post(f"/v1/segment?{query}", files={"image": picture()}), status=status, field=field, limit=limit)


@pytest.mark.parametrize(("route", "wanted"), [
    ("/v1/rank", "kappa, threshold"), ("/v1/rank:batch", "kappa, threshold"),
    ("/v1/segment", "cache, encoding, image_id, kappa, ranking, without"),
    (f"{LOOKUPS}/v0", "kappa"), (f"{LOOKUPS}:batch", "none"), ("/v1/caches/labels/images", "limit, split, start"),
    ("/v1/caches/labels", "none"), ("/v1/caches", "none"),
])  # fmt: skip
def test_a_misspelt_parameter_is_not_ignored(client: TestClient, route: str, wanted: str) -> None:
    method = "POST" if route in ROUTES or route.endswith(":batch") else "GET"
    answer = client.request(method, f"{route}?kapa=1")
    assert told(answer, status=422, field="kapa").detail == f"kapa: no parameter of this route; wanted {wanted}"


def test_of_a_parameter_given_twice_the_last_counts(client: TestClient) -> None:
    answer = client.post("/v1/rank?kappa=3&kappa=1&threshold=1&threshold=0", files={"image": picture()})
    assert answer.json()["kappa"] == 1


IDS = [
    "nobody", "../../etc/passwd", "..", ".", "%2e%2e", "..%2f..%2f", "%00", "v0%00", "%ff%fe", "%ED%A0%80", "~root",
    "a" * 10_000, "%0d%0aSet-Cookie:%20a=b", "v0/..", "%252e%252e%252f", "\\\\host\\share", "C:%5C", "{0}", "%s",
]  # fmt: skip


@pytest.mark.parametrize("image_id", IDS, ids=[text[:20] for text in IDS])
def test_an_id_that_no_image_has_is_not_there(client: TestClient, image_id: str) -> None:
    for path in (f"{LOOKUPS}/{image_id}", f"/v1/caches/{image_id}", f"/v1/caches/{image_id}/labels/v0",
                 f"/v1/caches/labels/images?split={image_id}", f"/v2/models/{image_id}/ready"):  # fmt: skip
        answer = client.get(path)
        if answer.status_code == 200:  # the client itself has resolved the dots
            assert ".." in path or "/." in path
            continue
        problem = told(answer, status=404)
        assert "root:" not in answer.text and "set-cookie" not in answer.headers
        assert problem.field or problem.detail.startswith("Not Found")


@pytest.mark.parametrize(("body", "field"), [
    (b"{", "body"), (b"", "body"), (b"[]", "body"), (b"null", "body"), (b'"text"', "body"), (b"\xff\xfe", "body"),
    (b'{"image_ids":["\xff"]}', "body"), (b"[" * 60_000, "body"), (b'{"a":' * 10_000, "body"),
    (b'{"image_ids":[],"kappa":' + LONG.encode() + b"}", "body"),
    (b'{"image_ids":["\\ud800"]}', "image_ids"), (b'{"image_ids":["v0","\\udc00\\ud83d"]}', "image_ids"),
    (b'{"image_ids":{}}', "image_ids"), (b'{"image_ids":[1]}', "image_ids.0"), (b'{"image_ids":[[]]}', "image_ids.0"),
    (b'{"image_ids":[null]}', "image_ids.0"), (b'{"kappa":1}', "image_ids"), (b'{"image_ids":[],"x":1}', "x"),
    (b'{"\\ud800":1,"image_ids":[]}', None),
    *[(b'{"image_ids":[],"kappa":' + kappa + b"}", "kappa")
      for kappa in (b"0", b"-1", b"4", b"1e400", b"NaN", b"-Infinity", b"1.5", b'"x"', b"[]", b"9" * 40)],
])  # fmt: skip
def test_a_list_of_ids_that_is_none_is_refused(client: TestClient, body: bytes, field: str | None) -> None:
    told(client.post(f"{LOOKUPS}:batch", content=body, headers=JSON), status=422, field=field)


def test_strange_ids_in_a_list_are_missing(client: TestClient) -> None:
    asked = ["\0", "", "..", "\U0001f600", "a" * 10_000, '"', "\u2028"]
    answer = client.post(f"{LOOKUPS}:batch", json={"image_ids": [*asked, "v0"]})
    assert answer.json()["missing"] == asked and answer.json()["image_ids"] == ["v0"]


# -------------------------------------------------------------------------------------------------------- bodies, forms


def test_limits_are_told(client: TestClient) -> None:
    many = [("image", ("x", picture()))] * (LIMITS.images_per_request + 1)
    told(client.post("/v1/rank:batch", files=many), status=422, field="image", limit=LIMITS.images_per_request)
    ids = {"image_ids": ["v0"] * (LIMITS.ids_per_request + 1)}
    told(client.post(f"{LOOKUPS}:batch", json=ids), status=422, field="image_ids", limit=LIMITS.ids_per_request)
    large = bytes(LIMITS.image_bytes + 1)
    for route in ("/v1/rank", "/v1/segment"):
        told(client.post(route, content=large, headers=ANY), status=413, field="image", limit=LIMITS.image_bytes)
    for route in ROUTES:
        told(client.post(route, files={"image": large}), status=413, field="image", limit=LIMITS.image_bytes)


@pytest.mark.parametrize("route", body_limits())
@pytest.mark.parametrize("length", ["told", "not told", "a lie"])
def test_no_more_is_read_than_a_request_may_have(client: TestClient, route: str, length: str) -> None:
    """64,000 bytes are for what is around the images or ids."""
    most = body_limits()[route] + 64_000
    kind = {"Content-Type": "application/json" if route.startswith(LOOKUPS) else FORM}
    known = {"told": str(2 * most), "a lie": "10"}
    kind |= {"Content-Length": known[length]} if length in known else {}
    body: Any = iter([PART, bytes(most)]) if length == "not told" else PART + bytes(most)
    answer = client.post(route, content=body, headers=kind)
    told(answer, status=413, field="body", limit=most)
    assert answer.headers["connection"] == "close"


def raw_headers(kind: str, length: bytes | None = None) -> dict[bytes, bytes]:
    """Content-Type and Content-Length, whatever is in them."""
    return {b"Content-Type": kind.encode("latin-1"), **({} if length is None else {b"Content-Length": length})}


@pytest.mark.parametrize("length", ["-5", "x", "1e3", "0x10", "٣", "9" * 5000, " "])
@pytest.mark.parametrize("route", ROUTES)
def test_a_length_that_is_none_is_refused(client: TestClient, route: str, length: str) -> None:
    answer = client.post(route, content=picture(), headers=raw_headers(ANY["Content-Type"], length.encode()))
    assert told(answer).field in ("Content-Length", "body")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "", "multipart/mixed", "image",
                                  "application/x-www-form-urlencoded", "/", "\xff", "a" * 10_000])  # fmt: skip
def test_another_content_type_is_refused(client: TestClient, route: str, kind: str) -> None:
    answer = client.post(route, content=picture(), headers=raw_headers(kind))
    told(answer, status=415, field="Content-Type")
    told(client.post(route, content=picture()), status=415, field="Content-Type")


FORMS: dict[str, tuple[str, bytes]] = {
    "no boundary": ("multipart/form-data", PART + b"abc\r\n--x--\r\n"),
    "empty boundary": ("multipart/form-data; boundary=", PART + b"abc\r\n--x--\r\n"),
    "long boundary": (f"multipart/form-data; boundary={'x' * 5000}", PART),
    "boundary outside ASCII": ("multipart/form-data; boundary=\xff", PART),
    "nothing": (FORM, b""), "no part": (FORM, b"--x--\r\n"), "garbage": (FORM, b"abc"),
    "ends in header": (FORM, PART[:30]),
    "text for a file": (FORM, PART.replace(b'; filename="x"', b"") + b"abc\r\n--x--\r\n"),
    "another name": (FORM, PART.replace(b'"image"', b'"photo"') + b"abc\r\n--x--\r\n"),
    "no name": (FORM, PART.replace(b' name="image";', b"") + b"abc\r\n--x--\r\n"),
    "name outside UTF-8": (FORM, PART.replace(b'"image"', b'"\xff\xfe"') + b"abc\r\n--x--\r\n"),
    "huge part header": (FORM, b"--x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n--x--\r\n"),
    "another field beside": (FORM, PART + b"abc\r\n" + PART.replace(b'"image"', b'"x"') + b"abc\r\n--x--\r\n"),
    "many texts": (FORM, PART.replace(b'; filename="x"', b"").join([b""] + [b"abc\r\n"] * 20) + b"--x--\r\n"),
    "many files": (FORM, PART.join([b""] + [b"abc\r\n"] * 2000) + b"--x--\r\n"),
    "NUL in charset": (FORM + '; charset="\0"', PART + b"abc\r\n--x--\r\n"),
    "charset that is no text": (FORM + "; charset=hex", PART.replace(b'; filename="x"', b"") + b"abc\r\n--x--\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_holds_no_picture_is_refused(client: TestClient, route: str, name: str) -> None:
    kind, body = FORMS[name]
    answer = client.post(route, content=body, headers=raw_headers(kind))
    assert told(answer, status=422).field in ("image", "Content-Type", "body")


def test_a_form_that_ends_early_is_refused(client: TestClient) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Starlette leaves an unfinished file to be collected
        for body in (PART, PART + b"abc", PART + picture(), PART + b"abc\r\n--", PART + b"abc\r\n--x"):
            for route in ROUTES:
                told(client.post(route, content=body, headers=raw_headers(FORM)), status=422, field="image")
        gc.collect()


def test_nothing_of_a_refused_request_stays_inside(client: TestClient) -> None:
    house: House = client.app.state.house  # type: ignore[attr-defined]
    assert house.gate.inside == 0 and not (house.batcher and house.batcher.queue)


# -------------------------------------------------------------------------------------------------------------- pickles


def test_no_pickle_is_read(
    settings: Callable[..., ServeConfig], finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("a pickle is read")

    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr("_pickle." + name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("torch.serialization.load", refuse)
    with pytest.raises(AssertionError):
        pickle.loads(pickle.dumps(1))
    with answering(settings()) as client:
        data = finished.photo("v0").read_bytes()
        for route in ROUTES:
            assert sent(client, route, data).status_code == 200
        assert client.get(f"{LOOKUPS}/v0").status_code == 200
        assert client.post(f"{LOOKUPS}:batch", json={"image_ids": ["v0"]}).status_code == 200
        bad = pickle.dumps({"a": 1})
        told(sent(client, "/v1/rank", bad), status=415)
        told(client.post(f"{LOOKUPS}:batch", content=bad, headers={"Content-Type": "application/x-pickle"}), status=422)
