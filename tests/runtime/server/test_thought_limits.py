"""``thinking_token_budget`` on each surface that has it: told to the engine, or refused by name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_runtime.ipc.messages import ThoughtLimit
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.chat_server import chat_folder, client_of, let_say
from tests.support.fake_backend import BASE, FakeBackend

HELLO = [{"role": "user", "content": "hello"}]
OPEN = "hello <think>one two"


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    made = FakeBackend(chat_folder(tmp_path))
    let_say(made, "hm</think>Yes.")
    return made


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as made:
        yield made


async def limits(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, **body: Any
) -> list[ThoughtLimit | None]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found = [each.sampling.thought_limit for each in backend.submitted]
    backend.submitted.clear()
    return found


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_chat_tells_the_engine_how_a_thought_ends(
    client: httpx.AsyncClient, backend: FakeBackend, is_open: bool
) -> None:
    (limit,) = await limits(
        client,
        backend,
        "/v1/chat/completions",
        messages=HELLO,
        thinking_token_budget=7,
        chat_template_kwargs={"enable_thinking": is_open},
    )
    assert limit is not None
    assert (limit.max_tokens, limit.is_open) == (7, is_open)
    assert backend.folder is not None
    text = Tokenizer.load(backend.folder).decode(limit.closing_ids, skip_special_tokens=False)
    assert text == limit.closing == "</think>"


async def test_every_choice_has_the_limit(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body: dict[str, Any] = {"messages": HELLO, "thinking_token_budget": 0, "n": 3, "stream": True}
    found = await limits(client, backend, "/v1/chat/completions", **body)
    assert [limit.max_tokens for limit in found if limit is not None] == [0, 0, 0]


@pytest.mark.parametrize(
    "fields", [{"thinking_token_budget": -1}, {"thinking_token_budget": None}, {}]
)
async def test_no_budget_is_no_limit(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any]
) -> None:
    assert await limits(client, backend, "/v1/chat/completions", messages=HELLO, **fields) == [None]
    assert await limits(client, backend, "/v1/completions", prompt=OPEN, **fields) == [None]


async def test_under_a_grammar_there_is_nothing_to_limit(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    fields = {"thinking_token_budget": 3, "guided_choice": ["a", "b"]}
    for path, body in (
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": OPEN}),
    ):
        assert await limits(client, backend, path, **body, **fields) == [None]


async def test_a_bare_prompts_own_thought_counts(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    assert backend.folder is not None
    used = len(Tokenizer.load(backend.folder).encode("one two", add_special_tokens=False))
    expected = [
        (OPEN, 9, (9 - used, True)),
        (OPEN, 1, (0, True)),
        (f"{OPEN}</think>", 9, (9, False)),
        ("hello", 9, (9, False)),
    ]
    for prompt, budget, told in expected:
        body: dict[str, Any] = {"prompt": prompt, "thinking_token_budget": budget}
        (limit,) = await limits(client, backend, "/v1/completions", **body)
        assert limit is not None
        assert (limit.max_tokens, limit.is_open) == told


async def test_triton_takes_it_among_its_sampling_parameters(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    sampling = json.dumps({"thinking_token_budget": "4"})
    (limit,) = await limits(
        client,
        backend,
        f"/v2/models/{BASE}/generate",
        text_input="hello",
        sampling_parameters=sampling,
    )
    assert limit is not None
    assert limit.max_tokens == 4


async def test_anthropics_budget_is_the_same(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 9, "thinking": thinking}
    (limit,) = await limits(client, backend, "/v1/messages", **body)
    assert limit is not None
    assert (limit.max_tokens, limit.is_open) == (1024, True)
    for kind in ("disabled", "adaptive"):
        body["thinking"] = {"type": kind}
        assert await limits(client, backend, "/v1/messages", **body) == [None]


async def test_an_anthropic_budget_that_is_none_is_refused_by_its_own_name(
    client: httpx.AsyncClient,
) -> None:
    thinking = {"type": "enabled", "budget_tokens": "many"}
    body = {"messages": HELLO, "max_tokens": 9, "thinking": thinking}
    answer = await client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert "`thinking.budget_tokens`" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "hello"}),
        (f"/v2/models/{BASE}/generate", {"text_input": "hello"}),
    ],
)
async def test_a_model_without_thoughts_refuses_a_budget_by_name(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    backend = FakeBackend(chat_folder(tmp_path, template))
    let_say(backend, "Yes.")
    async with client_of(backend) as client:
        answer = await client.post(path, json={**body, "thinking_token_budget": 3})
        assert answer.status_code == 400
        assert "`thinking_token_budget`" in answer.text
        assert not backend.submitted
