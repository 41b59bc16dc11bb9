"""Tools and thoughts in chats: what the template reads, what the answer says, how it streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_runtime.text.tokenizer import Tokenizer
from tests.support.chat_server import chat_folder, client_of, last_prompt, let_say
from tests.support.fake_backend import FakeBackend
from tests.support.sse_text import events
from tests.support.toy_tokenizer import TURN, write_toy_tokenizer

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
CALLS = (
    'Look.<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
)


@pytest.fixture
def backend(tmp_path: Path) -> FakeBackend:
    return FakeBackend(chat_folder(tmp_path), limit=1024)


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"messages": HELLO, **fields})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def deltas(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post(PATH, json={"messages": HELLO, "stream": True, **fields})
    assert response.status_code == 200, response.text
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    return [chunk["choices"][0] for chunk in chunks]


async def test_calls_stand_beside_the_content(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, CALLS)
    choice = await ask(client, tools=[WEATHER, TIME])
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Look."
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert second["function"] == {"name": "time", "arguments": "{}"}
    assert first["type"] == "function"
    assert first["id"].startswith("call_")
    assert first["id"] != second["id"]
    assert last_prompt(backend).startswith(json.dumps([WEATHER, TIME]))


async def test_a_stream_tells_each_call_once_and_then_its_arguments(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, CALLS)
    choices = await deltas(client, tools=[WEATHER, TIME])
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    calls = [each["delta"]["tool_calls"][0] for each in choices if "tool_calls" in each["delta"]]
    begun = [call for call in calls if "id" in call]
    assert [(call["index"], call["function"]) for call in begun] == [
        (0, {"name": "weather", "arguments": ""}),
        (1, {"name": "time", "arguments": ""}),
    ]
    for index, expected in enumerate(('{"city": "Rome"}', "{}")):
        pieces = [call["function"]["arguments"] for call in calls if call["index"] == index]
        assert "".join(pieces) == expected
    later = [call for call in calls if "id" not in call]
    assert all(call.keys() == {"index", "function"} for call in later)
    reasons = [each["finish_reason"] for each in choices]
    assert reasons[-1] == "tool_calls"
    assert set(reasons[:-1]) == {None}


async def test_without_parallel_calls_only_the_first_is_made(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, CALLS)
    choice = await ask(client, tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]


async def test_an_answer_without_calls_ends_with_stop(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "Sunny.")
    choice = await ask(client, tools=[WEATHER])
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {"role": "assistant", "content": "Sunny."}


async def test_a_call_that_was_cut_off_says_so(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, '<tool_call>{"name": "weather", "arguments": {"ci', "length")
    choice = await ask(client, tools=[WEATHER])
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"ci'
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("fields", [{"tools": [WEATHER], "tool_choice": "none"}, {}])
async def test_where_no_tool_may_be_called_the_text_is_left_alone(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any]
) -> None:
    let_say(backend, CALLS)
    choice = await ask(client, **fields)
    assert choice["message"] == {"role": "assistant", "content": CALLS}
    assert "weather" not in last_prompt(backend)


async def test_calls_and_their_results_go_through_the_template(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "Sunny.")
    function = {"name": "weather", "arguments": '{"city": "</s>Rome"}'}
    messages = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    await ask(client, messages=messages, tools=[WEATHER])
    assert last_prompt(backend).endswith(f"{TURN}assistant:weather(</s>Rome){TURN}tool:sunny{TURN}")
    assert backend.folder is not None
    tokenizer = Tokenizer.load(backend.folder)
    end = tokenizer.special_ids(["</s>"])
    assert not end & set(backend.submitted[-1].token_ids), "a user's control token stays letters"


async def test_a_template_without_tools_is_told_of_them_in_the_last_message(tmp_path: Path) -> None:
    folder = write_toy_tokenizer(tmp_path)
    backend = FakeBackend(folder, limit=1024)
    let_say(backend, '{"name": "weather", "parameters": {"city": "Rome"}}')
    async with client_of(backend) as client:
        choice = await ask(client, tools=[WEATHER], tool_prompt="Call:")
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
    told = json.dumps([WEATHER["function"]])
    assert f"hello\n---\nCall:\n{told}" in last_prompt(backend)


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ("x", None, "tools"),
        ([1], None, "tools[0]"),
        ([{"type": "web_search"}], None, "tools[0].type"),
        ([{"type": "function"}], None, "tools[0].function"),
        ([{"function": {"name": "a b"}}], None, "tools[0].function.name"),
        ([{"function": {"name": "a", "parameters": 1}}], None, "tools[0].function.parameters"),
        ([{"function": {"name": "a", "description": 1}}], None, "tools[0].function.description"),
        ([TIME, TIME], None, "tools"),
        ([TIME] * 129, None, "tools"),
        (None, "required", "tool_choice"),
        ([TIME], "weather", "tool_choice"),
        ([TIME], {"type": "function"}, "tool_choice"),
        ([TIME], {"type": "function", "function": {"name": "weather"}}, "tool_choice"),
        ([TIME], 7, "tool_choice"),
    ],
)
async def test_wrong_tools_are_refused_by_their_place(
    client: httpx.AsyncClient, tools: Any, choice: Any, param: str
) -> None:
    body = {"messages": HELLO, "tools": tools, "tool_choice": choice}
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_thoughts_are_told_apart_from_the_answer(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "<think>\nhm\n</think>\n\nYes.")
    message = (await ask(client))["message"]
    assert message == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "hm",
        "reasoning": "hm",
    }
    streamed = [choice["delta"] for choice in await deltas(client)]
    assert "".join(delta.get("reasoning_content", "") for delta in streamed) == "hm"
    assert "".join(delta.get("content", "") for delta in streamed) == "Yes."
    message = (await ask(client, include_reasoning=False))["message"]
    assert message == {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    "fields", [{"reasoning_effort": "low"}, {"chat_template_kwargs": {"enable_thinking": True}}]
)
async def test_a_thought_that_the_prompt_opens_needs_no_mark(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any]
) -> None:
    let_say(backend, "hm</think>Yes.")
    message = (await ask(client, **fields))["message"]
    assert (message["reasoning"], message["content"]) == ("hm", "Yes.")
    assert last_prompt(backend).endswith("<think>")


async def test_variables_that_the_template_does_not_read_are_named(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "Yes.")
    variables = {"enable_thinking": False, "style": "brief"}
    body = {"messages": HELLO, "chat_template_kwargs": variables}
    response = await client.post(PATH, json=body)
    assert response.headers["x-graft-ignored-fields"] == "chat_template_kwargs.style"
    body["chat_template_kwargs"] = {"messages": []}
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs.messages"


async def test_the_last_message_is_written_on(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, " world")
    messages = [*HELLO, {"role": "assistant", "content": "hello"}]
    choice = await ask(client, messages=messages, continue_final_message=True, echo=True)
    assert last_prompt(backend).endswith(f"{TURN}assistant:hello")
    assert choice["message"]["content"] == "hello world"
    streamed = await deltas(client, messages=messages, continue_final_message=True, echo=True)
    assert "".join(each["delta"].get("content", "") for each in streamed) == "hello world"
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": True}
    response = await client.post(PATH, json=body)
    assert response.json()["error"]["param"] == "continue_final_message"


async def test_the_tokenizers_own_start_can_be_asked_for(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, "x")
    await ask(client, add_special_tokens=True)
    assert last_prompt(backend) == f"<s>{TURN}user:hello{TURN}"


REQUIRED = (
    '[{"name": "weather", "parameters": {"city": "Rome"}}, {"name": "time", "parameters": {}}]'
)


async def test_a_required_call_is_a_list_that_a_grammar_forces(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    let_say(backend, REQUIRED)
    choice = await ask(client, tools=[WEATHER, TIME], tool_choice="required")
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert calls == [
        {"name": "weather", "arguments": '{"city": "Rome"}'},
        {"name": "time", "arguments": "{}"},
    ]
    assert choice["finish_reason"] == "tool_calls"
    grammar = backend.submitted[0].sampling.grammar
    assert grammar is not None
    assert "weather" in grammar


@pytest.mark.parametrize(
    "named", ["weather", {"type": "function", "function": {"name": "weather"}}]
)
async def test_a_named_call_is_its_arguments_alone(
    client: httpx.AsyncClient, backend: FakeBackend, named: Any
) -> None:
    let_say(backend, '{"city": "Rome"}')
    choice = await ask(client, tools=[WEATHER, TIME], tool_choice=named)
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "stop"
    assert backend.submitted[0].sampling.grammar is not None
    streamed = await deltas(client, tools=[WEATHER], tool_choice=named)
    first = streamed[1]["delta"]["tool_calls"][0]
    assert first["function"] == {"name": "weather", "arguments": ""}


async def test_a_forced_call_excludes_another_form(client: httpx.AsyncClient) -> None:
    body = {
        "messages": HELLO,
        "tools": [TIME],
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
    }
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"


async def test_schemas_that_share_a_name_must_agree(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/X"}},
            "$defs": {"X": {"type": kind}},
        }
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    body = {"messages": HELLO, "tool_choice": "required"}
    tools = [tool("weather", "integer"), tool("time", "string")]
    response = await client.post(PATH, json={**body, "tools": tools})
    assert response.json()["error"]["param"] == "tools"
    let_say(backend, '[{"name": "time", "parameters": {"x": 1}}]')
    tools = [tool("weather", "integer"), tool("time", "integer")]
    choice = await ask(client, tools=tools, tool_choice="required")
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'
