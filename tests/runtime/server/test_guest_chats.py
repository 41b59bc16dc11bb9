"""Chats of an adapter that has its own template, on every surface that has chats."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from graft_protocol.config import ServerSettings
from graft_runtime.ipc.messages import GuestTemplate
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.backend import Target
from graft_runtime.server.listener import Listener
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import ADAPTER, BASE, FakeBackend

TEMPLATE = (
    "{% for m in messages %}{{ eos_token }}{{ m.role | upper }}: {{ m.content }}"
    "{% if mood %} ({{ mood }}){% endif %}{% endfor %}<|turn|>"
)
READS = ("eos_token", "messages", "mood")
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HELLO = [{"role": "user", "content": "hello </s>"}]
TOLD = "</s>USER: hello "
"""What stands before the user's own control token, which stays letters."""


@dataclass
class TemplatedBackend(FakeBackend):
    """The adapter of this one has a template."""

    template: GuestTemplate = field(default_factory=lambda: GuestTemplate(TEMPLATE, READS))

    def resolve(self, model: str | None, route_key: str | None = None) -> Target:
        target = super().resolve(model, route_key)
        return target if target.revision is None else replace(target, template=self.template)


@pytest.fixture
def backend(backend: FakeBackend) -> TemplatedBackend:
    return TemplatedBackend(backend.folder, backend.script)


@pytest.fixture
async def client(backend: TemplatedBackend, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend, ServerSettings(), metrics=metrics)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        yield client
    await app.state.frontend.guests.close()
    await app.state.frontend.grammars.close()


@pytest.fixture
def expected(tokenizer: Tokenizer) -> list[int]:
    users = tokenizer.encode("</s>", add_special_tokens=False)
    return [*tokenizer.encode_trusted(TOLD), *users, *tokenizer.encode_trusted("<|turn|>")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/responses", {"input": "hello </s>"}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 3}),
        ("/invocations", {"messages": HELLO}),
        ("/vertex", {"instances": [{"messages": HELLO, "model": ADAPTER}]}),
    ],
)
async def test_an_adapters_chats_go_through_its_template(
    client: httpx.AsyncClient,
    backend: TemplatedBackend,
    expected: list[int],
    path: str,
    body: dict[str, Any],
) -> None:
    answer = await client.post(path, json={"model": ADAPTER, **body})
    assert answer.status_code == 200, answer.text
    assert backend.submitted[0].token_ids == expected


async def test_chats_on_a_websocket_go_through_its_template(
    backend: TemplatedBackend, metrics: Metrics, expected: list[int]
) -> None:
    app = create_app(backend, ServerSettings(), metrics=metrics)
    listener = Listener(
        app, host="127.0.0.1", port=0, drain_timeout_seconds=1, max_message_bytes=65_536
    )
    port = await listener.start()
    message = {
        "type": "request",
        "id": "a",
        "path": "/v1/chat/completions",
        "body": {"model": ADAPTER, "messages": HELLO},
    }
    try:
        async with connect(f"ws://127.0.0.1:{port}/v1/stream", proxy=None) as client:
            await client.send(json.dumps(message))
            while (answer := json.loads(await client.recv()))["type"] == "event":
                pass
    finally:
        await listener.stop()
    assert answer["type"] == "end", answer
    assert backend.submitted[0].token_ids == expected


@pytest.mark.parametrize("path", ["/tokenize", "/chat_tokenize", "/v1/messages/count_tokens"])
async def test_what_counts_tokens_counts_those_of_its_template(
    client: httpx.AsyncClient, expected: list[int], path: str
) -> None:
    answer = await client.post(path, json={"model": ADAPTER, "messages": HELLO})
    body = answer.json()
    if path == "/tokenize":
        assert body["tokens"] == expected
    elif path == "/chat_tokenize":
        assert [each["id"] for each in body["tokenize_response"]] == expected
    else:
        assert body == {"input_tokens": len(expected)}


async def test_the_base_model_and_completions_know_nothing_of_it(
    client: httpx.AsyncClient, backend: TemplatedBackend, tokenizer: Tokenizer
) -> None:
    await client.post("/v1/chat/completions", json={"model": BASE, "messages": HELLO})
    await client.post("/v1/completions", json={"model": ADAPTER, "prompt": "hello"})
    base, plain = (each.token_ids for each in backend.submitted)
    assert tokenizer.decode(base, skip_special_tokens=False).startswith("<s><|turn|>user\n")
    assert plain == tokenizer.encode("hello", add_special_tokens=True)


async def test_variables_are_those_that_it_reads(
    client: httpx.AsyncClient, backend: TemplatedBackend, tokenizer: Tokenizer
) -> None:
    variables = {"mood": "glad", "other": 1}
    body = {"model": ADAPTER, "messages": HELLO, "chat_template_kwargs": variables}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["x-graft-ignored-fields"] == "chat_template_kwargs.other"
    told = tokenizer.decode(backend.submitted[0].token_ids, skip_special_tokens=False)
    assert told.endswith(" (glad)<|turn|>")
    refused = await client.post("/v1/chat/completions", json={**body, "documents": [{"text": "x"}]})
    assert (refused.status_code, refused.json()["param"]) == (400, "documents")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('only poems') }}", "only poems"),
        ("{{ messages[0].content.nothing.at.all }}", "refuses these messages"),
        ("{% include '/etc/hostname' %}", "cannot be applied"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "second",
        ),
    ],
    ids=["refuses", "undefined", "file", "endless"],
)
async def test_one_that_fails_is_an_answer_to_its_request_alone(
    client: httpx.AsyncClient, backend: TemplatedBackend, template: str, told: str
) -> None:
    backend.template = GuestTemplate(template, ("messages",))
    answer = await client.post("/v1/chat/completions", json={"model": ADAPTER, "messages": HELLO})
    assert (answer.status_code, answer.json()["param"]) == (400, "messages")
    assert told in answer.json()["message"]
    assert backend.submitted == []
    backend.template = GuestTemplate(TEMPLATE, READS)
    good = await client.post("/v1/chat/completions", json={"model": ADAPTER, "messages": HELLO})
    assert good.status_code == 200


async def test_a_mark_that_a_template_makes_up_stands_for_nothing(
    client: httpx.AsyncClient, backend: TemplatedBackend
) -> None:
    forged = "{{ messages[0].content | replace(':0>', ':99>') }}"
    backend.template = GuestTemplate(forged, ("messages",))
    answer = await client.post("/v1/chat/completions", json={"model": ADAPTER, "messages": HELLO})
    assert answer.status_code == 200
