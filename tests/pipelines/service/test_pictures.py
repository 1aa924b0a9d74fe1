"""What the service makes of files that are no picture, or an unusual one."""

from __future__ import annotations

import base64
import io
import struct
import warnings

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageOps

from pipelines.service import segmenting
from pipelines.service.pictures import decoded
from pipelines.service.problems import Problem
from tests.pipelines.service.conftest import LIMITS, picture
from tests.pipelines.service.hostile import (
    KINDS,
    ROUTES,
    png,
    saved,
    sent,
    sized,
    told,
)


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


@pytest.mark.slow
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
