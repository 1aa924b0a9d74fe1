"""The page at `/`: one document with its style and script inside, and a policy that lets it load nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Response

router = APIRouter()
HERE = Path(__file__).parent


@router.get("/", include_in_schema=False)
async def page() -> Response:
    content, policy = document()
    return Response(content, media_type="text/html; charset=utf-8", headers={
        "Content-Security-Policy": policy, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY", "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    })  # fmt: skip


@cache
def document() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy: the hashes of its own style and script, and nothing from elsewhere."""
    style, script = ((HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    html = (HERE / "page.html").read_text("utf-8").replace("{{style}}", style).replace("{{script}}", script)
    policy = (
        f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy


def hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
