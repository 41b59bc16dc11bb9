"""Fields that say on which terms a request is served."""

from typing import Any

import httpx
import pytest

from graft_runtime.server.backend import Terms
from tests.support.fake_backend import FakeBackend

SURFACES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
}


@pytest.mark.parametrize("path", SURFACES)
async def test_priority_and_salt_reach_the_backend(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    body = SURFACES[path] | {"priority": 7, "cache_salt": "pepper", "n": 2}
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert [each.terms for each in backend.submitted] == [Terms(7, "pepper")] * 2


@pytest.mark.parametrize("path", SURFACES)
async def test_without_them_a_request_is_like_all_others(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    response = await client.post(path, json=SURFACES[path] | {"cache_salt": None})
    assert response.status_code == 200, response.text
    assert backend.submitted[0].terms == Terms()


@pytest.mark.parametrize("path", SURFACES)
@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", -1), ("priority", 2**31), ("priority", "high"), ("cache_salt", "x" * 257)],
)
async def test_nobody_pushes_ahead(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, field: str, value: object
) -> None:
    response = await client.post(path, json=SURFACES[path] | {field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field
    assert backend.submitted == []
