"""Everything that OpenAPI has, with what schemathesis makes of it."""

from __future__ import annotations

from typing import Any

import httpx2
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from hypothesis import settings as examples
from hypothesis import strategies as st

from pipelines.service.app import create_app
from pipelines.service.config import ServeConfig
from pipelines.service.house import House
from tests.pipelines.service.conftest import HERE, picture


def schema() -> Any:
    """What the service promises, with the examples made from it kept few, and the same in each run."""
    config = schemathesis.Config.from_dict(
        {"generation": {"deterministic": True, "max-examples": 25, "database": "none"}}
    )
    house = House(ServeConfig(caches=("labels",)), ("sky",), {}, None, None)  # the schema is the same for every house
    described = create_app(house).openapi()
    for pool in (house.decoders, house.compute):
        pool.shutdown()
    return schemathesis.openapi.from_dict(described, config=config)


def through(client: TestClient, case: Any) -> httpx2.Response:
    """The answer to a case, sent to the application as `requests` would put it on the wire."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url=HERE)).prepare()
    assert prepared.method and prepared.url and isinstance(prepared.body, bytes | str | None)
    headers = [(name, value if isinstance(value, str) else value.decode("latin-1"))
               for name, value in prepared.headers.items()]  # fmt: skip
    return client.request(prepared.method, prepared.url, content=prepared.body, headers=headers)


for name in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):
    schemathesis.openapi.media_type(name, st.sampled_from([picture(), picture(kind="JPEG"), b"no picture"]))


@schema().parametrize()
@examples(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_schema_promises(case: Any, client: TestClient) -> None:
    checks = schemathesis.checks
    case.validate_response(through(client, case), excluded_checks=[checks.CHECKS.get_one("positive_data_acceptance")])
