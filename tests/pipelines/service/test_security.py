"""Who may ask, and what nobody is told."""

from __future__ import annotations

import hmac
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kappaseg_core.errors import UserError
from pipelines.cli import main
from pipelines.service.config import TOKENS_VARIABLE, ServeConfig
from pipelines.service.problems import HEADERS
from pipelines.service.security import OPEN, Tokens
from tests.pipelines.service.conftest import HERE, answering, picture

TOKEN, OTHER = "a-token-of-twenty-one", "another-token-of-this"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(autouse=True)
def no_tokens_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def light(settings: Callable[..., ServeConfig]) -> ServeConfig:
    """A service of a cache alone."""
    return settings(classifier=None, segmenter=None, cors=("https://labels.example",))


@pytest.fixture(scope="module")
def plain(light: ServeConfig) -> Iterator[TestClient]:
    with answering(light) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(settings: Callable[..., ServeConfig]) -> Iterator[TestClient]:
    with answering(settings(cors=("https://labels.example",)), Tokens([OTHER, TOKEN])) as client:
        yield client


# ----------------------------------------------------------------------------------------------------- before it starts


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a service that does not start."""
    capsys.readouterr()
    assert main(["serve", "--port", "0", *words]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("kappaseg: ") and not printed.out
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "localhost.example.org", "127.1", ""])
def test_an_address_that_others_can_reach_needs_a_token(
    finished: Any, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    line = refused(["--cache", str(finished.out / "labels"), "--host", host], capsys)
    assert "there is no token" in line and "--token-file" in line and TOKENS_VARIABLE in line


@pytest.mark.parametrize(("content", "said"), [
    (b"", "is empty"), (b" \n\t\n", "is empty"), (b"short\n", "has 5 characters"), (b"x" * 15, "has 15 characters"),
    ("ü" * 20, "plain ASCII"), (b"\xff" * 20, "cannot be read"), (f"{TOKEN}\nshort\n", "has 5 characters"),
    (None, "cannot be read"),
])  # fmt: skip
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_token_file_that_guards_nothing_is_refused(
    finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str, host: str
) -> None:
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    line = refused(["--cache", str(finished.out / "labels"), "--token-file", str(file), "--host", host], capsys)
    assert said in line and TOKEN not in line


def test_a_short_token_of_the_environment_is_refused(
    finished: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKENS_VARIABLE, "hidden")
    line = refused(["--cache", str(finished.out / "labels")], capsys)
    assert "has 6 characters, wanted at least 16" in line and "hidden" not in line


def test_tokens_come_from_the_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").write_text(f"\n  {TOKEN}  \r\n\n{OTHER}")
    config = ServeConfig(caches=("x",), host="0.0.0.0", token_file=str(tmp_path / "tokens"))
    assert config.tokens() == {TOKEN, OTHER}
    monkeypatch.setenv(TOKENS_VARIABLE, f"{TOKEN[::-1]}, {OTHER[::-1]}")
    assert config.tokens() == {TOKEN, OTHER, TOKEN[::-1], OTHER[::-1]}
    assert ServeConfig(caches=("x",), host="::").tokens() == {TOKEN[::-1], OTHER[::-1]}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_alone_needs_no_token(host: str) -> None:
    assert ServeConfig(caches=("x",), host=host).tokens() == frozenset()


# --------------------------------------------------------------------------------------------------------------- tokens


def every_route(client: TestClient) -> list[tuple[str, str]]:
    """(method, path) of all that OpenAPI has, and of what it has not."""
    paths = client.get("/v1/openapi.json", headers=BEARER).json()["paths"]
    found = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [
        *found,
        ("GET", "/"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/nowhere"),
        ("PUT", "/v1/rank"),
        ("OPTIONS", "/"),
    ]


@pytest.mark.parametrize("header", [
    None, "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}",
    f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN} {OTHER}", "Bearer \xff\xfe", "Bearer " + "a" * 10_000,
])  # fmt: skip
def test_without_its_token_nothing_is_answered(guarded: TestClient, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    routes = every_route(guarded)
    assert len(routes) > 15
    for method, path in routes:
        if path in OPEN:
            continue
        answer = guarded.request(method, path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["field"] == "Authorization"


def test_health_and_the_empty_page_need_no_token(guarded: TestClient) -> None:
    assert {"/", "/v1/healthz", "/v1/readyz", "/v2/health/live", "/v2/health/ready"} == OPEN
    for path in OPEN:
        assert guarded.get(path).status_code == 200
    assert guarded.get("/v1/healthz/").status_code == 401


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {OTHER}", f"BEARER  {TOKEN}"])
def test_each_token_opens_every_route(guarded: TestClient, header: str) -> None:
    headers = {"Authorization": header, "Host": "labels.example"}  # any name: whoever has the token may ask
    for method, path in every_route(guarded):
        answer = guarded.request(method, path, headers=headers)
        assert answer.status_code not in (401, 403, 421) and answer.status_code < 500
    answer = guarded.post("/v1/rank", content=picture(), headers={**headers, "Content-Type": "image/png"})
    assert answer.status_code == 200


def test_tokens_are_compared_in_constant_time_and_kept_as_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    right = hmac.compare_digest

    def noted(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return right(one, two)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    tokens = Tokens([TOKEN, OTHER])
    for header, admitted in ((f"Bearer {TOKEN}", True), (f"Bearer {OTHER}", True), ("Bearer x", False), ("", False)):
        compared.clear()
        assert tokens.admit(header) is admitted
        assert len(compared) == 2 and {len(digest) for pair in compared for digest in pair} == {32}
    assert TOKEN not in repr(vars(tokens))


# ---------------------------------------------------------------------------------------------- names, origins, headers


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "", "0.0.0.0", "[::]",
    "::1",
    "169.254.169.254", "192.168.0.1:8000", "127.0.0.1@evil.example", "localhost.",
])  # fmt: skip
def test_a_page_that_names_itself_for_this_machine_learns_nothing(plain: TestClient, host: str) -> None:
    """DNS rebinding: the browser sends the name of the page, which leads to 127.0.0.1."""
    for path in ("/v1/models", "/", "/v1/healthz", "/v1/caches/labels/labels/v0"):
        answer = plain.get(path, headers={"Host": host})
        assert (answer.status_code, answer.json()["field"]) == (421, "Host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000",
                                  "127.0.0.2:1"])  # fmt: skip
def test_this_machine_is_let_in_by_each_of_its_names(plain: TestClient, host: str) -> None:
    assert plain.get("/v1/models", headers={"Host": host}).status_code == 200


def preflight(client: TestClient, origin: str) -> Any:
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return client.options("/v1/rank", headers={"Origin": origin, **wanted})


def test_only_listed_origins_may_read_answers(plain: TestClient, guarded: TestClient, client: TestClient) -> None:
    mine, allow = "https://labels.example", "access-control-allow-origin"
    for listed in (plain, guarded):
        answer = preflight(listed, mine)
        assert answer.status_code == 200 and answer.headers[allow] == mine
        assert listed.get("/v1/healthz", headers={"Origin": mine}).headers[allow] == mine
        assert listed.get("/nowhere", headers={"Origin": mine, **BEARER}).headers[allow] == mine
    for origin in ("https://evil.example", "https://labels.example.evil.example", "http://labels.example", "null"):
        for any_of_them in (plain, guarded, client):
            assert allow not in preflight(any_of_them, origin).headers
            assert allow not in any_of_them.get("/v1/healthz", headers={"Origin": origin}).headers
    assert allow not in client.get("/v1/healthz", headers={"Origin": mine}).headers  # none is listed there
    assert "access-control-allow-credentials" not in preflight(plain, mine).headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "//", "http://["])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_of_another_origin_can_make_a_service_without_tokens_do_nothing(
    client: TestClient, origin: str, method: str
) -> None:
    answer = client.request(method, "/v1/rank", headers={"Origin": origin})
    assert (answer.status_code, answer.json()["field"]) == (403, "Origin")


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8000", "http://localhost:3000", "http://[::1]:1", HERE])
def test_pages_of_this_machine_may_ask(client: TestClient, origin: str) -> None:
    assert client.get("/v1/vocabulary", headers={"Origin": origin}).status_code == 200


def test_listed_origins_and_bearers_of_tokens_may_ask(plain: TestClient, guarded: TestClient) -> None:
    assert plain.get("/v1/vocabulary", headers={"Origin": "https://labels.example"}).status_code == 200
    assert guarded.get("/v1/vocabulary", headers={"Origin": "https://other.example", **BEARER}).status_code == 200


def test_every_answer_carries_the_headers_that_bind_a_browser(
    plain: TestClient, guarded: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = plain.get("/v1/caches/labels/labels/v0").headers["etag"]
    monkeypatch.setattr(plain.app.state.house.watch, "text", lambda: 1 / 0)  # type: ignore[attr-defined]
    answers = {
        200: plain.get("/v1/models"), 304: plain.get("/v1/caches/labels/labels/v0", headers={"If-None-Match": tag}),
        401: guarded.get("/v1/models"), 404: plain.get("/nowhere"), 405: plain.put("/v1/rank"),
        413: plain.post("/v1/rank", content=bytes(1_000_000)), 421: plain.get("/", headers={"Host": "evil.example"}),
        422: plain.get("/v1/caches/labels/images?limit=0"), 500: plain.get("/v1/metrics"),
    }  # fmt: skip
    for status, answer in [*answers.items(), (200, plain.get("/")), (200, preflight(plain, "https://labels.example"))]:
        assert answer.status_code == status
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, status
        assert "server" not in answer.headers
    monkeypatch.undo()
    assert 'status="500"} 1.0' in plain.get("/v1/metrics").text


# -------------------------------------------------------------------------------------------------------- what it loads


def test_caches_alone_are_served_without_torch(finished: Any) -> None:
    code = f"""
import sys
from fastapi.testclient import TestClient
from pipelines.service.app import create_app
from pipelines.service.config import ServeConfig
from pipelines.service.house import build_house
house = build_house(ServeConfig(caches=({str(finished.out / "labels")!r},)))
with TestClient(create_app(house), base_url={HERE!r}) as client:
    assert client.get("/v1/caches/labels/labels/v0").status_code == 200
    assert client.post("/v1/caches/labels/labels:batch", json={{"image_ids": ["v0"]}}).status_code == 200
    assert client.get("/v1/readyz").status_code == client.get("/").status_code == 200
    assert client.post("/v1/rank", content=b"x").status_code == 404
print(sorted({{"torch", "torchvision", "timm", "h5py", "ray", "pandas"}} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert (found.stdout, found.returncode) == ("[]\n", 0), found.stderr


def test_no_request_names_an_address_or_a_file_of_the_server(client: TestClient) -> None:
    schema = client.get("/v1/openapi.json").json()
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]
    names = {parameter["name"] for operation in operations for parameter in operation.get("parameters", [])}
    for operation in operations:
        for content in operation.get("requestBody", {}).get("content", {}).values():
            about = content["schema"]
            about = schema["components"]["schemas"][about["$ref"].rpartition("/")[2]] if "$ref" in about else about
            names |= set(about.get("properties", ()))
    assert names == {"name", "split", "start", "limit", "image_id", "kappa", "threshold", "ranking", "cache", "without",
                     "encoding", "model", "image", "image_ids"}  # fmt: skip


@pytest.mark.parametrize("text", ["/", "=labels"])
def test_a_cache_needs_a_name(text: str) -> None:
    with pytest.raises(UserError, match="has no name"):
        ServeConfig(caches=(text,)).named_caches()


def test_an_equals_sign_in_a_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lr=0.1").mkdir()
    monkeypatch.chdir(tmp_path)
    texts = (f"{tmp_path}/lr=0.1/labels", "lr=0.1", "other=lr=0.1")
    assert ServeConfig(caches=texts).named_caches() == {
        "labels": tmp_path / "lr=0.1" / "labels", "lr=0.1": Path("lr=0.1"), "other": Path("lr=0.1")
    }  # fmt: skip


@pytest.mark.parametrize("origin", ["*", "labels.example", "https://labels.example/", "https://*.example"])
def test_an_origin_that_no_page_can_have_is_refused(chain: Any, refused: Any, origin: str) -> None:
    refused(chain, ["serve", "--cache", "out/labels", "--cors", origin], "wanted an origin: https://HOST")


def test_an_address_in_use_is_one_line_before_anything_is_loaded(
    chain: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr("pipelines.service.run.build_house", lambda config: pytest.fail("loaded"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        refused(chain, ["serve", "--cache", "out/labels", "--port", port], "cannot be listened on", "choose another")


def test_a_cache_that_is_not_there_is_one_line(chain: Any, refused: Any) -> None:
    refused(chain, ["serve", "--cache", "out/nope", "--port", "0"], "does not exist; make it with `kappaseg rank`")


def test_a_network_in_the_place_of_the_classifier_is_one_line(chain: Any, refused: Any) -> None:
    refused(chain, ["serve", "--classifier", "out/stage2-cache", "--port", "0"], "holds no classifier")
