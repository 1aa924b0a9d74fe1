"""Asking a ranking service (`kappaseg serve`) from Python. Needs no torch.

with RankingClient("http://127.0.0.1:8000") as client:
    client.rank("photo.jpg", kappa=5).names
    client.lookup(["000000000139", "000000000285"], cache="labels", kappa=10).labels
"""

from __future__ import annotations

import io
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kappaseg_core.errors import UserError

#: the token of a client that is given none
TOKEN_VARIABLE = "KAPPASEG_TOKEN"
#: what the answers of some routes have, by the end of their path
EXPECTED = {
    "models": {"caches", "limits", "classifier"}, "vocabulary": {"names"}, "rank": {"ids", "scores", "names", "model"},
    "rank:batch": {"results"}, "labels:batch": {"ids", "scores", "source", "missing", "version", "kappa"},
}  # fmt: skip
#: the way to the service failed, not the service: worth another attempt
AGAIN = (
    httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError,
)  # fmt: skip
#: an image: a file, the bytes of one, or u8 [3, H, W]
Picture = str | Path | bytes | NDArray[Any]


class ServiceError(UserError):
    """What a service, or the way to it, had against a request. status: of HTTP; None where no answer came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


@dataclass(frozen=True)
class Ranked:
    """The labels of one image, most probable first. ids: i64 [κ].   scores: f32 [κ], in [0, 1].

    model, vocabulary: what ranked it, and among which class names (fingerprints).
    """

    ids: NDArray[np.int64]
    names: tuple[str, ...]
    scores: NDArray[np.float32]
    model: str
    vocabulary: str


@dataclass(frozen=True)
class Rankings:
    """Rows of a label cache, in the order asked for. labels: i32 [n, κ].   scores: f32 [n, κ].

    source: how the classifier that ranked each image relates to it.   version: generation of the cache.
    """

    image_ids: tuple[str, ...]
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    source: tuple[str, ...]
    version: str

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter((self.labels, self.scores))


class RankingClient:
    """A connection to a service; may be used from several threads. Close it, or use it in a `with`.

    token: bearer token (default: the variable KAPPASEG_TOKEN).   timeout: seconds for an answer.
    retries: how often a request is sent again when the service is full, draining or cannot be reached. The pauses
    double from `pause` seconds, or are as long as the service says. Every request may be repeated without harm.
    Raises ServiceError, a UserError of one line, for everything that goes wrong.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout: float = 60.0, retries: int = 5, pause: float = 0.1,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise ServiceError(f"service {url!r}: wanted http://HOST:PORT, as kappaseg serve prints it")
        self.url, self.retries, self.pause, self.longest = url.rstrip("/"), retries, pause, timeout
        token = token or os.environ.get(TOKEN_VARIABLE)
        token = token.strip() if token else None
        if token and not (token.isascii() and token.isprintable()):
            raise ServiceError("the token of the service is no plain ASCII text; give it as kappaseg serve has it")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # trust_env: a proxy of the environment is not for a service of one's own
        try:
            self._http = httpx2.Client(
                base_url=self.url, headers=headers, timeout=timeout, transport=transport, trust_env=False
            )
        except httpx2.InvalidURL as error:
            raise ServiceError(f"service {url!r}: {error}; wanted http://HOST:PORT") from None
        self._limits: dict[str, Any] | None = None
        self._close = weakref.finalize(self, self._http.close)  # a ranking source lives as long as whoever uses it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._close()

    def models(self) -> dict[str, Any]:
        """What is served, and the limits (see /v1/models)."""
        return self._ask("GET", "/v1/models")

    def vocabulary(self) -> tuple[str, ...]:
        """All class names, in order of label id."""
        return tuple(self._ask("GET", "/v1/vocabulary")["names"])

    def rank(self, image: Picture, *, kappa: int | None = None, threshold: float = 0.0) -> Ranked:
        """The κ best labels of an image (10 where κ is not given), less those with a score below the threshold.

        An array is sent without loss, so it is ranked as the service would rank its file.
        """
        answer = self._ask(
            "POST", "/v1/rank", params=query(kappa=kappa, threshold=threshold), content=file_of(image),
            headers={"Content-Type": "application/octet-stream"},
        )  # fmt: skip
        return ranked(answer)

    def rank_many(self, images: Sequence[Picture], *, kappa: int | None = None) -> list[Ranked]:
        """The ranking of each image, in order, as many in a request as the service takes.

        Raises ServiceError naming the first image that cannot be read.
        """
        found: list[Ranked] = []
        most = self._most("images_per_request")
        for start in range(0, len(images), most):
            files = [
                ("image", (f"{start + i}", file_of(image))) for i, image in enumerate(images[start : start + most])
            ]
            answer = self._ask("POST", "/v1/rank:batch", params=query(kappa=kappa), files=files)
            for number, result in enumerate(answer["results"], start):
                if problem := result.get("problem"):
                    raise ServiceError(f"image {number} of {len(images)}: {problem['detail']}", problem["status"])
                found.append(ranked(result))
        return found

    def lookup(self, image_ids: str | Sequence[str], *, cache: str | None = None, kappa: int | None = None) -> Rankings:
        """The first κ labels of images from a cache of the service; all that it stores where κ is not given.

        cache: its name; may be left out where the service has one. Raises ServiceError for ids that are not there, and
        where the cache was replaced between two requests of one call.
        """
        ids = [image_ids] if isinstance(image_ids, str) else list(image_ids)
        name = cache or self._only_cache()
        most = self._most("ids_per_request")
        answers = [
            self._ask("POST", f"/v1/caches/{name}/labels:batch", json={"image_ids": ids[i : i + most], "kappa": kappa})
            for i in range(0, max(1, len(ids)), most)
        ]
        if missing := [image_id for answer in answers for image_id in answer["missing"]]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ServiceError(f"{self.url}: cache {name} has no image {missing[0]!r}{more}; rank them first", 404)
        if len({answer["version"] for answer in answers}) > 1:
            raise ServiceError(f"{self.url}: cache {name} was replaced in the middle; ask again")
        kept = answers[0]["kappa"]
        return Rankings(
            tuple(ids),
            np.array([row for answer in answers for row in answer["ids"]], np.int32).reshape(-1, kept),
            half([row for answer in answers for row in answer["scores"]]).reshape(-1, kept),
            tuple(source for answer in answers for source in answer["source"]),
            answers[0]["version"],
        )

    def _only_cache(self) -> str:
        names = self.models()["caches"]
        if len(names) != 1:
            raise ServiceError(f"{self.url} has the caches {', '.join(names) or '(none)'}; name one: cache=…")
        return str(names[0])

    def _most(self, limit: str) -> int:
        if self._limits is None:
            self._limits = self.models()["limits"]
        return int(self._limits[limit])

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """A successful answer, after as many attempts as that takes and `retries` allows."""
        pause = self.pause
        for left in range(self.retries, -1, -1):
            try:
                answer = self._http.request(method, path, **request)
            except httpx2.TransportError as error:
                if left == 0 or not isinstance(error, AGAIN):
                    reason = str(error) or type(error).__name__
                    raise ServiceError(
                        f"service {self.url} does not answer: {reason}; is kappaseg serve running there?"
                    ) from None
                wait = pause
            else:
                if answer.is_success:
                    return self._read(answer, path)
                if answer.status_code != 503 or left == 0:
                    raise ServiceError(f"{self.url}{path}: {detail(answer)}", answer.status_code)
                wait = max(pause, number(answer.headers.get("Retry-After")))
            time.sleep(min(wait, self.longest))
            pause *= 2
        raise AssertionError

    def _read(self, answer: httpx2.Response, path: str) -> dict[str, Any]:
        """The JSON object of an answer. Raises ServiceError for anything else."""
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or not EXPECTED.get(path.rpartition("/")[2], set()) <= found.keys():
            raise ServiceError(f"{self.url}{path} gives something else; is this a kappaseg service?")
        return found


def file_of(image: Picture) -> bytes:
    """The bytes to send. Raises ServiceError for a file that cannot be read."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ServiceError(f"image {image} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ServiceError(f"image is {image.dtype} {list(image.shape)}, wanted uint8 [3, H, W]")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def ranked(answer: dict[str, Any]) -> Ranked:
    return Ranked(
        np.array(answer["ids"], np.int64), tuple(answer["names"]), half(answer["scores"]), answer["model"],
        answer["vocabulary"],
    )  # fmt: skip


def half(scores: Any) -> NDArray[np.float32]:
    """Scores are sent as the shortest decimals that give back their half-precision values."""
    return np.array(scores, np.float16).astype(np.float32)


def query(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def detail(answer: httpx2.Response) -> str:
    """What a problem says; else the status."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code} {answer.reason_phrase}; is this a kappaseg service?"


def number(text: str | None) -> float:
    try:
        found = float(text or 0)
    except ValueError:
        return 0.0
    return found if found > 0 else 0.0  # also not a number
