"""What the service counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)
PREFIX = "kappaseg_"


class Watch:
    """All counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter(f"{PREFIX}requests", "Answers", ["route", "method", "status"], registry=r)
        self.seconds = Histogram(
            f"{PREFIX}request_seconds", "From request to answer", ["route"], buckets=SECONDS, registry=r
        )
        self.stage_seconds = Histogram(
            f"{PREFIX}stage_seconds", "Parts of a ranking: decode, queue, forward, segment", ["stage"],
            buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.batch_size = Histogram(f"{PREFIX}batch_images", "Images in a forward pass", buckets=SIZES, registry=r)
        self.inside = Gauge(f"{PREFIX}images_inside", "Images received and not yet answered", registry=r)
        self.images = Counter(f"{PREFIX}images", "Images ranked or segmented", ["task"], registry=r)
        self.lookups = Counter(f"{PREFIX}lookups", "Image ids looked up", ["cache", "found"], registry=r)
        self.ready = Gauge(f"{PREFIX}ready", "1 where a part can answer", ["part"], registry=r)
        self._counters: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}  # finding them by labels costs more
        self.info = Gauge(f"{PREFIX}served", "What is served: always 1", ["part", "version"], registry=r)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        if (counters := self._counters.get((route, method, status))) is None:
            counters = self.requests.labels(route, method, status), self.seconds.labels(route)
            self._counters[route, method, status] = counters
        counters[0].inc()
        counters[1].observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stage_seconds.labels(name).observe(time.perf_counter() - started)


def milliseconds(seconds: float) -> float:
    return round(1000 * max(0.0, seconds), 3)
