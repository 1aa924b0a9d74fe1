"""Settings of `kappaseg serve`."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from kappaseg_core.config import refuse_below
from kappaseg_core.errors import UserError

#: tokens without a file, separated by commas or blanks
TOKENS_VARIABLE = "KAPPASEG_TOKENS"
SHORTEST_TOKEN = 16
#: more than any machine has cores
THREADS = 1024


@dataclass(frozen=True)
class LimitsConfig:
    """What one client may cost."""

    image_bytes: int = 10_000_000
    """largest image file"""
    pixels: int = 40_000_000
    """largest image, checked before it is decoded (120 MB of RGB)"""
    segment_pixels: int = 16_000_000
    """largest image that is segmented; its label map has as many pixels"""
    images_per_request: int = 32
    ids_per_request: int = 1024
    queue: int = 64
    """images in the house at a time, being received, decoded, waiting and computed; one more is told to come back"""
    seconds: float = 30.0
    """that the head of a request may take, and from there the answer"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "image_bytes", "pixels", "segment_pixels", "images_per_request", "ids_per_request")
        refuse_below(self.images_per_request, self, "queue")
        if not 0 < self.seconds <= 86_400:
            raise ValueError(f"seconds = {self.seconds}, wanted more than 0 and at most a day")


@dataclass(frozen=True)
class BatchingConfig:
    """How images of different requests share a forward pass."""

    size: int = 16
    """images in a forward pass, at most"""
    wait_ms: float = 4.0
    """how long the first of them waits for others"""
    decoders: int = 2
    """threads that decode and resize images"""
    cores: int | None = None
    """that a forward pass on the CPU uses (default: those that the decoders leave)"""

    def __post_init__(self) -> None:
        refuse_below(1, self, "size", "decoders", *(() if self.cores is None else ("cores",)))
        for name in ("decoders", "cores"):
            if (getattr(self, name) or 0) > THREADS:
                raise ValueError(f"{name} = {getattr(self, name)}, wanted at most {THREADS}")
        refuse_below(0, self, "wait_ms")


@dataclass(frozen=True)
class ServeConfig:
    """`kappaseg serve`. At least one of classifier, caches and segmenter."""

    classifier: str | None = None
    """run directory of the classifier (OUT/stage1)"""
    caches: tuple[str, ...] = ()
    """label caches, each DIR or NAME=DIR; the name of DIR is its folder's"""
    segmenter: str | None = None
    """run directory of a segmentation network (OUT/stage2-…)"""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 = any free one"""
    token_file: str | None = None
    """file with one token a line; the variable KAPPASEG_TOKENS does the same"""
    cors: tuple[str, ...] = ()
    """origins of other pages that may ask, for example https://labels.example"""
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    check_seconds: float = 1.0
    """how often caches are looked at for a new generation or damage"""
    drain_seconds: float = 1.0
    """how long readiness says no before the address is given up, once the process is told to end"""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port = {self.port}, wanted 0 to 65535")
        for origin in self.cors:
            if not re.fullmatch(r"https?://[^/*]+", origin):
                raise ValueError(f"cors = {origin!r}, wanted an origin: https://HOST or https://HOST:PORT")
        if not self.check_seconds > 0 or self.drain_seconds < 0:
            raise ValueError("check_seconds has to be more than 0, drain_seconds 0 or more")

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def named_caches(self) -> dict[str, Path]:
        """Name → directory. Raises UserError where two have one name."""
        found: dict[str, Path] = {}
        for text in self.caches:
            name, given, folder = text.partition("=")
            if "/" in name or Path(text).is_dir():  # an = in a path
                given, folder = "", text
            path = Path(folder if given else text)
            name = name if given else path.absolute().name
            if not name or "/" in name:
                raise UserError(f"cache {text!r} has no name; give it one, as in labels={path}")
            if name in found:
                raise UserError(
                    f"two caches are called {name} ({found[name]} and {path}); name one, as in other={path}"
                )
            found[name] = path
        return found

    def tokens(self) -> frozenset[str]:
        """All tokens that are let in. Raises UserError for an address that needs one and has none."""
        texts = os.environ.get(TOKENS_VARIABLE, "").replace(",", " ").split()
        if self.token_file:
            try:
                texts += Path(self.token_file).read_text("utf-8").split()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"token file {self.token_file} cannot be read: {error}") from None
            if not texts:
                raise UserError(f"token file {self.token_file} is empty; write one token a line")
        for text in texts:
            if len(text) < SHORTEST_TOKEN or not text.isascii():
                raise UserError(
                    f"a token has {len(text)} characters, wanted at least {SHORTEST_TOKEN}, plain ASCII; make one with "
                    "python -c 'import secrets; print(secrets.token_urlsafe())'"
                )
        if not texts and not self.is_loopback:
            raise UserError(
                f"host {self.host} can be reached by others, and there is no token; add --token-file FILE "
                f"or set {TOKENS_VARIABLE}, or serve on 127.0.0.1"
            )
        return frozenset(texts)


@lru_cache(maxsize=64)  # asked for every request
def is_loopback(host: str) -> bool:
    """Whether an address means this machine alone. Names other than localhost do not: they may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
