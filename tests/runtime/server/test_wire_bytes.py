"""Bytes on the wire: how streams are framed, and how each surface writes every kind of error.

Clients split these by hand, so a space more or less is a break.
"""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from graft_runtime.errors import (
    AdapterUnavailableError,
    DrainingError,
    EngineDiedError,
    OverloadedError,
    RequestError,
)
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import FakeBackend, chunk, script_of

HEADERS = {"x-request-id": "r1"}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1700000000.5)


@pytest.fixture(autouse=True)
def two_tokens(backend: FakeBackend, tokenizer: Tokenizer) -> None:
    one, two = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("a", "b"))
    backend.script = script_of([one, two], "length")


async def stream(client: httpx.AsyncClient, path: str, **body: Any) -> str:
    response = await client.post(path, json=body, headers=HEADERS)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    return response.text


def frames(*payloads: str) -> str:
    return "".join(f"data: {each}\n\n" for each in payloads)


async def test_completions_stream(client: httpx.AsyncClient) -> None:
    head = '"id":"cmpl-r1","object":"text_completion","created":1700000000,"model":"base-model"'
    start = f'{{{head},"choices":[{{"index":0,"text":'
    usage = (
        '"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,'
        '"prompt_tokens_details":{"cached_tokens":0}}'
    )
    text = await stream(
        client,
        "/v1/completions",
        prompt=[4, 5, 6],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert text == frames(
        f'{start}"a","logprobs":null,"finish_reason":null,"stop_reason":null}}]}}',
        f'{start}"b","logprobs":null,"finish_reason":"length","stop_reason":null}}]}}',
        f'{{{head},"choices":[],{usage}}}',
        "[DONE]",
    )


async def test_chat_stream(client: httpx.AsyncClient) -> None:
    text = await stream(client, "/v1/chat/completions", messages=HELLO, stream=True)
    assert text.endswith("\n\ndata: [DONE]\n\n")
    *chunks, _ = [json.loads(each[6:]) for each in text.split("\n\n")[:-2]] + [None]
    deltas = [each["choices"][0]["delta"] for each in chunks if each]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}]
    assert all("usage" not in each for each in chunks if each)
    first = text.split("\n\n")[0]
    assert first.startswith('data: {"id":"chatcmpl-r1","object":"chat.completion.chunk",')


async def test_generate_stream(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    [one], [two] = (each.token_ids for each in backend.script)
    text = await stream(client, "/generate_stream", inputs="hello", parameters={"details": True})
    num_prompt = len(backend.submitted[0].token_ids)
    details = (
        '{"finish_reason":"length","generated_tokens":2,"skipped_tokens":0,"seed":null,'
        f'"input_length":{num_prompt},"prompt_tokens":{num_prompt}}}'
    )
    token = '"logprob":-0.5,"special":false,"skipped":false}'
    assert text == frames(
        f'{{"index":1,"token":{{"id":{one},"text":"a",{token},"generated_text":null,"details":null}}',
        f'{{"index":2,"token":{{"id":{two},"text":"b",{token},"generated_text":"ab",'
        f'"details":{details}}}',
    )


async def test_anthropic_stream(client: httpx.AsyncClient) -> None:
    text = await stream(client, "/v1/messages", messages=HELLO, max_tokens=9, stream=True)
    blocks = text.split("\n\n")
    assert blocks[-1] == ""
    name = "content_block_"
    payloads = [
        ("start", '"index":0,"content_block":{"type":"text","text":""}'),
        ("delta", '"index":0,"delta":{"type":"text_delta","text":"a"}'),
        ("delta", '"index":0,"delta":{"type":"text_delta","text":"b"}'),
        ("stop", '"index":0'),
    ]
    assert blocks[1:5] == [
        f'event: {name}{kind}\ndata: {{"type":"{name}{kind}",{payload}}}'
        for kind, payload in payloads
    ]
    assert blocks[-2] == 'event: message_stop\ndata: {"type":"message_stop"}'


BROKEN = EngineDiedError("the engine died")


@pytest.mark.parametrize(
    ("path", "body", "ending"),
    [
        (
            "/v1/completions",
            {"prompt": "x"},
            (
                'data: {"error":{"message":"the engine died","type":"ServiceUnavailableError",'
                '"param":null,"code":"engine_failed"},"object":"error","message":"the engine died",'
                '"type":"ServiceUnavailableError","param":null,"code":503}\n\ndata: [DONE]\n\n'
            ),
        ),
        (
            "/generate_stream",
            {"inputs": "x"},
            (
                'data: {"error":"Request failed during generation: the engine died",'
                '"error_type":"generation"}\n\n'
            ),
        ),
        (
            "/v1/messages",
            {"messages": HELLO, "max_tokens": 5},
            (
                'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
                '"message":"the engine died"}}\n\n'
            ),
        ),
        (
            "/v1/responses",
            {"input": "x"},
            (
                'event: error\ndata: {"type":"error","sequence_number":5,"code":"engine_failed",'
                '"message":"the engine died","param":null}\n\n'
            ),
        ),
    ],
)
async def test_an_error_in_a_stream_is_its_last_event(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any], ending: str
) -> None:
    backend.script, backend.error = [chunk(*backend.script[0].token_ids)], BROKEN
    text = await stream(client, path, stream=True, **body)
    assert text.endswith(ending), text
    assert text.startswith(("data: ", "event: "))


def openai(status: int, type: str, code: str, message: str, param: str | None = None) -> str:
    quoted = "null" if param is None else f'"{param}"'
    fields = f'"message":"{message}","type":"{type}","param":{quoted}'
    return f'{{"error":{{{fields},"code":"{code}"}},"object":"error",{fields},"code":{status}}}'


NOT_FOUND = "The model does not exist."
CASES: list[tuple[str, RequestError | dict[str, Any] | bytes, int, str]] = [
    # TGI's kinds.
    (
        "/generate",
        {"inputs": ""},
        422,
        '{"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}',
    ),
    (
        "/generate",
        {"inputs": "x", "parameters": {"adapter_id": "y"}},
        404,
        f'{{"error":"{NOT_FOUND}","error_type":"model_not_found"}}',
    ),
    (
        "/generate",
        OverloadedError("full"),
        429,
        '{"error":"Model is overloaded","error_type":"overloaded"}',
    ),
    (
        "/generate",
        EngineDiedError("gone"),
        424,
        '{"error":"Request failed during generation: gone","error_type":"generation"}',
    ),
    (
        "/generate",
        b"{",
        400,
        (
            '{"error":"the body is not JSON: Expecting property name enclosed in double quotes at '
            'position 1","error_type":"validation"}'
        ),
    ),
    # OpenAI's and vLLM's.
    (
        "/v1/completions",
        {"prompt": ""},
        400,
        openai(400, "BadRequestError", "invalid_value", "`prompt` must not be empty", "prompt"),
    ),
    (
        "/v1/completions",
        {"prompt": "x", "model": "y"},
        404,
        openai(404, "NotFoundError", "model_not_found", NOT_FOUND, "model"),
    ),
    (
        "/v1/chat/completions",
        AdapterUnavailableError("on its way"),
        503,
        openai(503, "ServiceUnavailableError", "adapter_unavailable", "on its way"),
    ),
    (
        "/v1/completions",
        DrainingError("going down"),
        503,
        openai(503, "ServiceUnavailableError", "draining", "going down"),
    ),
    ("/v1/nothing", {}, 404, openai(404, "NotFoundError", "not_found", "no such path")),
    # Anthropic's and Triton's.
    (
        "/v1/messages",
        OverloadedError("full"),
        429,
        '{"type":"error","error":{"type":"rate_limit_error","message":"full"}}',
    ),
    ("/v2/nothing", {}, 404, '{"error":"no such path"}'),
]
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "x"},
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
}


@pytest.mark.parametrize(("path", "body"), BODIES.items())
async def test_overload_says_what_is_full_and_when_there_is_room_again(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any]
) -> None:
    backend.refusal = OverloadedError("full", retry_after_seconds=3, limit=8)
    headers = (await client.post(path, json=body)).headers
    assert headers["retry-after"] == "3"
    assert headers["x-ratelimit-limit-requests"] == "8"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "3s"


async def test_no_limit_is_told_where_it_is_no_number_of_requests_that_is_full(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    told = []
    for refusal in (OverloadedError("full"), DrainingError("going down")):
        backend.refusal = refusal
        headers = (await client.post("/generate", json={"inputs": "x"})).headers
        told.append([name for name in headers if name.startswith("x-ratelimit-")])
    assert told == [["x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"], []]


@pytest.mark.parametrize(("path", "cause", "status", "expected"), CASES)
async def test_an_error_is_written_in_the_surfaces_form(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    path: str,
    cause: RequestError | dict[str, Any] | bytes,
    status: int,
    expected: str,
) -> None:
    body = cause
    if isinstance(cause, RequestError):
        backend.refusal, body = cause, BODIES[path]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = await client.post(path, content=content, headers=headers)
    assert (response.status_code, response.text) == (status, expected)
    assert response.headers["content-type"] == "application/json"
    assert ("retry-after" in response.headers) == (status in (424, 429, 503))
