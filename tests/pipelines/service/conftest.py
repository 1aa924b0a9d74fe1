"""A service of the tiny chain: as an application in this process, and as a process of its own on loopback."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.cli import main
from pipelines.service.app import create_app
from pipelines.service.config import LimitsConfig, ServeConfig
from pipelines.service.house import House, build_house
from pipelines.service.security import Tokens

HERE = "http://127.0.0.1"
#: small enough to be reached in tests
LIMITS = LimitsConfig(image_bytes=200_000, pixels=1_000_000, images_per_request=4, ids_per_request=10, queue=8)


def picture(
    size: tuple[int, int] = (40, 30), mode: str = "RGB", kind: str = "PNG", seed: int = 0, **save: Any
) -> bytes:
    """A picture of noise as the bytes of a file. size: (width, height)."""
    bands = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise[..., 0] if bands == 1 else noise, mode if bands > 1 else None).save(buffer, kind, **save)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def joint_run(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the tiny chain that ranks for itself."""
    out = tmp_path_factory.mktemp("joint")
    assert main([*finished.words("run-joint"), "--labels.head", "pooled", "--out", str(out)]) == 0
    return out / "stage2-joint"


@pytest.fixture(scope="session")
def settings(finished: Any) -> Callable[..., ServeConfig]:
    """Settings of a service of the whole chain; keywords replace some."""

    def made(**changes: Any) -> ServeConfig:
        out = Path(finished.out)
        whole = {"classifier": str(out / "stage1"), "caches": (str(out / "labels"),),
                 "segmenter": str(out / "stage2-cache"), "limits": LIMITS, "check_seconds": 0.05}  # fmt: skip
        return ServeConfig(**{**whole, **changes})

    return made


@contextmanager
def answering(config: ServeConfig, tokens: Tokens | None = None) -> Iterator[TestClient]:
    """A client of a new application, which runs as long as the client is open."""
    with TestClient(create_app(build_house(config), tokens), base_url=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def client(settings: Callable[..., ServeConfig]) -> Iterator[TestClient]:
    """A client of a service of the whole chain. Nothing of it may be changed."""
    with answering(settings()) as found:
        yield found


@pytest.fixture(scope="session")
def house(client: TestClient) -> House:
    found: House = client.app.state.house  # type: ignore[attr-defined]
    return found


@dataclass
class Process:
    """`kappaseg serve` as a process. lines: what it has printed so far."""

    child: subprocess.Popen[str]
    url: str
    lines: list[str]

    def end(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Its exit status after a signal."""
        self.child.send_signal(number)
        return self.child.wait(seconds)


@contextmanager
def process(*words: str, threads: int = 1) -> Iterator[Process]:
    """A service on a free port of loopback, once it answers; killed at the end if it still runs."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    lines: list[str] = []
    found, url = threading.Event(), ""

    def read() -> None:
        nonlocal url
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line.rstrip())
            if match := re.search(r"http://\S+:\d+", line):
                url = match[0]
                found.set()
        found.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert found.wait(120) and url, "\n".join(lines)
        yield Process(child, url, lines)
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        reader.join()
        assert child.stdout is not None
        child.stdout.close()
