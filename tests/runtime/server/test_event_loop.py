"""Whatever takes long with a long prompt is done in a thread: the loop answers meanwhile.

Each step is held until a probe has been answered. Were the step on the loop, no probe could be.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.server import body, tokens
from graft_runtime.server.anthropic import messages
from graft_runtime.server.app import create_app
from graft_runtime.server.openai import chat, completions, responses
from graft_runtime.text.chat import ChatTemplate
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import BASE, FakeBackend

HELD_SECONDS = 30.0
"""A step that nobody lets go gives up, and the test fails."""
LONG = "one two three " * 12_000
"""Long enough for threads, and short enough to be done soon."""
CHAT = [{"role": "user", "content": LONG}]


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    backend.limit = 200_000
    app = create_app(backend, ServerSettings(), metrics=Metrics(BASE))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        yield client


class Hold:
    """Stands before a function: holds its first call until it is let go."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.in_time = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.entered.set()
        self.in_time = self.let_go.wait(HELD_SECONDS) and self.in_time
        return self._function(*args, **kwargs)


@pytest.mark.parametrize(
    ("owner", "name", "path", "fields"),
    [
        (body, "parse_object", "/v1/completions", {"prompt": LONG}),
        (body, "parse_object", "/generate", {"inputs": LONG}),
        (completions, "_read", "/v1/completions", {"prompt": [7] * 50_000}),
        (Tokenizer, "encode", "/v1/completions", {"prompt": LONG}),
        (Tokenizer, "encode", "/generate", {"inputs": LONG}),
        (Tokenizer, "decode", "/v1/completions", {"prompt": [7] * 50_000, "echo": True}),
        (Tokenizer, "spans", "/tokenize", {"inputs": LONG}),
        (Tokenizer, "encode", "/tokenize", {"prompt": LONG}),
        (tokens, "parse_fields", "/detokenize", {"tokens": [7] * 50_000}),
        (Tokenizer, "decode", "/detokenize", {"tokens": [7] * 50_000}),
        (chat, "read_chat", "/v1/chat/completions", {"messages": CHAT}),
        (responses, "read_chat", "/v1/responses", {"input": LONG}),
        (messages, "read_chat", "/v1/messages", {"messages": CHAT, "max_tokens": 1}),
        (ChatTemplate, "encode", "/v1/chat/completions", {"messages": CHAT}),
    ],
)
async def test_probes_are_answered_while_a_long_prompt_is_read(
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    path: str,
    fields: dict[str, Any],
) -> None:
    hold = Hold(getattr(owner, name))

    def held(*args: Any, **kwargs: Any) -> Any:  # a function becomes a method where it must
        return hold(*args, **kwargs)

    monkeypatch.setattr(owner, name, held)
    data = json.dumps(fields).encode()
    headers = {"content-type": "application/json"}
    asked = asyncio.create_task(client.post(path, content=data, headers=headers))
    entered = await asyncio.to_thread(hold.entered.wait, HELD_SECONDS)
    assert entered
    assert (await client.get("/livez")).status_code == 200
    hold.let_go.set()
    response = await asked
    assert hold.in_time, "the loop stood still"
    assert response.status_code == 200, response.text[:300]
