"""The chat surface: messages, streams, refusals."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import BASE, FakeBackend
from tests.support.sse_text import events
from tests.support.toy_tokenizer import TURN, write_toy_tokenizer

PATH = "/v1/chat/completions"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HELLO = [{"role": "user", "content": "hello"}]


async def chat(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"messages": HELLO, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_an_answer_has_openais_shape(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await chat(client)
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", BASE)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two three"},
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert body["usage"]["prompt_tokens"] == len(backend.submitted[0].token_ids)


async def test_the_prompt_is_what_the_template_writes(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    await chat(client, messages=messages)
    text = tokenizer.decode(backend.submitted[0].token_ids, skip_special_tokens=False)
    assert text == f"<s>{TURN}system\ns</s>{TURN}user\na\nb</s>{TURN}assistant\n"


async def test_without_a_limit_the_rest_of_the_context_may_be_used(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await chat(client)
    submitted = backend.submitted[0]
    assert submitted.sampling.max_tokens == 256 - len(submitted.token_ids)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit_count(
    client: httpx.AsyncClient, backend: FakeBackend, field: str
) -> None:
    await chat(client, **{field: 5})
    assert backend.submitted[0].sampling.max_tokens == 5


async def test_a_stream_begins_with_the_role_and_ends_with_done(client: httpx.AsyncClient) -> None:
    body = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    first, *chunks, usage, done = events((await client.post(PATH, json=body)).text)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [each["choices"][0]["delta"].get("content", "") for each in chunks]
    assert "".join(deltas) == "one two three"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert done == "[DONE]"


async def test_logprobs_name_tokens_and_bytes(client: httpx.AsyncClient) -> None:
    content = (await chat(client, logprobs=True))["choices"][0]["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == "one two three"
    assert bytes(byte for each in content for byte in each["bytes"]) == b"one two three"
    assert {each["logprob"] for each in content} == {-0.5}
    assert content[0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),  # without tools
        ("top_logprobs", 2),  # without logprobs
        ("top_logprobs", 21),
        ("chat_template", "{{ 1 }}"),
        ("documents", [{"text": "x"}]),  # the template does not read it
        ("reasoning_effort", "high"),
        ("reasoning_effort", "very"),
        ("tool_prompt", "x"),
        ("thinking_token_budget", 1),  # the template knows no thoughts
        ("thinking_token_budget", -2),
        ("thinking_token_budget", 1.5),
        ("logprob_token_ids", [1]),  # without logprobs
        ("logprob_token_ids", []),
        ("n", 9),
    ],
)
async def test_a_known_field_that_is_not_honoured_is_refused_by_name(
    client: httpx.AsyncClient, field: str, value: Any
) -> None:
    response = await client.post(PATH, json={"messages": HELLO, field: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


async def test_a_field_that_asks_for_what_happens_anyway_is_fine(
    client: httpx.AsyncClient,
) -> None:
    await chat(
        client,
        n=1,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        parallel_tool_calls=True,
        presence_penalty=0.0,
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x", "tool_call_id": 1}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [1]}], "messages[0].tool_calls[0].function"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([*HELLO, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": 7}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://x"}}],
                }
            ],
            "messages[0].content[0]",
        ),
        ([{"role": "user", "content": "x", "name": 3}], "messages[0].name"),
    ],
)
async def test_a_wrong_message_is_refused_by_its_place(
    client: httpx.AsyncClient, messages: Any, param: str
) -> None:
    response = await client.post(PATH, json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_chat_that_cannot_fit_is_refused(client: httpx.AsyncClient) -> None:
    for content in ("x y z " * 100, "x" * 100_000):
        messages = [{"role": "user", "content": content}]
        response = await client.post(PATH, json={"messages": messages})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_a_model_without_template_says_so(tmp_path: Path) -> None:
    backend = FakeBackend(write_toy_tokenizer(tmp_path, chat=False))
    app = create_app(backend, ServerSettings(), metrics=Metrics(BASE))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        response = await client.post(PATH, json={"messages": HELLO})
    assert response.status_code == 400
    assert "chat template" in response.json()["error"]["message"]
