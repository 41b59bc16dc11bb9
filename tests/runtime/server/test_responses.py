"""The responses surface: items in and out, and every event of a stream in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_runtime.errors import EngineDiedError
from tests.support.chat_server import SPEECH, chat_folder, client_of, last_prompt, let_say
from tests.support.fake_backend import BASE, FakeBackend, chunk
from tests.support.sse_text import named_events
from tests.support.toy_tokenizer import TURN

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(chat_folder(tmp_path))


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"input": "hello", **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_an_answer_is_a_list_of_items(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, SPEECH)
    body = await ask(client, tools=[WEATHER], instructions="Be brief.")
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", BASE)
    thought, message, call = body["output"]
    assert thought["type"] == "reasoning"
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert [part["text"] for part in message["content"]] == ["Look."]
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert call["arguments"] == '{"city": "Rome"}'
    assert call["call_id"].startswith("call_")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    assert (body["store"], body["previous_response_id"], body["tools"]) == (False, None, [WEATHER])
    assert f"{TURN}system:Be brief.{TURN}user:hello" in last_prompt(backend)


async def test_an_answer_that_was_cut_off_is_incomplete(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "one two", "length")
    body = await ask(client, max_output_tokens=5)
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert backend.submitted[0].sampling.max_tokens == 5


async def test_a_stream_opens_fills_and_closes_each_item(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, SPEECH)
    body = {"input": "hello", "tools": [WEATHER], "stream": True}
    response = await client.post(PATH, json=body)
    found = named_events(response.text)
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    assert all(name == data["type"] for name, data in found)
    names = [name for name, _ in found]
    once = [
        name for at, name in enumerate(names) if not at or name != names[at - 1]
    ]  # deltas repeat
    part = ["response.output_item.added", "response.content_part.added"]
    done = ["response.content_part.done", "response.output_item.done"]
    assert once == [
        "response.created",
        "response.in_progress",
        *part,
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        *done,
        *part,
        "response.output_text.delta",
        "response.output_text.done",
        *done,
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    finished = [data["item"] for name, data in found if name == "response.output_item.done"]
    assert finished == found[-1][1]["response"]["output"]
    for kind, text in (("output_text", "Look."), ("function_call_arguments", '{"city": "Rome"}')):
        pieces = [data["delta"] for name, data in found if name == f"response.{kind}.delta"]
        assert "".join(pieces) == text


async def test_a_stream_that_fails_ends_with_an_error_event(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "one two three")
    backend.script = [*backend.script[:2], chunk(finish="error")]
    backend.error = EngineDiedError("the engine failed")
    response = await client.post(PATH, json={"input": "x", "stream": True})
    name, data = named_events(response.text)[-1]
    assert name == "error"
    assert (data["type"], data["code"]) == ("error", "engine_failed")


async def test_items_of_earlier_turns_become_messages(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "Sunny.")
    items = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": "Rome?"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Look."}]},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city": "Rome"}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
    ]
    await ask(client, input=items)
    expected = (
        f"{TURN}system:Be brief.{TURN}user:Rome?{TURN}assistant:Look.weather(Rome)"
        f"{TURN}tool:sunny{TURN}"
    )
    assert last_prompt(backend) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"role": "robot", "content": "x"}]}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"max_output_tokens": 1000}, "max_output_tokens"),
        ({"reasoning": {"effort": "very"}}, "reasoning.effort"),
        ({"truncation": "auto"}, "truncation"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await client.post(PATH, json={"input": "x", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert "messages" not in response.json()["error"]["message"]


async def test_unknown_fields_are_named(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    let_say(backend, "x")
    response = await client.post(PATH, json={"input": "x", "prompt_cache_key": "k"})
    assert response.headers["x-graft-ignored-fields"] == "prompt_cache_key"


async def test_a_schema_rules_the_output(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    let_say(backend, '{"city": "Rome"}')
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    text = {"format": {"type": "json_schema", "name": "place", "schema": schema, "strict": True}}
    body = await ask(client, text=text)
    assert body["output"][0]["content"][0]["text"] == '{"city": "Rome"}'
    assert body["text"] == text
    grammar = backend.submitted[0].sampling.grammar
    assert grammar is not None
    assert "city" in grammar
    response = await client.post(PATH, json={"input": "x", "text": {"format": {"type": "html"}}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "text.format"
