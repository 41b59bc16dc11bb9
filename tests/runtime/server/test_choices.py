"""Several answers to one prompt: who begins when, what is counted, how they are told apart."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.support.fake_backend import FakeBackend
from tests.support.sse_text import events

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(
    client: httpx.AsyncClient, backend: FakeBackend, stream: bool
) -> None:
    body = {"prompt": ["hello", "world"], "n": 3, "stream": stream, "seed": 11}
    response = await client.post(COMPLETIONS, json=body)
    texts = dict.fromkeys(range(6), "")
    ends = []
    answers = events(response.text)[:-1] if stream else [response.json()]
    for choice in [each for answer in answers for each in answer["choices"]]:
        texts[choice["index"]] += choice["text"]
        ends.append(choice["finish_reason"])
    assert set(texts.values()) == {"one two three"}
    assert ends.count("length") == 6
    indices = sorted(each.sampling.sample_index for each in backend.submitted)
    assert indices == [0, 0, 1, 1, 2, 2]
    assert {each.sampling.seed for each in backend.submitted} == {11}
    assert len({each.request_id for each in backend.submitted}) == 6


async def test_a_prompt_counts_once_for_all_its_answers(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = [replace(each, num_cached=1) for each in backend.script]
    for path, body in ((COMPLETIONS, {"prompt": "hello"}), (CHAT, HELLO)):
        one = (await client.post(path, json=body)).json()["usage"]
        four = (await client.post(path, json={**body, "n": 4})).json()["usage"]
        assert four["prompt_tokens"] == one["prompt_tokens"]
        assert four["prompt_tokens_details"] == one["prompt_tokens_details"]
        assert four["completion_tokens"] == 4 * one["completion_tokens"]


@pytest.mark.parametrize("gate_at", [0, 1])
async def test_the_others_begin_when_the_firsts_prompt_is_computed(
    client: httpx.AsyncClient, backend: FakeBackend, gate_at: int
) -> None:
    backend.gate_at = gate_at
    asking = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "hello", "n": 4}))
    await backend.reached_gate.wait()
    if gate_at:
        async with asyncio.timeout(10):
            while len(backend.submitted) < 4:
                await asyncio.sleep(0)
    assert len(backend.submitted) == (4 if gate_at else 1)
    backend.gate.set()
    assert len((await asking).json()["choices"]) == 4


async def test_a_failure_of_the_first_ends_all(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script, backend.error = [], RuntimeError("broken")
    response = await client.post(COMPLETIONS, json={"prompt": "hello", "n": 4})
    assert response.status_code == 500
    assert len(backend.submitted) == 1
    assert backend.running == set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_has_as_many_choices_as_asked(client: httpx.AsyncClient, stream: bool) -> None:
    response = await client.post(CHAT, json={**HELLO, "n": 3, "stream": stream})
    texts = dict.fromkeys(range(3), "")
    if not stream:
        for choice in response.json()["choices"]:
            texts[choice["index"]] += choice["message"]["content"]
    else:
        roles = []
        for chunk in events(response.text)[:-1]:
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            roles += [choice["index"]] if "role" in choice["delta"] else []
        assert sorted(roles) == [0, 1, 2]
    assert texts == dict.fromkeys(range(3), "one two three")


async def test_prompts_times_answers_are_bounded(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    response = await client.post(COMPLETIONS, json={"prompt": ["a"] * 5, "n": 8})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"
    assert backend.submitted == []
