"""The messages surface: blocks in and out, named events, errors in their own form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_runtime.errors import EngineDiedError, OverloadedError
from tests.support.chat_server import SPEECH, chat_folder, client_of, last_prompt, let_say
from tests.support.fake_backend import BASE, FakeBackend, chunk
from tests.support.sse_text import named_events
from tests.support.toy_tokenizer import TURN

PATH = "/v1/messages"
BODY = {"max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
WEATHER = {"name": "weather", "description": "Tell it", "input_schema": {"type": "object"}}


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(chat_folder(tmp_path))


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={**BODY, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_an_answer_is_a_message_of_blocks(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, SPEECH)
    backend.script = [replace(backend.script[0], num_cached=4), *backend.script[1:]]
    body = await ask(client, tools=[WEATHER], system="Be brief.")
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", BASE)
    thought, text, call = body["content"]
    assert thought == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert text == {"type": "text", "text": "Look."}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert (body["stop_reason"], body["stop_sequence"]) == ("tool_use", None)
    num_prompt = len(backend.submitted[0].token_ids)
    assert body["usage"]["input_tokens"] == num_prompt - 4
    assert body["usage"]["cache_read_input_tokens"] == 4
    assert f"{TURN}system:Be brief.{TURN}user:hello" in last_prompt(backend)


@pytest.mark.parametrize(
    ("finish", "stops", "reason", "sequence"),
    [
        ("stop", [], "end_turn", None),
        ("length", [], "max_tokens", None),
        ("stop", [" two"], "stop_sequence", " two"),
    ],
)
async def test_the_end_has_anthropics_names(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    finish: str,
    stops: list[str],
    reason: str,
    sequence: str | None,
) -> None:
    let_say(backend, "one two three", finish)
    body = await ask(client, stop_sequences=stops)
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)


async def test_a_stream_opens_fills_and_closes_each_block(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, SPEECH)
    response = await client.post(PATH, json={**BODY, "tools": [WEATHER], "stream": True})
    found = named_events(response.text)
    assert all(name == data["type"] for name, data in found)
    assert found[0][1]["message"]["content"] == []
    assert found[0][1]["message"]["stop_reason"] is None
    deltas: dict[int, str] = {}
    kinds = []
    for name, data in found[1:-2]:
        match name:
            case "content_block_start":
                kinds.append(data["content_block"]["type"])
                deltas[data["index"]] = ""
            case "content_block_delta":
                [text] = [text for key, text in data["delta"].items() if key != "type"]
                deltas[data["index"]] += text
            case _:
                assert name == "content_block_stop"
    assert kinds == ["thinking", "text", "tool_use"]
    assert deltas == {0: "hm", 1: "Look.", 2: '{"city": "Rome"}'}
    assert found[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2][1]["usage"]["output_tokens"] > 0
    assert found[-1] == ("message_stop", {"type": "message_stop"})


async def test_errors_have_anthropics_form(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post(PATH, json={**BODY, "model": "nobody"})
    assert response.status_code == 404
    assert response.json() == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "The model does not exist."},
    }
    let_say(backend, "one two three")
    backend.script = [*backend.script[:2], chunk(finish="error")]
    backend.error = EngineDiedError("the engine failed")
    response = await client.post(PATH, json={**BODY, "stream": True})
    name, data = named_events(response.text)[-1]
    assert (name, data["error"]["type"]) == ("error", "overloaded_error")
    backend.refusal = OverloadedError("full", retry_after_seconds=3)
    response = await client.post(PATH, json=BODY)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_blocks_of_earlier_turns_become_messages(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "Sunny.")
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "text", "text": "sunny"}],
    }
    messages = [
        {"role": "user", "content": "Rome?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "text", "text": "Look."},
                call,
            ],
        },
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    await ask(client, messages=messages)
    assert last_prompt(backend) == (
        f"{TURN}user:Rome?{TURN}assistant:Look.weather(Rome){TURN}tool:sunny{TURN}user:And?{TURN}"
    )
    response = await client.post(f"{PATH}/count_tokens", json={"messages": messages})
    assert response.json() == {"input_tokens": len(backend.submitted[-1].token_ids)}


async def test_what_was_put_in_the_assistants_mouth_goes_on(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, " world")
    messages = [*BODY["messages"], {"role": "assistant", "content": "hello"}]  # type: ignore[misc]  # a literal
    body = await ask(client, messages=messages)
    assert last_prompt(backend).endswith(f"{TURN}assistant:hello")
    assert body["content"] == [{"type": "text", "text": " world"}]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"thinking": {"type": "very"}}, "thinking.type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"stop_sequences": ["x"] * 5}, "stop_sequences"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], named: str
) -> None:
    response = await client.post(PATH, json={**BODY, **fields})
    assert response.status_code == 400, response.text
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert named in body["error"]["message"]


async def test_thinking_can_be_asked_for(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    let_say(backend, "hm</think>Yes.")
    body = await ask(client, thinking={"type": "enabled", "budget_tokens": 1024})
    assert last_prompt(backend).endswith("<think>")
    assert [block["type"] for block in body["content"]] == ["thinking", "text"]
