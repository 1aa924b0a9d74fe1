"""How fast rankings are looked up, in a process and over HTTP, and how fast a service ranks new images.

    python benchmarks/service.py

Random numbers throughout: a label cache of a million images with 50 of 1,000 labels each, and a MobileNetV3 that nobody
trained. Servers and clients share the machine, on loopback. What is compared is measured in turns in one run:

- a look-up over HTTP beside an empty FastAPI route, in a process of its own, that answers the same bytes, headers too;
- /v1/rank with 16 clients at once beside a service that ranks one image at a time (batches of one, one thread that
  decodes), asked by 16 clients and by one, and beside `kappaseg rank`'s way through the same files (decode, resize,
  batches of 16), which has no HTTP at all.

The result is benchmarks/results/service.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml
from PIL import Image

from label_cache import CacheKey, CacheWriter, LabelCache, class_hash
from pipelines.bench.machine import machine

RESULTS = Path(__file__).parent / "results" / "service.json"
ROOT = Path(__file__).parents[1]
CLASSES, KAPPA, IMAGES, PART = 1000, 50, 1_000_000, 50_000
PHOTOS, SIZE, CLIENTS = 64, (640, 480), 16
#: a request without its image, and the head of an answer: what a client does has to cost little beside the service
ASKS = b"POST /v1/rank?kappa=10 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
ANSWERS = re.compile(rb"(?s).*?\r\ncontent-length: (\d+)\r\n.*?\r\n\r\n")
EMPTY = """
import json, sys, uvicorn
from fastapi import FastAPI, Response
app, content = FastAPI(), open(sys.argv[1], "rb").read()
headers = json.load(open(sys.argv[1] + ".headers"))

@app.get("/")
async def empty() -> Response:
    return Response(content, headers=headers)

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False, timeout_keep_alive=120)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="rows of the cache")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, repeated in turns")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="service-benchmark-") as folder:
        home = Path(folder)
        cache = make_cache(home / "labels", given.images)
        results = {
            "command": " ".join(["python benchmarks/service.py", *(sys.argv[1:] if arguments is None else arguments)]),
            "machine": machine(), "images": given.images, "classes": CLASSES, "kappa": KAPPA,
            "in_process": in_process(cache, given.seconds),
            **over_http(home, cache, given.seconds, given.rounds),
            "rank": ranking(home, given.seconds, given.rounds),
        }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(json.dumps(results, indent=1))


# ----------------------------------------------------------------------------------------------------------- look-ups


def make_cache(folder: Path, images: int) -> LabelCache:
    """A cache of random rows, with its index."""
    rng = np.random.default_rng(0)
    names = tuple(f"label {label}" for label in range(CLASSES))
    key = CacheKey(dataset={"val": "0" * 64}, classes=class_hash(names), model="0" * 64, preprocess="0" * 64,
                   num_classes=CLASSES, k=KAPPA)  # fmt: skip
    writer = CacheWriter(folder, key, names)
    starts = range(0, images, PART)
    for index, start in enumerate(starts):
        rows = min(PART, images - start)
        labels = (rng.integers(0, CLASSES, (rows, 1)) + 7 * np.arange(KAPPA)) % CLASSES
        scores = -np.sort(-rng.random((rows, KAPPA), np.float32), axis=1)
        writer.write_part("val", index, ids=[f"{row:012d}" for row in range(start, start + rows)], labels=labels,
                          scores=scores, source="held-out")  # fmt: skip
    writer.commit({"val": len(starts)})
    cache = LabelCache.open(folder)
    _ = cache.index
    return cache


def in_process(cache: LabelCache, seconds: float) -> dict[str, float]:
    """µs of a look-up by id, and rows a second of random batches."""
    rng = np.random.default_rng(1)
    ids = [f"{row:012d}" for row in rng.integers(0, len(cache), 200_000).tolist()]
    for image_id in ids:  # the pages of the index are in memory then, as in a service that has run for a while
        cache.lookup(image_id, KAPPA)
    taken, until = [], time.perf_counter() + seconds
    clock = time.perf_counter_ns
    for image_id in ids:
        started = clock()
        cache.lookup(image_id, KAPPA)
        taken.append(clock() - started)
        if time.perf_counter() > until:
            break
    index, rows = cache.index, rng.integers(0, len(cache), (2000, 64))
    by_row = rate(lambda n: (index.labels[rows[n % 2000]], index.scores[rows[n % 2000]]), 64, seconds)
    batches = [ids[start : start + 64] for start in range(0, 100_000, 64)]
    by_id = rate(lambda n: cache.lookup(batches[n % len(batches)], KAPPA), 64, seconds)
    p50, p99 = (round(float(np.percentile(taken, share)) / 1000, 2) for share in (50, 99))
    return {"lookup_us_p50": p50, "lookup_us_p99": p99, "rows_per_second": by_row, "ids_per_second": by_id}


def rate(work: Callable[[int], object], size: int, seconds: float) -> float:
    """Rows a second of work(0), work(1), … that does `size` rows each."""
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        work(done)
        done += 1
    return round(done * size / (time.perf_counter() - started))


def over_http(home: Path, cache: LabelCache, seconds: float, rounds: int) -> dict[str, Any]:
    """One connection, one request after the other: a single look-up, the empty route, a batch."""
    with served("--cache", f"labels={cache.path}") as url:
        path = "/v1/caches/labels/labels/%s"
        answer, headers = got(url, path % "000000000007")
        (home / "answer.json").write_bytes(answer)
        (home / "answer.json.headers").write_text(json.dumps(headers))
        with empty_route(home) as other:
            count = iter(range(10**9))
            ids = np.random.default_rng(2).integers(0, len(cache), 100_000).tolist()
            lookup = asking(url, lambda: ("GET", path % f"{ids[next(count) % len(ids)]:012d}", None))
            empty = asking(other, lambda: ("GET", "/", None))
            turns = [(lookup(seconds), empty(seconds)) for _ in range(rounds)]
        batch = {}
        for size in (64, 1024):
            bodies = [
                json.dumps({"image_ids": [f"{i:012d}" for i in ids[n * size : (n + 1) * size]]}) for n in range(90)
            ]
            number = iter(range(10**9))
            ask = asking(url, lambda: ("POST", "/v1/caches/labels/labels:batch", bodies[next(number) % 90]))  # noqa: B023
            batch[str(size)] = round(size / statistics.median(float(np.mean(ask(seconds))) for _ in range(rounds)))
    halves = [[float(np.percentile(side, 50)) * 1e6 for side in turn] for turn in turns]
    return {
        "http_lookup": {
            "bytes": len(answer), "us_p50": round(statistics.median(a for a, _ in halves), 1),
            "us_p99": round(statistics.median(float(np.percentile(a, 99)) * 1e6 for a, _ in turns), 1),
            "empty_us_p50": round(statistics.median(b for _, b in halves), 1),
            "ratio": [round(a / b, 3) for a, b in halves],
        },
        "http_batch_ids_per_second": batch,
    }  # fmt: skip


def asking(url: str, request: Callable[[], tuple[str, str, str | None]]) -> Callable[[float], list[float]]:
    """Seconds of each request, one after the other on a connection, for as long as is said."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    headers = {"Content-Type": "application/json"}

    def ask(seconds: float) -> list[float]:
        taken, until = [], time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            method, path, body = request()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            taken.append(time.perf_counter() - started)
            assert answer.status == 200, content
        return taken

    return ask


def get(url: str, path: str) -> bytes:
    return got(url, path)[0]


def got(url: str, path: str) -> tuple[bytes, dict[str, str]]:
    """An answer's body, and its headers but for those that every server sets by itself."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    own = {"date", "server", "content-length"}
    return content, {name: value for name, value in answer.getheaders() if name.lower() not in own}


@contextlib.contextmanager
def served(*words: str) -> Iterator[str]:
    """`kappaseg serve` on a free port."""
    child = subprocess.Popen([sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", *words], cwd=ROOT,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        found = re.search(r"http://\S+:\d+", line)
        assert found, line
        yield found[0]
    finally:
        child.terminate()
        child.wait(30)


@contextlib.contextmanager
def empty_route(home: Path) -> Iterator[str]:
    port = free_port()
    child = subprocess.Popen([sys.executable, "-c", EMPTY, str(home / "answer.json"), str(port)])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                get(f"http://127.0.0.1:{port}", "/")
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(30)


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ---------------------------------------------------------------------------------------------------- ranking images


def ranking(home: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Images a second of a service, with many clients and with one, and of the same work without a service."""
    photos = make_data(home / "data")
    run = make_classifier(home)
    many, single, one, offline = [], [], [], []
    with (
        without_service(run) as work,
        served("--classifier", str(run)) as url,
        served("--classifier", str(run), "--batching.size", "1", "--batching.decoders", "1") as plain,
    ):
        for _ in range(rounds):
            many.append(throughput(url, photos, CLIENTS, seconds))
            single.append(throughput(plain, photos, CLIENTS, seconds))
            one.append(throughput(plain, photos, 1, seconds))
            offline.append(work(seconds))
        sizes = batch_size(get(url, "/v1/metrics").decode())
    return {
        "backbone": "mobilenetv3_small_050", "image_size": 224, "photo": [*SIZE], "clients": CLIENTS,
        "images_per_second": summary(many), "without_batching": summary(single), "one_client": summary(one),
        "offline": summary(offline),
        "to_without_batching": [round(a / b, 2) for a, b in zip(many, single, strict=True)],
        "to_one_client": [round(a / b, 2) for a, b in zip(many, one, strict=True)],
        "to_offline": [round(a / b, 2) for a, b in zip(many, offline, strict=True)],
        "mean_batch": sizes,
    }  # fmt: skip


def summary(rates: Sequence[float]) -> float:
    return round(statistics.median(rates), 1)


def make_data(folder: Path) -> list[bytes]:
    """A folder data set of blurred noise: JPEG files of the size of photographs."""
    rng = np.random.default_rng(3)
    for name in ("images", "masks", "splits"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"label {label}\n" for label in range(CLASSES)))
    names = [f"{number:03d}" for number in range(PHOTOS)]
    for split in ("train", "val"):
        (folder / "splits" / f"{split}.txt").write_text("\n".join(names if split == "val" else names[:2]))
    photos = []
    for name in names:
        noise = rng.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{name}.jpg", quality=92)
        Image.fromarray(rng.integers(0, 3, SIZE[::-1], dtype=np.uint8)).save(folder / "masks" / f"{name}.png")
        photos.append((folder / "images" / f"{name}.jpg").read_bytes())
    return photos


def make_classifier(home: Path) -> Path:
    """A run directory of one training step."""
    settings = {
        "data": {"root": str(home / "data"), "options": {"ignore": None}}, "out": str(home / "run"),
        "backbone": {"name": "mobilenetv3_small_050"}, "head": {"preset": "gap"},
        "augment": {"image_size": 224, "randaugment_ops": 0, "cutout": 0},
        "loop": {"steps": 1, "batch_size": 2, "device": "cpu"},
    }  # fmt: skip
    (home / "stage1.yaml").write_text(yaml.safe_dump(settings))
    subprocess.run([sys.executable, "-m", "pipelines.cli", "run-stage1", str(home / "stage1.yaml")], cwd=ROOT,
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    return home / "run" / "stage1"


@contextlib.contextmanager
def without_service(run: Path) -> Iterator[Callable[[float], float]]:
    """Images a second of what `kappaseg rank` does, in a process of its own, as it is for those who call it: in one
    that has freed large arrays before, as this one has, the allocator keeps memory and decoding takes half the time."""
    child = subprocess.Popen([sys.executable, __file__, "--offline", str(run)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    answers, asks = child.stdout, child.stdin

    def work(seconds: float) -> float:
        print(seconds, file=asks, flush=True)
        return float(answers.readline())

    try:
        yield work
    finally:
        asks.close()
        child.wait(30)


def offline_work(run: Path) -> Callable[[float], float]:
    """Images a second: decode, resize, batches of 16."""
    from kappaseg_core.config import LoopConfig
    from kappaseg_core.placement import place
    from kappaseg_core.scenes import open_scenes
    from stage1_multilabel.rank import Ranker
    from stage1_multilabel.scoring import scores_of

    ranker, here = Ranker.of(run), place(LoopConfig(device="cpu"))
    model, scenes = ranker.load(here.device), open_scenes(ranker.config.data, "val")

    def work(seconds: float) -> float:
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            with contextlib.redirect_stderr(io.StringIO()):
                scores_of(model, scenes, range(PHOTOS), ranker.config.augment.image_size, here)
            done += PHOTOS
        return done / (time.perf_counter() - started)

    return work


def throughput(url: str, photos: Sequence[bytes], clients: int, seconds: float) -> float:
    """Images a second of several clients, each with a connection of its own and one request after the other.

    The clients are a process of their own, as they would be; only answers between the first and the last second count.
    """
    found = subprocess.run(
        [sys.executable, __file__, "--load", url, str(clients), str(seconds), str(len(photos))],
        input=b"".join(len(photo).to_bytes(4, "big") + photo for photo in photos), capture_output=True, check=True,
    )  # fmt: skip
    return float(found.stdout)


def load(url: str, clients: int, seconds: float, photos: Sequence[bytes]) -> float:
    done, stop = [0] * clients, threading.Event()
    requests = [ASKS % len(photo) + photo for photo in photos]

    def client(number: int) -> None:
        address, turn = urlsplit(url), number
        with socket.create_connection((address.hostname, address.port), 60) as wire:
            while not stop.is_set():
                wire.sendall(requests[turn % len(requests)])
                answer = b""
                while not (whole := ANSWERS.match(answer)) or len(answer) < whole.end() + int(whole[1]):
                    piece = wire.recv(65536)
                    assert piece, "the service hung up"
                    answer += piece
                assert answer.startswith(b"HTTP/1.1 200 "), answer
                done[number] += 1
                turn += clients

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        time.sleep(0.5)
        before, started = sum(done), time.perf_counter()
        time.sleep(seconds)
        rate = (sum(done) - before) / (time.perf_counter() - started)
        stop.set()
        for ended in running:
            ended.result()  # raises what went wrong there
    return rate


def batch_size(metrics: str) -> float:
    """Mean images in a forward pass, from the service's own counters."""
    values = {
        name: float(re.search(rf"^kappaseg_batch_images_{name} (\S+)", metrics, re.M)[1])  # type: ignore[index]
        for name in ("sum", "count")
    }
    return round(values["sum"] / values["count"], 2)


def load_from_stdin() -> None:
    url, clients, seconds, count = sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    photos = []
    for _ in range(count):
        size = int.from_bytes(sys.stdin.buffer.read(4), "big")
        photos.append(sys.stdin.buffer.read(size))
    print(load(url, clients, seconds, photos))


def offline_from_stdin() -> None:
    work = offline_work(Path(sys.argv[2]))
    for line in sys.stdin:
        print(work(float(line)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load_from_stdin()
    elif sys.argv[1:2] == ["--offline"]:
        offline_from_stdin()
    else:
        main()
