"""The Python client, the ranking source `service`, and the commands that use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from kappaseg_core.client import RankingClient, ServiceError
from kappaseg_core.errors import UserError
from kappaseg_core.scenes.images import photo
from label_cache import LabelCache
from pipelines.cli import main
from tests.pipelines.conftest import CLASSES, IMAGES, STORED, Chain
from tests.pipelines.service.conftest import LIMITS, picture, process

ALL = [*IMAGES["train"], *IMAGES["val"]]
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def url(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of classifier and cache, as a process, with a token."""
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(TOKEN)
    limits = ["--limits.ids_per_request", str(LIMITS.ids_per_request), "--limits.images_per_request", "3"]
    words = ["--classifier", str(finished.out / "stage1"), "--cache", str(finished.out / "labels"), *limits]
    with process(*words, "--token-file", str(file)) as served:
        yield served.url


@pytest.fixture
def client(url: str) -> Iterator[RankingClient]:
    with RankingClient(url, token=TOKEN) as found:
        yield found


def test_an_image_is_ranked_as_file_as_bytes_and_as_array(client: RankingClient, finished: Any) -> None:
    path = finished.photo("v0")
    data = path.read_bytes()
    row = LabelCache.open(finished.out / "labels").lookup("v0")
    for image in (path, str(path), data, photo(data, "v0")):
        found = client.rank(image, kappa=STORED)
        assert found.ids.tolist() == row.labels[0].tolist() and np.array_equal(found.scores, row.scores[0])
        assert found.names == tuple(CLASSES[label] for label in found.ids)


def test_many_images_are_ranked_in_order_in_several_requests(client: RankingClient, finished: Any) -> None:
    files = [finished.photo(image_id) for image_id in ALL]  # eight, of which three fit in a request
    found = client.rank_many(files, kappa=2)
    assert [one.ids.tolist() for one in found] == [client.rank(file, kappa=2).ids.tolist() for file in files]


def test_the_image_that_cannot_be_read_is_named(client: RankingClient) -> None:
    with pytest.raises(ServiceError, match=r"image 4 of 5: image: no picture of JPEG, PNG, WEBP"):
        client.rank_many([picture(), picture(), picture(), picture(), b"text"])


def test_look_ups_come_in_order_over_several_requests(client: RankingClient, finished: Any) -> None:
    asked = [*ALL, *reversed(ALL)]  # sixteen, of which ten fit in a request
    found, stored = client.lookup(asked, kappa=2), LabelCache.open(finished.out / "labels").lookup(asked, 2)
    assert np.array_equal(found.labels, stored.labels) and np.array_equal(found.scores, stored.scores)
    assert found.source == tuple(stored.source) and found.image_ids == tuple(asked)
    labels, scores = client.lookup("v0", cache="labels")
    assert labels.shape == scores.shape == (1, STORED)


def test_an_id_that_is_not_there_is_an_error(client: RankingClient) -> None:
    with pytest.raises(ServiceError, match="cache labels has no image 'nobody' and 1 more"):
        client.lookup(["v0", "nobody", "none"])


def test_a_problem_is_told_in_one_line(client: RankingClient, url: str) -> None:
    with pytest.raises(ServiceError, match="kappa: 99, there are 4 labels") as caught:
        client.rank(picture(), kappa=99)
    assert caught.value.status == 422 and "\n" not in str(caught.value)
    with pytest.raises(ServiceError, match="wanted `Bearer TOKEN`"), RankingClient(url) as other:
        other.models()
    with pytest.raises(ServiceError, match=r"float32 \[3, 4, 5\], wanted uint8"):
        client.rank(np.zeros((3, 4, 5), np.float32))


def test_nobody_at_the_address_is_told_after_some_attempts() -> None:
    with (
        RankingClient("http://127.0.0.1:9", retries=1, pause=0.01) as nobody,
        pytest.raises(ServiceError, match=r"127\.0\.0\.1:9 does not answer.*is kappaseg serve running"),
    ):
        nobody.models()


def scripted(answers: list[httpx2.Response | Exception], seen: list[str]) -> httpx2.MockTransport:
    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.path)
        found = answers[min(len(seen), len(answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    return httpx2.MockTransport(answer)


def full(after: str = "0") -> httpx2.Response:
    return httpx2.Response(503, headers={"Retry-After": after}, content=json.dumps({"detail": "full"}))


@pytest.mark.parametrize("trouble", [full(), httpx2.ConnectError("refused"), httpx2.RemoteProtocolError("closed")])
def test_trouble_that_passes_is_waited_for(trouble: httpx2.Response | Exception) -> None:
    seen: list[str] = []
    answers = [trouble, trouble, httpx2.Response(200, content=json.dumps({"names": ["a"]}))]
    with RankingClient("http://x", pause=0.001, transport=scripted(answers, seen)) as client:
        assert client.vocabulary() == ("a",) and len(seen) == 3


def test_pauses_double_and_are_as_long_as_the_service_says(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("kappaseg_core.client.time.sleep", pauses.append)
    with (
        RankingClient("http://x", pause=0.5, retries=3, transport=scripted([full(), full("7"), full("soon")], [])) as c,
        pytest.raises(ServiceError, match="full") as caught,
    ):
        c.models()
    assert pauses == [0.5, 7.0, 2.0] and caught.value.status == 503


@pytest.mark.parametrize("final", [httpx2.Response(422, content='{"detail": "no"}'), httpx2.ReadTimeout("slow")])
def test_what_does_not_pass_is_not_repeated(final: httpx2.Response | Exception) -> None:
    seen: list[str] = []
    with RankingClient("http://x", transport=scripted([final], seen)) as client, pytest.raises(ServiceError):
        client.models()
    assert len(seen) == 1


def test_a_cache_replaced_in_the_middle_is_an_error() -> None:
    about = {"caches": ["labels"], "limits": {"ids_per_request": 1}, "classifier": None}
    limits = httpx2.Response(200, content=json.dumps(about))
    parts = [
        httpx2.Response(200, content=json.dumps({"version": v, "kappa": 1, "ids": [[0]], "scores": [[1.0]],
                                                 "source": ["held-out"], "missing": []}))
        for v in ("old", "new")
    ]  # fmt: skip
    with (
        RankingClient("http://x", transport=scripted([limits, *parts], [])) as client,
        pytest.raises(ServiceError, match="cache labels was replaced in the middle"),
    ):
        client.lookup(["a", "b"], cache="labels")


def test_something_else_at_the_address_is_told() -> None:
    page = httpx2.Response(404, content="<html>")
    with (
        RankingClient("http://x", transport=scripted([page], [])) as client,
        pytest.raises(ServiceError, match="HTTP 404 Not Found; is this a kappaseg service"),
    ):
        client.models()


# ------------------------------------------------------------------------------------------------ source and commands


def same_maps(chain: Chain, *words: str) -> None:
    photos = [str(chain.photo(image_id)) for image_id in ("v0", "a1")]
    assert main(["predict", "out/stage2-cache", *photos, "--to", "here"]) == 0
    assert main(["predict", "out/stage2-cache", *photos, "--to", "there", *words]) == 0
    for name in ("v0", "a1"):
        maps = [np.asarray(Image.open(Path(to) / f"{name}.labels.png")) for to in ("here", "there")]
        assert np.array_equal(*maps)


def test_predict_with_a_service_gives_the_maps_of_its_classifier(
    chain: Chain, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPPASEG_TOKEN", TOKEN)
    (chain.out / "stage1").rename(chain.out / "elsewhere")
    with pytest.raises(AssertionError):
        same_maps(chain)  # nobody ranks
    (chain.out / "elsewhere").rename(chain.out / "stage1")
    same_maps(chain, "--source", "service", "--url", url)


@pytest.mark.parametrize("more", [[], ["--source.service_cache", "labels"]])
def test_evaluation_with_a_service_gives_the_numbers_of_its_cache(
    chain: Chain, url: str, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPPASEG_TOKEN", TOKEN)
    words = ["evaluate", "out/stage2-cache", "--data.root", str(chain.data)]
    assert main(words) == 0
    assert main([*words, "--source.test", "service", "--source.url", url, *more]) == 0
    records = [json.loads(path.read_text()) for path in (chain.out / "stage2-cache").glob("evaluation-*.json")]
    assert {record["source"]["test"] for record in records} == {"cache", "service"}
    first, second = ({k: r[k] for k in ("mIoU", "class_iou", "pixel_coverage", "mean_kappa")} for r in records)
    assert first == second


def test_a_network_may_be_trained_on_the_cache_of_a_service(
    chain: Chain, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPPASEG_TOKEN", TOKEN)
    service = ["--source.train", "service", "--source.url", url, "--source.service_cache", "labels"]
    assert main(chain.words("run-stage2", *service)) == main(chain.words("run-stage2", "--name", "twin")) == 0
    weights = [(chain.out / f"stage2-{name}" / "weights.safetensors").read_bytes() for name in ("twin", "service")]
    assert weights[0] == weights[1]


@pytest.fixture
def asked(chain: Chain, url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setenv("KAPPASEG_TOKEN", TOKEN)
    return lambda *words: chain.words("run-stage2", "--source.train", "service", *words)


def test_training_on_a_live_service_is_refused(
    chain: Chain, refused: Any, asked: Callable[..., list[str]], url: str
) -> None:
    refused(chain, asked("--source.url", url), "training sees crops", "--source.service_cache NAME", begun=True)


def test_a_service_without_an_address_is_refused(chain: Chain, refused: Any, asked: Callable[..., list[str]]) -> None:
    refused(chain, asked(), "add --source.url http://HOST:PORT")


def test_a_service_of_other_classes_is_refused(
    chain: Chain, refused: Any, asked: Callable[..., list[str]], url: str
) -> None:
    (chain.data / "classes.txt").write_text("sky\nroad\nbush\ncar\n")
    refused(chain, asked("--source.url", url), "another class list: class 2 is 'tree' there and 'bush' here")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="wanted http://HOST:PORT"):
        RankingClient("localhost:8000")


@pytest.mark.parametrize("url", ["http://127.0.0.1:80x", "http://[", "http://"])
def test_an_address_that_cannot_be_one_is_one_line(url: str) -> None:
    with pytest.raises(ServiceError), RankingClient(url, retries=0) as client:
        client.models()


@pytest.mark.parametrize("content", ["<html>", "[]", "{}", '{"names": 1}'])
def test_a_page_in_the_place_of_an_answer_is_told(content: str) -> None:
    page = httpx2.Response(200, content=content)
    with (
        RankingClient("http://x", transport=scripted([page], [])) as client,
        pytest.raises(ServiceError, match="is this a kappaseg service"),
    ):
        client.models()


def test_a_token_is_never_repeated() -> None:
    for token in ("secret-\u00e9", "secret-\x00"):
        with pytest.raises(ServiceError) as caught:
            RankingClient("http://x", token=token)
        assert "secret" not in str(caught.value)


def test_no_service_makes_a_client_wait_longer_than_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("kappaseg_core.client.time.sleep", pauses.append)
    answers = [full("86400"), full("inf"), full("nan"), full()]
    with (
        RankingClient("http://x", timeout=3, retries=3, transport=scripted(answers, [])) as client,
        pytest.raises(ServiceError, match="full"),
    ):
        client.models()
    assert len(pauses) == 3 and max(pauses) <= 3


def test_a_cache_of_a_service_that_is_replaced_is_noticed() -> None:
    from stage2_segmentation.sources.service import Service

    limits = {"caches": ["labels"], "limits": {"ids_per_request": 9}, "classifier": None}
    rows = [{"version": v, "kappa": 1, "ids": [[0]], "scores": [[1.0]], "source": ["held-out"], "missing": []}
            for v in ("old", "new")]  # fmt: skip
    answers = [httpx2.Response(200, content=json.dumps(answer)) for answer in (limits, *rows)]
    source = Service(RankingClient("http://x", transport=scripted(answers, [])), 1, "labels", "old")
    assert source(["a"], None).labels.tolist() == [[0]]
    with pytest.raises(UserError, match="cache labels was replaced"):
        source(["a"], None)


def test_flags_that_nobody_would_follow_are_refused(chain: Chain, refused: Any, url: str) -> None:
    words = ["predict", "out/stage2-cache", str(chain.photo("v0"))]
    refused(chain, [*words, "--url", url], "nobody asks it; add --source service")
    both = ["--source", "service", "--url", url, "--classifier", "out/stage1"]
    refused(chain, [*words, *both], "one of them ranks; leave one out")
