"""What tests of bad requests share: routes, files that lie, and how a refusal has to look."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import httpx2
from PIL import Image

from pipelines.service import records
from tests.pipelines.service.conftest import LIMITS, picture

ROUTES = ("/v1/rank", "/v1/rank:batch", "/v1/segment")
LOOKUPS = "/v1/caches/labels/labels"
ANY = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
KINDS = ("JPEG", "PNG", "WEBP")
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
FORM = "multipart/form-data; boundary=x"


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


def body_limits() -> dict[str, int]:
    image = LIMITS.image_bytes
    return {"/v1/rank": image, "/v1/segment": image, "/v1/rank:batch": LIMITS.images_per_request * image,
            f"{LOOKUPS}:batch": LIMITS.ids_per_request * 1000}  # fmt: skip
