"""What platforms of other servers' users call."""

from __future__ import annotations

import httpx
import pytest

from graft_runtime.errors import NotReadyError
from tests.support.fake_backend import ADAPTER, FakeBackend


async def test_a_start_is_over_when_a_token_comes_out(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    response = await client.get("/startup")
    assert (response.status_code, response.content) == (200, b"")
    assert backend.submitted[0].sampling.max_tokens == 1
    backend.refusal = NotReadyError("not yet", retry_after_seconds=1)
    response = await client.get("/startup")
    assert response.status_code == 503
    assert response.json() == {"error": "not yet", "error_type": "not_ready"}


async def test_instances_of_both_forms_are_predicted(client: httpx.AsyncClient) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    body = {"instances": [{"inputs": "hello", "parameters": {"return_full_text": True}}, chat]}
    response = await client.post("/vertex", json=body)
    assert response.json() == {"predictions": ["helloone two three", "one two three"]}


@pytest.mark.parametrize("instances", [None, [], [{}], [1], [{"inputs": ""}]])
async def test_instances_that_say_nothing_are_refused(
    client: httpx.AsyncClient, instances: object
) -> None:
    response = await client.post("/vertex", json={"instances": instances})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"


async def test_loraxs_headers_name_the_adapter(client: httpx.AsyncClient) -> None:
    body = {"inputs": "hello", "parameters": {"adapter_id": ADAPTER}}
    for path in ("/generate", "/generate_stream"):
        response = await client.post(path, json=body)
        assert response.headers["x-adapter-id"] == ADAPTER
        assert response.headers["x-skipped-tokens"] == "0"
    assert "x-adapter-id" not in (await client.post("/generate", json={"inputs": "x"})).headers
