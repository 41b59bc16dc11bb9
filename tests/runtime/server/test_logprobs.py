"""Log probabilities in each surface's form, echoed prompts, and prompts' own."""

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from graft_runtime.ipc.messages import TokenScore
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import BASE, FakeBackend, chunk
from tests.support.sse_text import events

COMPLETIONS = "/v1/completions"


@pytest.fixture
def ids(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("one two", add_special_tokens=False)


@pytest.fixture
def prompt(tokenizer: Tokenizer, backend: FakeBackend, ids: list[int]) -> list[int]:
    """Let the engine score a prompt, and answer two tokens with two alternatives each."""
    prompt = tokenizer.encode("hello world", add_special_tokens=False)
    other = tokenizer.encode(" fox", add_special_tokens=False)[0]
    scores = tuple(
        TokenScore(-0.5 * place, place, [(other, -0.1), (token, -0.5 * place)])
        for place, token in enumerate(prompt[1:], start=1)
    )
    top = ((ids[0], -0.25), (other, -1.5))
    backend.script = [
        replace(chunk(ids[0], logprob=-0.25), top_logprobs=(top,), prompt_scores=scores),
        replace(chunk(*ids[1:], finish="length"), top_logprobs=(top,) * (len(ids) - 1)),
    ]
    return prompt


async def test_completions_name_the_chosen_and_the_likeliest(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: list[int], ids: list[int]
) -> None:
    body = (await client.post(COMPLETIONS, json={"prompt": prompt, "logprobs": 2})).json()
    sampling = backend.submitted[0].sampling
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 2)
    assert (sampling.processed_logprobs, sampling.prompt_logprobs) == (False, None)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-0.25] + [-0.5] * (len(ids) - 1)
    assert logprobs["top_logprobs"][0] == {"one": -0.25, " fox": -1.5}
    assert "".join(logprobs["tokens"]) == body["choices"][0]["text"] == "one two"


async def test_named_tokens_stand_beside_the_chosen_one(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: list[int]
) -> None:
    named = {"logprob_token_ids": [7, 5, 7], "max_tokens": 2}
    fields = {"prompt": prompt, "logprobs": 0, **named}
    body = (await client.post(COMPLETIONS, json=fields)).json()
    sampling = backend.submitted[0].sampling
    assert sampling.logprob_token_ids == (7, 5)
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 0)
    assert body["choices"][0]["logprobs"]["top_logprobs"][0] == {"one": -0.25, " fox": -1.5}

    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, **named}
    for stream in (False, True):
        answer = await client.post("/v1/chat/completions", json={**chat, "stream": stream})
        answers = events(answer.text)[1:-1] if stream else [answer.json()]
        first = answers[0]["choices"][0]["logprobs"]["content"][0]
        told = [(each["token"], each["logprob"]) for each in first["top_logprobs"]]
        assert told == [("one", -0.25), (" fox", -1.5)]

    # An echoed prompt has its likeliest tokens all the same.
    await client.post(COMPLETIONS, json={**fields, "logprobs": 1, "echo": True})
    assert backend.submitted[-1].sampling.prompt_logprobs == 1


async def test_named_tokens_come_as_a_tensor_without_a_rank(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: list[int], ids: list[int]
) -> None:
    sampling = {"logprob_token_ids": [7]}
    body = {"text_input": "x", "sampling_parameters": json.dumps(sampling), "return_logprobs": True}
    answer = (await client.post(f"/v2/models/{BASE}/generate", json=body)).json()
    first = json.loads(answer["logprobs"])[0]
    assert next(iter(first)) == str(ids[0])
    assert [(each["logprob"], each["rank"]) for each in first.values()] == [
        (-0.25, None),
        (-1.5, None),
    ]
    assert backend.submitted[0].sampling.logprob_token_ids == (7,)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
        ({"logprob_token_ids": [], "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": [1] * 129, "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": [10**6], "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": [-1], "logprobs": 1}, "logprob_token_ids"),
        ({"logprob_token_ids": [1.5], "logprobs": 1}, "logprob_token_ids[0]"),
        (
            {"logprob_token_ids": [1], "logprobs": 1, "echo": True, "max_tokens": 0},
            "logprob_token_ids",
        ),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ],
)
async def test_tokens_that_cannot_be_told_are_refused_by_name(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    answer = await client.post(COMPLETIONS, json={"prompt": "x", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_brings_the_prompt_with_its_scores(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    tokenizer: Tokenizer,
    prompt: list[int],
    ids: list[int],
    stream: bool,
) -> None:
    fields = {"prompt": [prompt], "echo": True, "logprobs": 1, "max_tokens": 2, "stream": stream}
    response = await client.post(COMPLETIONS, json=fields)
    answers = events(response.text)[:-1] if stream else [response.json()]
    choices = [answer["choices"][0] for answer in answers]
    text = "".join(choice["text"] for choice in choices)
    merged: dict[str, list[Any]] = {}
    for choice in choices:
        for key, values in choice["logprobs"].items():
            merged.setdefault(key, []).extend(values)
    assert text == "".join(merged["tokens"]) == "hello worldone two"
    assert merged["token_logprobs"][0] is None
    assert merged["top_logprobs"][0] is None
    expected = [-0.5 * place for place in range(1, len(prompt))]
    assert merged["token_logprobs"][1 : len(prompt)] == expected
    assert [
        text[start:].startswith(token)
        for start, token in zip(merged["text_offset"], merged["tokens"], strict=True)
    ] == [True] * (len(prompt) + len(ids))
    assert backend.submitted[0].sampling.prompt_logprobs == 1
    second = tokenizer.decode(prompt[1:2], skip_special_tokens=False)
    assert merged["top_logprobs"][1] == {second: -0.5, " fox": -0.1}


async def test_no_output_is_only_the_echo(client: httpx.AsyncClient, prompt: list[int]) -> None:
    fields = {"prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 0}
    body = (await client.post(COMPLETIONS, json=fields)).json()
    assert body["choices"][0]["text"] == "hello world"
    assert len(body["choices"][0]["logprobs"]["tokens"]) == len(prompt)
    assert body["usage"]["completion_tokens"] == 0
    assert body["choices"][0]["finish_reason"] == "length"


async def test_an_echo_without_logprobs_scores_nothing(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = (await client.post(COMPLETIONS, json={"prompt": "hello ", "echo": True, "n": 2})).json()
    assert [each["text"] for each in body["choices"]] == ["hello one two three"] * 2
    assert backend.submitted[0].sampling.prompt_logprobs is None


async def test_several_answers_share_the_prompts_scores(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: list[int]
) -> None:
    fields = {"prompt": prompt, "echo": True, "logprobs": 1, "n": 2}
    first, second = (await client.post(COMPLETIONS, json=fields)).json()["choices"]
    assert first["logprobs"] == second["logprobs"]
    assert [each.sampling.prompt_logprobs for each in backend.submitted] == [1, None]


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
async def test_prompt_logprobs_have_vllms_form(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer, path: str
) -> None:
    is_chat = path != COMPLETIONS
    messages = [{"role": "user", "content": "hello"}]
    fields = {"messages": messages} if is_chat else {"prompt": "hello"}
    await client.post(path, json=fields)
    prompt = backend.submitted[0].token_ids
    scores = tuple(TokenScore(-2.0, 7, [(9, -0.1), (8, -1.0)]) for _ in prompt[1:])
    backend.script = [replace(backend.script[0], prompt_scores=scores), *backend.script[1:]]
    body = (await client.post(path, json={**fields, "prompt_logprobs": 1})).json()
    listed = body["prompt_logprobs"] if is_chat else body["choices"][0]["prompt_logprobs"]
    assert listed[0] is None
    assert len(listed) == len(prompt)
    assert listed[1]["9"]["rank"] == 1
    assert listed[1][str(prompt[1])]["rank"] == 7
    assert listed[1][str(prompt[1])]["logprob"] == -2.0
    refused = await client.post(path, json={**fields, "prompt_logprobs": 1, "stream": True})
    assert refused.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_chats_list_the_likeliest(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: list[int], stream: bool
) -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4, "stream": stream}
    messages = [{"role": "user", "content": "hello"}]
    response = await client.post("/v1/chat/completions", json={"messages": messages, **fields})
    answers = events(response.text)[1:-1] if stream else [response.json()]
    entry = answers[0]["choices"][0]["logprobs"]["content"][0]
    assert (entry["token"], entry["logprob"]) == ("one", -0.25)
    assert [(each["token"], each["logprob"]) for each in entry["top_logprobs"]] == [
        ("one", -0.25),
        (" fox", -1.5),
    ]
    assert bytes(entry["top_logprobs"][1]["bytes"]) == b" fox"
    assert backend.submitted[0].sampling.top_logprobs == 2
