"""Bytes of picture files → arrays: photos as RGB u8, label maps as the integers that were stored.

Label maps are decoded without any rescaling: what counts is the number in the file. Pillow spreads 2- and 4-bit grey
values over 0..255; that is undone here.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from kappaseg_core.errors import UserError

#: Endings that make a file in the image folder a photo (compared in lower case).
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

#: Largest picture that is decoded, in pixels; a small file can claim any size and fill the memory. The value is
#: Pillow's own warning limit (a quarter of a GiB of RGB); Pillow refuses twice its Image.MAX_IMAGE_PIXELS by itself.
MAX_PIXELS = 89_478_485

#: what Pillow raises (TypeError: for EXIF data that it cannot write back when it turns a picture upright)
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, TypeError, struct.error)


def photo(data: bytes, name: str, *, formats: tuple[str, ...] | None = None) -> np.ndarray:
    """An image file's bytes as u8 [3, H, W], RGB, upright (its EXIF orientation applied).

    A view of [H, W, 3], as pictures are decoded: that saves a copy, and resizing it takes a third of the time.
    Grey, palette and CMYK pictures are converted. Transparency is dropped: the colours below it stay (as in OpenCV and
    torchvision). Of 16-bit values the high byte is kept, as Pillow does for 16-bit colour. Of an animation the first
    frame is read. `name` stands in the UserError for a damaged, unknown or oversized file.
    formats: those that are tried, by Pillow's names; None = all that it knows.
    """
    with _reading(name):
        picture = _open(data, name, formats)
    return pixels(picture, name)


def pixels(picture: Image.Image, name: str) -> np.ndarray:
    """What `photo` gives, of a picture that Pillow has opened."""
    with _reading(name):
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return np.array(_rgb(picture, name)).transpose(2, 0, 1)


def label_map(data: bytes, name: str) -> np.ndarray:
    """A PNG file's bytes as the integers it stores, [H, W], u8, u16 or i32: grey values, or indices of a palette.

    Raises UserError where the file is damaged or a colour picture. An EXIF orientation is not applied: masks are
    stored upright.
    """
    with _reading(name):
        picture = _open(data, name)
        if picture.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise UserError(
                f"{name} is a colour picture (mode {picture.mode}), wanted class ids in one 8- or 16-bit channel; "
                "convert its colours to ids"
            )
        picture.load()
        values = np.asarray(picture)
        if picture.mode == "1":
            return values.astype(np.uint8)
        return values // _grey_step(data) if picture.mode == "L" else values


def colours(data: bytes, name: str) -> np.ndarray:
    """A PNG file's bytes as the colours it stores, u8 [H, W, 3]. Raises UserError where they are not RGB in 8 bits.

    For pictures whose colours are numbers: nothing is converted, and an EXIF orientation is not applied.
    """
    with _reading(name):
        picture = _open(data, name)
        if picture.mode != "RGB":
            raise UserError(f"{name} is of mode {picture.mode}, wanted RGB in 8 bits; see whether it is the right file")
        return np.asarray(picture)


def stored_shape(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of the stored picture, before any EXIF rotation; reads the header only."""
    with _reading(name):
        width, height = _open(data, name).size
        return height, width


def stored_shape_and_orientation(path: Path, name: str) -> tuple[tuple[int, int], int]:
    """`stored_shape` of a file, and the EXIF orientation that `photo` applies (1 = it is upright as it is)."""
    with _reading(name), Image.open(path) as picture:
        width, height = picture.size
        return (height, width), int(picture.getexif().get(ExifTags.Base.Orientation, 1))


def content_fingerprint(images: Iterable[tuple[str, str]]) -> str:
    """sha256 (hex) over pairs (image id, sha256 of the image file), sorted: a data set's name for its own content."""
    digest = hashlib.sha256()
    for image_id, content in sorted(images):
        digest.update(f"{image_id}\0{content}\n".encode())
    return digest.hexdigest()


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever Pillow raises for bad bytes, as one line."""
    next_step = "replace the file or take its id out of the split"
    try:
        yield
    except UnidentifiedImageError:
        raise UserError(f"{name} is no picture of a known format; {next_step}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} is too large: {error}; {next_step}") from None
    except _UNREADABLE as error:
        raise UserError(f"{name} is damaged: {' '.join(str(error).split())}; {next_step}") from None


def _open(data: bytes, name: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    """The picture with its header read and its pixels not yet decoded."""
    picture = Image.open(io.BytesIO(data), formats=formats)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name} has {height}x{width} pixels, the limit is {MAX_PIXELS}; shrink it or raise "
            "kappaseg_core.scenes.images.MAX_PIXELS"
        )
    return picture


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name} has grey values up to {values.max()}, wanted at most 16 bits; convert it")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise UserError(f"{name} holds floating-point values, wanted 8 or 16 bits; convert it")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # Pillow warns about the direct way
    return picture.convert("RGB")


def _grey_step(data: bytes) -> int:
    """By how much Pillow multiplied the values of a grey PNG: 85 for 2 bits, 17 for 4 bits."""
    is_png = data[:8] == b"\x89PNG\r\n\x1a\n"
    bits, colour_type = data[24:26] if is_png else (8, 0)  # byte 24 and 25 of the file, in its IHDR block
    return {2: 85, 4: 17}.get(bits, 1) if colour_type == 0 else 1
