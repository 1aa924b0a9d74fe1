"""What the service makes of requests that want to break it."""

from __future__ import annotations

import base64
import gc
import io
import pickle
import re
import socket
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import requests
import schemathesis
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipelines.service import records, segmenting
from pipelines.service.app import create_app
from pipelines.service.config import ServeConfig
from pipelines.service.house import House
from pipelines.service.pictures import decoded
from pipelines.service.problems import Problem
from tests.pipelines.service.conftest import HERE, LIMITS, Process, answering, picture, process

ROUTES = ("/v1/rank", "/v1/rank:batch", "/v1/segment")
LOOKUPS = "/v1/caches/labels/labels"
ANY = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
KINDS = ("JPEG", "PNG", "WEBP")


def told(answer: Any, *, status: int | None = None, field: str | None = None, limit: float | None = None) -> Any:
    """The problem of a refused request, as it has to be. What is left out is not compared."""
    assert 400 <= answer.status_code < 500, f"{answer.status_code} {answer.text[:300]}"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = records.ProblemDetails.model_validate_json(answer.content)
    assert problem.status == answer.status_code and problem.detail and len(answer.content) < 2000
    assert status in (None, problem.status) and field in (None, problem.field) and limit in (None, problem.limit), (
        problem
    )
    return problem


def sent(client: Any, route: str, data: bytes, **query: Any) -> Any:
    """The answer about one image; for a batch the problem or the ranking in it, as if it were the answer."""
    if not route.endswith(":batch"):
        return client.post(route, content=data, params=query, headers=ANY)
    answer = client.post(route, files=[("image", ("x", data))], params=query)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    problem = result.get("problem")
    return httpx2.Response(
        problem["status"] if problem else 200, json=problem or result,
        headers={"Content-Type": "application/problem+json" if problem else "application/json"},
    )  # fmt: skip


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG that says it has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )  # fmt: skip


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sized(kind: str, side: int) -> bytes:
    """A small file whose header says that the picture is side x side."""
    if kind == "PNG":
        return png(side, side, bytes(100))
    if kind == "JPEG":
        whole = picture(kind="JPEG")
        place = whole.index(b"\xff\xc0") + 5  # the frame header: marker, length, bits, height, width
        return whole[:place] + struct.pack(">HH", side, side) + whole[place + 4 :]
    webp = bytearray(saved(Image.open(io.BytesIO(picture(mode="RGBA"))), "WEBP", lossless=True))
    bits = (min(side, 16384) - 1) | (min(side, 16384) - 1) << 14 | 1 << 28
    place = webp.index(b"VP8L") + 9
    webp[place : place + 4] = struct.pack("<I", bits)
    return bytes(webp)


# ------------------------------------------------------------------------------------------ everything that OpenAPI has


def schema() -> Any:
    """What the service promises, with the examples made from it kept few, and the same in each run."""
    config = schemathesis.Config.from_dict(
        {"generation": {"deterministic": True, "max-examples": 25, "database": "none"}}
    )
    house = House(ServeConfig(caches=("labels",)), ("sky",), {}, None, None)  # the schema is the same for every house
    return schemathesis.openapi.from_dict(create_app(house).openapi(), config=config)


def through(client: TestClient, case: Any) -> httpx2.Response:
    """The answer to a case, sent to the application as `requests` would put it on the wire."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url=HERE)).prepare()
    assert prepared.method and prepared.url and isinstance(prepared.body, bytes | str | None)
    headers = [(name, value if isinstance(value, str) else value.decode("latin-1"))
               for name, value in prepared.headers.items()]  # fmt: skip
    return client.request(prepared.method, prepared.url, content=prepared.body, headers=headers)


for name in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(name, st.sampled_from([picture(), picture(kind="JPEG"), b"no picture"]))


@schema().parametrize()
@examples(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_schema_promises(case: Any, client: TestClient) -> None:
    checks = schemathesis.checks
    case.validate_response(through(client, case), excluded_checks=[checks.CHECKS.get_one("positive_data_acceptance")])


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_ends_early_is_refused(client: TestClient, route: str, kind: str) -> None:
    whole = picture(kind=kind)
    assert sent(client, route, whole).status_code == 200
    for share in (0.3, 0.6, 0.9):
        told(sent(client, route, whole[: int(share * len(whole))]), status=422, field="image")
    for length in (1, 10, 20):
        assert told(sent(client, route, whole[:length]), field="image").status in (415, 422)
    told(sent(client, route, b""), status=422, field="image")


OTHERS = {
    "text": b"hello " * 100, "pdf": b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n%%EOF", "html": b"<html></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><image href="file:///etc/passwd"/></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "zeros": bytes(1000), "ones": b"\xff" * 1000,
    **{kind: picture(kind=kind) for kind in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA")},
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_jpeg_png_or_webp_is_refused(client: TestClient, route: str, name: str) -> None:
    told(sent(client, route, OTHERS[name]), status=415, field="image")


def variants() -> dict[str, tuple[bytes, bytes]]:
    """Name → a picture of an unusual kind, and the plain PNG that it has to be taken for."""
    rgb = Image.open(io.BytesIO(picture()))
    other = Image.open(io.BytesIO(picture(seed=1)))
    grey = Image.open(io.BytesIO(picture(mode="L")))
    values = np.asarray(grey)
    palette = rgb.quantize(16)
    clear = rgb.convert("RGBA")
    clear.putalpha(grey)
    cmyk = picture(mode="CMYK", kind="JPEG")
    frames = {"save_all": True, "append_images": [other]}
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turn it by 90 degrees to see it upright
    jpeg = saved(rgb, "JPEG", exif=turned)

    def plain(image: Image.Image) -> bytes:
        return saved(image.convert("RGB"), "PNG")

    def upright(data: bytes) -> bytes:
        return plain(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))

    return {
        "animated WebP": (saved(rgb, "WEBP", lossless=True, **frames), plain(rgb)),
        "animated PNG": (saved(rgb, "PNG", **frames), plain(rgb)),
        "16-bit PNG": (saved(Image.fromarray(values.astype(np.uint16) * 257), "PNG"), plain(grey)),
        "grey PNG": (saved(grey, "PNG"), plain(grey)),
        "one-bit PNG": (saved(grey.convert("1"), "PNG"), plain(grey.convert("1"))),
        "grey and alpha": (saved(clear.convert("LA"), "PNG"), plain(clear.convert("LA").convert("L"))),
        "alpha": (saved(clear, "PNG"), plain(rgb)),
        "CMYK JPEG": (cmyk, plain(Image.open(io.BytesIO(cmyk)))),
        "palette": (saved(palette, "PNG", transparency=0), plain(palette)),
        "palette with alphas": (saved(palette, "PNG", transparency=bytes(range(16))), plain(palette)),
        "turned JPEG": (jpeg, upright(jpeg)),
        "turned PNG": (saved(rgb, "PNG", exif=turned), plain(rgb.transpose(Image.Transpose.ROTATE_270))),
        "turned WebP": (
            saved(rgb, "WEBP", exif=turned, lossless=True), plain(rgb.transpose(Image.Transpose.ROTATE_270)),
        ),
        "progressive JPEG": (
            saved(rgb, "JPEG", progressive=True), plain(Image.open(io.BytesIO(saved(rgb, "JPEG", progressive=True)))),
        ),
    }  # fmt: skip


VARIANTS = variants()


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unusual_picture_is_taken_for_the_plain_one_that_it_shows(client: TestClient, name: str) -> None:
    unusual, plain = VARIANTS[name]
    assert np.array_equal(decoded(unusual, max_pixels=10_000), decoded(plain, max_pixels=10_000))
    for route in ROUTES[:2]:
        one, two = (sent(client, route, data).json() for data in (unusual, plain))
        assert (one["ids"], one["scores"]) == (two["ids"], two["scores"])
    one, two = (sent(client, "/v1/segment", data).json() for data in (unusual, plain))
    assert one["label_map"] == two["label_map"]


def test_a_turned_picture_gets_a_map_of_its_upright_size(client: TestClient) -> None:
    made = sent(client, "/v1/segment", VARIANTS["turned JPEG"][0]).json()["label_map"]
    assert (made["height"], made["width"]) == (40, 30)  # stored 30 x 40
    assert Image.open(io.BytesIO(base64.b64decode(made["png"]))).size == (30, 40)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 2)])
@pytest.mark.parametrize("route", ROUTES)
def test_the_smallest_pictures_are_answered(client: TestClient, route: str, size: tuple[int, int]) -> None:
    for kind in KINDS:
        made = sent(client, route, picture(size, kind=kind))
        assert made.status_code == 200, made.text
        if route == "/v1/segment":
            assert (made.json()["label_map"]["width"], made.json()["label_map"]["height"]) == size


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [1001, 16383, 20_000, 65_535])
def test_a_header_that_claims_too_many_pixels_is_refused(client: TestClient, route: str, kind: str, side: int) -> None:
    told(sent(client, route, sized(kind, side)), status=413, field="image", limit=LIMITS.pixels)


def test_a_line_of_pixels_does_not_fill_the_memory(client: TestClient) -> None:
    """Its shorter side is made 32 long: 1 x 600,000 pixels would become 32 x 19,200,000."""
    line = png(600_000, 1, bytes(600_001))
    told(sent(client, "/v1/segment", line), status=413, field="image", limit=LIMITS.segment_pixels)
    assert sent(client, "/v1/rank", line).status_code == 200
    assert sent(client, "/v1/segment", picture((1000, 1))).status_code == 200


def test_labels_are_not_scored_at_more_pixels_than_fit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 847 labels of ADE20K-Full at 16 million pixels would be 54 GB. Here the view is 32 x 43."""
    monkeypatch.setattr(segmenting, "SCORES", 4 * 40 * 30 - 1)
    told(sent(client, "/v1/segment", picture(), ranking="complete"), status=413, field="kappa", limit=3)
    assert sent(client, "/v1/segment", picture(), kappa=3).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_exif_that_pillow_cannot_write_back_is_no_failure_of_the_service(client: TestClient, route: str) -> None:
    """Found by fuzzing: a turned picture whose resolution is a text, over which Pillow raises a TypeError."""
    turned = struct.pack(">HHIHxx", 0x0112, 3, 1, 6)
    resolution = struct.pack(">HHI4s", 0x011A, 2, 4, b"abc\0")
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + turned + resolution + bytes(4)
    for kind in KINDS:
        told(sent(client, route, saved(Image.open(io.BytesIO(picture())), kind, exif=exif)), status=422, field="image")


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_to_a_picture_is_more_than_a_refusal(kind: str) -> None:
    whole, rng, refused = picture((16, 12), kind=kind), np.random.default_rng(0), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in the service, where Pillow's warnings are no errors
        for _ in range(400):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                data[min(place, len(data) - 1)] = rng.integers(0, 256)
            for _ in range(rng.integers(0, 2)):
                place = rng.integers(0, len(data))
                data[place : place + rng.integers(1, 30)] = rng.bytes(int(rng.integers(0, 30)))
            try:
                image = decoded(bytes(data), max_pixels=100_000)
            except Problem as problem:
                assert 400 <= problem.status_code < 500 and problem.field == "image"
                refused += 1
            else:
                assert image.dtype == np.uint8 and image.shape[0] == 3 and image[0].size <= 100_000
    assert 50 < refused < 400


# ----------------------------------------------------------------------------------------------------------- parameters

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


PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
FORM = "multipart/form-data; boundary=x"


def body_limits() -> dict[str, int]:
    image = LIMITS.image_bytes
    return {"/v1/rank": image, "/v1/segment": image, "/v1/rank:batch": LIMITS.images_per_request * image,
            f"{LOOKUPS}:batch": LIMITS.ids_per_request * 1000}  # fmt: skip


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


# ----------------------------------------------------------------------------------------------------- over a real wire


@pytest.fixture(scope="module")
def served(finished: Any) -> Iterator[Process]:
    out = finished.out
    words = ["--classifier", str(out / "stage1"), "--cache", str(out / "labels"),
             "--segmenter", str(out / "stage2-cache"),
             *(f"--limits.{name}={getattr(LIMITS, name)}" for name in ("image_bytes", "images_per_request", "queue")),
             "--limits.ids_per_request=10", "--limits.seconds=2"]  # fmt: skip
    with process(*words) as found:
        yield found


def raw(served: Process, data: bytes, *, then: bytes = b"", seconds: float = 10) -> bytes:
    """All that comes back for some bytes, until the service ends the connection or has answered once."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), seconds) as wire:
        got = b""
        try:
            wire.sendall(data)
            wire.sendall(then)
        except OSError:
            pass  # refused while it was sent
        try:
            while piece := wire.recv(65536):
                got += piece
                head, end, body = got.partition(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: (\d+)", head)
                if end and found and len(body) >= int(found[1]):
                    break
        except ConnectionResetError:
            pass
        return got


def status(got: bytes) -> int:
    assert got.startswith(b"HTTP/1.1 "), got[:100]
    return int(got[9:12])


def request(method: str, path: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([method.encode() + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1", *headers, b"", b""])


def images_inside(served: Process) -> int:
    text = httpx2.get(f"{served.url}/v1/metrics").text
    return int(float(re.search(r"^kappaseg_images_inside (\S+)", text, re.M)[1]))  # type: ignore[index]


def is_well(served: Process) -> bool:
    """Whether it answers, ranks, and has nothing inside."""
    answer = httpx2.post(f"{served.url}/v1/rank", content=picture(), headers=ANY)
    return served.child.poll() is None and answer.status_code == 200 and images_inside(served) == 0


def test_a_body_without_a_length_is_cut_at_the_limit(served: Process) -> None:
    piece = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    for route, most in body_limits().items():
        kind = b"application/json" if route.startswith(LOOKUPS) else FORM.encode()
        head = request("POST", route.encode(), b"Content-Type: " + kind, b"Transfer-Encoding: chunked")
        head += b"%x\r\n" % len(PART) + PART + b"\r\n"
        got = raw(served, head, then=piece * (2 * most // 0x4000 + 20))
        assert status(got) == 413 and b"connection: close" in got and b'"field": "body"' in got
    assert is_well(served)


@pytest.mark.parametrize("headers", [
    [b"Content-Length: -5"], [b"Content-Length: x"], [b"Content-Length: 1", b"Content-Length: 2"],
    [b"Content-Length: 99999999999999999999999999"], [b"Content-Length: 3", b"Transfer-Encoding: chunked"],
    [b"Transfer-Encoding: gzip"], [b"no colon"], [b"X: \x00"], [b": empty name"],
])  # fmt: skip
def test_a_broken_head_is_refused_on_the_wire(served: Process, headers: list[bytes]) -> None:
    got = raw(served, request("POST", b"/v1/rank", b"Content-Type: image/png", *headers), then=b"abc")
    assert status(got) in (400, 413, 415, 422) and b"application/problem+json" in got
    assert is_well(served)


@pytest.mark.parametrize("target", [
    b"/v1/caches/labels/labels/\xff\xfe", b"/v1/caches/\xff/labels/x", b"/v1/caches/labels/images?split=\xff",
    b"/v1/rank?kappa=\xff", b"\xff", b"*", b"http://evil.example/v1/healthz", b"//", b"/v1/healthz\x00",
    b"/" + b"a" * 20_000, b"/v1/caches/labels/labels/" + b"%" * 100, b"/%",
    b"/v1/caches/labels/labels/../../../etc/passwd",
])  # fmt: skip
def test_a_target_that_is_no_path_is_refused_on_the_wire(served: Process, target: bytes) -> None:
    got = raw(served, request("GET", target))
    assert status(got) in (200, 400, 404, 405, 414, 421, 422) and b"root:" not in got
    assert is_well(served)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01" + bytes(500), b"\r\n" * 100, b"GET\r\n\r\n", bytes(1000),
                                  b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])  # fmt: skip
def test_what_is_no_request_is_no_harm(served: Process, data: bytes) -> None:
    got = raw(served, data, seconds=1) if data.strip() else b""
    assert not got or status(got) in (400, 404, 405, 421, 505)
    assert is_well(served)


def memory(served: Process, name: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    text = Path(f"/proc/{served.child.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


def largest_since(served: Process, work: Callable[[], Any]) -> int:
    """Bytes by which the process grew at most while something was done."""
    Path(f"/proc/{served.child.pid}/clear_refs").write_text("5")  # forget the largest so far
    before = memory(served, "VmRSS")
    work()
    return memory(served, "VmHWM") - before


def test_a_small_file_cannot_fill_the_memory(served: Process) -> None:
    """The limits of this service are the usual ones: 40 million pixels. 20000 x 20000 are 1.2 GB of RGB."""

    def bombs() -> None:
        with httpx2.Client(base_url=served.url) as client:
            for route in ROUTES:
                for kind in KINDS:
                    limit = 16_000_000 if route == "/v1/segment" else 40_000_000
                    told(sent(client, route, sized(kind, 20_000)), status=413, field="image", limit=limit)
            line = png(10_000_000, 1, bytes(10_000_001))
            told(sent(client, "/v1/segment", line), status=413, field="image")

    assert is_well(served)
    assert largest_since(served, bombs) < 150_000_000
    assert is_well(served)


@pytest.mark.parametrize(("start", "piece"), [
    (b"GET /v1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"a" * 1000), (b"GET /v1/healthz?", b"a" * 1000),
    (b"GET /v1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X: 1\r\n" * 200),
    (request("POST", b"/v1/rank", b"Content-Type: image/png", b"Transfer-Encoding: chunked") + b"0\r\n",
     b"X: 1\r\n" * 200),
])  # fmt: skip
def test_a_head_without_end_is_not_kept(served: Process, start: bytes, piece: bytes) -> None:
    def flood() -> None:
        got = raw(served, start, then=piece * 50_000)
        assert status(got) == 431 and b"\r\nconnection: close\r\n" in got and b"application/problem+json" in got
        assert b'"field": "head", "limit": 64000' in got and b"\r\nx-content-type-options: nosniff\r\n" in got

    assert is_well(served)
    assert largest_since(served, flood) < 20_000_000
    assert is_well(served)


def test_a_client_that_stops_sending_is_told_so_and_makes_room(served: Process) -> None:
    head = request("POST", b"/v1/rank", b"Content-Type: image/png", b"Content-Length: 1000")
    began = time.monotonic()
    got = raw(served, head, then=b"\x89PNG")
    assert status(got) == 408 and b"connection: close" in got and b'"limit": 2.0' in got
    assert 1 < time.monotonic() - began < 8
    assert is_well(served)


def test_a_client_that_hangs_up_makes_room(served: Process) -> None:
    address = urlsplit(served.url)
    for data in (b"", b"\x89PNG", picture()[:-10]):
        head = request("POST", b"/v1/rank", b"Content-Type: image/png", b"Content-Length: %d" % len(picture()))
        with socket.create_connection((address.hostname, address.port), 5) as wire:
            wire.sendall(head + data)
    deadline = time.monotonic() + 1.5  # before the time of a request is over
    while images_inside(served) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_well(served)


def test_nothing_that_was_sent_is_in_the_log_as_a_failure(served: Process) -> None:
    """Last in this file: it reads what the service has printed about all the above."""
    text = "\n".join(served.lines)
    assert "Traceback" not in text and "failed" not in text, text[-3000:]
