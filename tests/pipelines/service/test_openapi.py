"""The checked-in description of the HTTP surface is the one that the service gives."""

from __future__ import annotations

import json
from pathlib import Path

from fastapi.testclient import TestClient

FILE = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_description_in_docs_is_that_of_the_service(client: TestClient) -> None:
    found = client.get("/v1/openapi.json").json()
    stored = json.loads(FILE.read_text("utf-8"))
    found["info"].pop("version")
    stored["info"].pop("version")
    assert found == stored, f"the surface changed; write it anew: kappaseg serve … & curl …/v1/openapi.json > {FILE}"


def test_every_route_says_what_it_is_and_every_answer_has_a_form(client: TestClient) -> None:
    for path, methods in client.get("/v1/openapi.json").json()["paths"].items():
        for method, route in methods.items():
            assert route["summary"] and route["tags"], f"{method} {path}"
            assert all(answer["description"] for answer in route["responses"].values()), f"{method} {path}"
