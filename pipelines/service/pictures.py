"""Images from strangers: limits before decoding, and one problem for each way in which bytes are no picture."""

from __future__ import annotations

import io
from typing import Any

from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from kappaseg_core.errors import UserError
from pipelines.service.problems import Problem

#: what Pillow is allowed to try; every other decoder stays shut
FORMATS = ("JPEG", "PNG", "WEBP")


def decoded(data: bytes, *, max_pixels: int) -> NDArray[Any]:
    """An image file as u8 [3, H, W], upright RGB, as `rank` and `predict` read it. Raises Problem.

    The header is read first: a file of some bytes may claim any size. Of an animation the first frame is read.
    """
    from kappaseg_core.scenes.images import pixels  # loads torch, which a service of caches alone does without

    if not data:
        raise Problem(422, "image: 0 bytes, wanted an image file", field="image")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Problem(415, f"image: no picture of {', '.join(FORMATS)}; convert it", field="image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many_pixels("over twice Pillow's own limit of", max_pixels) from None
    except Exception as error:  # Pillow's readers raise many kinds for a header that lies
        raise Problem(422, f"image: damaged header ({type(error).__name__})", field="image") from None
    width, height = picture.size
    if width * height > max_pixels:
        raise too_many_pixels(f"{height}x{width}", max_pixels)
    try:
        return pixels(picture, "image")
    except UserError as error:
        reason = str(error).removeprefix("image ").partition("; replace")[0]
        raise Problem(422, f"image: {reason}", field="image") from None
    except MemoryError:
        raise
    except Exception as error:
        raise Problem(422, f"image: damaged ({type(error).__name__})", field="image") from None


def too_many_pixels(seen: str, limit: int) -> Problem:
    return Problem(413, f"image: {seen} pixels, the limit is {limit}; shrink it", field="image", limit=limit)
