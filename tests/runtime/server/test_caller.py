"""The key that comes with a request is known where a model's name is looked up, and only there."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_protocol.desired import key_hash
from graft_runtime.errors import ModelNotFoundError
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.backend import Target
from graft_runtime.server.caller import may_use
from graft_runtime.server.listener import Listener
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import ADAPTER, BASE, FakeBackend, script_of

KEY = "a-key-of-some-length"
ACCESS = (key_hash(KEY),)
BEARER = {"authorization": f"Bearer {KEY}"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": ADAPTER, "prompt": "hi", "max_tokens": 3},
    "/v1/chat/completions": {"model": ADAPTER, "max_tokens": 3, **CHAT},
    "/v1/messages": {"model": ADAPTER, "max_tokens": 3, **CHAT},
    "/v1/responses": {"model": ADAPTER, "input": "hi"},
    "/generate": {"inputs": "hi", "parameters": {"adapter_id": ADAPTER, "max_new_tokens": 3}},
    "/tokenize": {"model": ADAPTER, "prompt": "hi"},
}


class Guarded(FakeBackend):
    """Lets only one key's holder use the adapter."""

    def resolve(self, model: str | None, route_key: str | None = None) -> Target:
        if model == ADAPTER and not may_use(ACCESS):
            raise ModelNotFoundError("The model does not exist.", param="model")
        return super().resolve(model, route_key)


@pytest.fixture
async def client(
    model_folder: Path, tokenizer: Tokenizer, metrics: Metrics
) -> AsyncIterator[httpx.AsyncClient]:
    """A client over one real connection, which requests of several callers may share."""
    ids = tokenizer.encode("one two three", add_special_tokens=False)
    app = create_app(
        Guarded(model_folder, script_of(ids, "length")), ServerSettings(), metrics=metrics
    )
    listener = Listener(app, host="127.0.0.1", port=0, drain_timeout_seconds=1)
    port = await listener.start()
    one = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=one, timeout=60.0, trust_env=False
    ) as client:
        yield client
    await listener.stop()
    await app.state.frontend.grammars.close()


@pytest.mark.parametrize("path", ROUTES)
async def test_every_surface_knows_the_caller(client: httpx.AsyncClient, path: str) -> None:
    allowed = await client.post(path, json=ROUTES[path], headers=BEARER)
    assert allowed.status_code == 200, allowed.text
    refused = await client.post(path, json=ROUTES[path])
    assert refused.status_code == 404, refused.text


async def test_a_key_counts_for_its_own_request_on_a_shared_connection(
    client: httpx.AsyncClient,
) -> None:
    body = ROUTES["/v1/completions"]
    callers: tuple[dict[str, str], ...] = (
        BEARER,
        {},
        {"x-api-key": KEY},
        {"authorization": "Bearer wrong"},
        BEARER,
    )
    answers = [
        await client.post("/v1/completions", json=body, headers=headers) for headers in callers
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 404, 200]


async def test_a_stream_and_its_neighbour_are_told_apart(client: httpx.AsyncClient) -> None:
    body = {**ROUTES["/v1/completions"], "stream": True}
    base = {"model": BASE, "prompt": "hi", "max_tokens": 3}
    answers = await asyncio.gather(
        *(
            client.post("/v1/completions", json=what, headers=who)
            for what, who in [(body, BEARER), (body, {}), (base, {}), (body, BEARER)]
        )
    )
    assert [answer.status_code for answer in answers] == [200, 404, 200, 200]
