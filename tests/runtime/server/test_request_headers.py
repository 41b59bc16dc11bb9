"""What headers say holds on every surface, whether or not its bodies have a field for it."""

from typing import Any

import httpx
import pytest

from graft_runtime.server.backend import Terms
from tests.support.fake_backend import ADAPTER, BASE, FakeBackend

TEXT = {"text_input": "hello", "parameters": {"max_tokens": 3}}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
SURFACES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello"},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {**CHAT, "max_tokens": 3},
    "/generate": {"inputs": "hello"},
    f"/v2/models/{ADAPTER}/generate": TEXT,
}
HEADERS = {
    "x-graft-priority": "7",
    "x-graft-cache-salt": "pepper",
    "x-graft-route-key": "session-7",
    "x-request-timeout": "9",
}


@pytest.mark.parametrize("path", SURFACES)
async def test_order_cache_route_and_time_reach_the_backend(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    answer = await client.post(path, json=SURFACES[path], headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert [each.terms for each in backend.submitted] == [Terms(7, "pepper", 9.0)]
    assert set(backend.route_keys) == {"session-7"}


async def test_a_body_comes_before_the_headers(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"prompt": "hello", "priority": 3, "cache_salt": "salt"}
    await client.post("/v1/completions", json=body, headers=HEADERS)
    assert backend.submitted[0].terms == Terms(3, "salt", 9.0)


@pytest.mark.parametrize("path", SURFACES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-graft-priority", "-1"),
        ("x-graft-priority", "1.5"),
        ("x-graft-priority", "2147483648"),
        ("x-graft-priority", "9" * 5000),
        ("x-graft-cache-salt", "x" * 257),
        ("x-graft-route-key", "x" * 513),
        ("x-request-timeout", "-1"),
    ],
)
async def test_a_header_that_cannot_be_honoured_is_refused_by_name(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, name: str, value: str
) -> None:
    answer = await client.post(path, json=SURFACES[path], headers={name: value})
    assert answer.status_code == (422 if path == "/generate" else 400)
    assert f"`{name}`" in answer.text
    assert backend.submitted == []


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
async def test_a_body_may_bring_the_id_where_no_header_does(
    client: httpx.AsyncClient, path: str
) -> None:
    body = {**SURFACES[path], "request_id": "job-1"}
    answer = await client.post(path, json=body)
    assert answer.headers["x-request-id"] == "job-1"
    assert answer.json()["id"].endswith("_job-1" if path == "/v1/responses" else "-job-1")
    both = await client.post(path, json=body, headers={"x-request-id": "mine"})
    assert both.headers["x-request-id"] == "mine"
    bad = await client.post(path, json={**body, "request_id": "a\nb"})
    assert (bad.status_code, bad.json()["param"]) == (400, "request_id")


async def test_a_user_of_anthropics_api_keeps_a_version(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {**SURFACES["/v1/messages"], "metadata": {"user_id": "ann"}}
    assert (await client.post("/v1/messages", json=body)).status_code == 200
    assert backend.route_keys == ["ann"]
    body["metadata"] = {"user_id": 7}
    answer = await client.post("/v1/messages", json=body)
    assert (answer.status_code, "metadata.user_id" in answer.text) == (400, True)


async def test_a_user_among_tritons_sampling_parameters_keeps_a_version(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"text_input": "hello", "user": "ann", "lora_name": ADAPTER, "priority": 1}
    assert (await client.post(f"/v2/models/{BASE}/generate", json=body)).status_code == 200
    assert backend.route_keys == ["ann", "ann"]
