"""What is read of a prompt, how tokens are shown, and what a model's makers recommend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from graft_runtime.text.tokenizer import Tokenizer
from tests.support.chat_server import chat_folder, client_of, let_say
from tests.support.fake_backend import FakeBackend, script_of
from tests.support.sse_text import events

HELLO = [{"role": "user", "content": "hello"}]
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


async def ask(client: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    response = await client.post(path, json=fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, slice(-3, None)),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, slice(3)),
        ({"truncate_prompt_tokens": -1}, slice(-255, None)),
    ],
)
async def test_a_long_prompt_can_be_cut_on_either_side(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    tokenizer: Tokenizer,
    fields: dict[str, Any],
    kept: slice,
) -> None:
    prompt = "one two three " * 300
    await ask(client, COMPLETIONS, prompt=prompt, max_tokens=1, **fields)
    ids = tokenizer.encode(prompt, add_special_tokens=True)
    assert backend.submitted[0].token_ids == ids[kept]
    await ask(client, COMPLETIONS, prompt=ids, max_tokens=1, **fields)
    assert backend.submitted[1].token_ids == ids[kept]
    messages = [{"role": "user", "content": prompt}]
    await ask(client, CHAT, messages=messages, max_tokens=1, **fields)
    assert len(backend.submitted[2].token_ids) == len(ids[kept])


@pytest.mark.parametrize("value", [0, -2, 257, "3"])
async def test_a_cut_that_makes_no_sense_is_refused(client: httpx.AsyncClient, value: Any) -> None:
    body = {"prompt": "hello", "truncate_prompt_tokens": value}
    response = await client.post(COMPLETIONS, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "truncate_prompt_tokens"


async def test_control_tokens_are_shown_on_request_but_never_the_end(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    [turn], [end] = tokenizer.special_ids(["<|turn|>"]), tokenizer.special_ids(["</s>"])
    ids = [turn, *tokenizer.encode("one", add_special_tokens=False), end]
    backend.script = script_of(ids, "stop")
    for fields, text in (({}, "one"), ({"skip_special_tokens": False}, "<|turn|>one")):
        body = await ask(client, COMPLETIONS, prompt="x", **fields)
        assert body["choices"][0]["text"] == text
        body = await ask(client, CHAT, messages=HELLO, **fields)
        assert body["choices"][0]["message"]["content"] == text


async def test_ids_stand_beside_the_text_on_request(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    output = [id for chunk in backend.script for id in chunk.token_ids]
    body = await ask(client, COMPLETIONS, prompt="hello", return_token_ids=True)
    [choice] = body["choices"]
    assert choice["token_ids"] == output
    assert choice["prompt_token_ids"] == backend.submitted[-1].token_ids
    body = await ask(client, CHAT, messages=HELLO, return_token_ids=True)
    assert body["choices"][0]["token_ids"] == output
    assert body["prompt_token_ids"] == backend.submitted[-1].token_ids
    for path, prompt in ((COMPLETIONS, {"prompt": "hello"}), (CHAT, {"messages": HELLO})):
        stream = {**prompt, "stream": True, "return_token_ids": True}
        *chunks, _ = events((await client.post(path, json=stream)).text)
        told = [chunk["choices"][0].get("token_ids", []) for chunk in chunks]
        assert [id for ids in told for id in ids] == output
        prompts = [
            ids
            for chunk in chunks
            for ids in (chunk.get("prompt_token_ids"), chunk["choices"][0].get("prompt_token_ids"))
            if ids
        ]
        assert prompts == [backend.submitted[-1].token_ids]


async def test_logprobs_can_name_tokens_by_id(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    names = [f"token_id:{id}" for chunk in backend.script for id in chunk.token_ids]
    fields = {"logprobs": 0, "return_tokens_as_token_ids": True}
    body = await ask(client, COMPLETIONS, prompt="hello", **fields)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == names
    assert [list(each) for each in logprobs["top_logprobs"]] == [[name] for name in names]
    body = await ask(client, CHAT, messages=HELLO, **fields | {"logprobs": True})
    content = body["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == names
    assert bytes(byte for each in content for byte in each["bytes"]) == b"one two three"


async def test_the_models_own_sampling_is_taken_where_a_client_says_nothing(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path)
    config = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True, "min_p": None}
    (folder / "generation_config.json").write_text(json.dumps(config))
    backend = FakeBackend(folder)
    let_say(backend, "x")
    async with client_of(backend) as client:
        await ask(client, CHAT, messages=HELLO, top_k=0)
        await ask(client, COMPLETIONS, prompt="x", temperature=0)
    chat, completion = (each.sampling for each in backend.submitted)
    assert (chat.temperature, chat.top_k, chat.top_p, chat.min_p) == (0.6, 0, 0.95, 0.0)
    assert (completion.temperature, completion.top_k) == (0.0, 20)


async def test_recommended_values_that_are_out_of_range_are_not_taken(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"temperature": -1, "top_k": 7}')
    backend = FakeBackend(folder)
    let_say(backend, "x")
    async with client_of(backend) as client:
        await ask(client, CHAT, messages=HELLO)
    assert backend.submitted[0].sampling.temperature == 1.0


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_tokens_of_a_stream_come_together_if_asked(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer, path: str
) -> None:
    ids = tokenizer.encode("one two three four five six seven", add_special_tokens=False)
    backend.script = script_of(ids, "length")
    prompt: dict[str, Any] = {"prompt": "hello"} if path == COMPLETIONS else {"messages": HELLO}
    asked = {**prompt, "stream": True, "stream_interval": 3, "return_token_ids": True}
    answer = await client.post(path, json=asked)
    choices = [each["choices"][0] for each in events(answer.text)[:-1]]
    sizes = [len(each["token_ids"]) for each in choices if each.get("token_ids")]
    assert sizes[0] == 1
    assert set(sizes[1:-1]) == {3}
    assert sum(sizes) == len(ids)
    refused = await client.post(path, json={**asked, "stream_interval": 0})
    assert (refused.status_code, refused.json()["param"]) == (400, "stream_interval")
