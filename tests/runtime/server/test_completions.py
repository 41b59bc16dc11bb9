"""The completions surface: forms of prompts, sampling, streams, refusals."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from graft_runtime.metrics import Metrics
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import ADAPTER, BASE, REVISION, FakeBackend, chunk, script_of
from tests.support.sse_text import events

PATH = "/v1/completions"


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


async def complete(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"prompt": "hello", **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_a_completion_has_openais_shape(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    response = await client.post(
        PATH, json={"model": BASE, "prompt": "hello"}, headers={"x-request-id": "abc-1"}
    )
    body = response.json()
    created = body.pop("created")
    assert isinstance(created, int)
    count = len(encode(tokenizer, "one two three"))
    prompt = len(tokenizer.encode("hello", add_special_tokens=True))
    assert body == {
        "id": "cmpl-abc-1",
        "object": "text_completion",
        "model": BASE,
        "choices": [
            {
                "index": 0,
                "text": "one two three",
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": count,
            "total_tokens": prompt + count,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    assert response.headers["x-request-id"] == "abc-1"
    assert backend.running == set()


async def test_prompt_tokens_from_the_cache_are_counted_once_per_prompt(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = [replace(each, num_cached=7) for each in backend.script]
    body = {"prompt": ["hello", "world"]}
    whole = (await client.post(PATH, json=body)).json()
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 14}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last, _ = events((await client.post(PATH, json=body | options)).text)
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 14}


async def test_the_engine_is_told_what_was_asked(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    await complete(
        client,
        model=ADAPTER,
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=-1,
        max_tokens=9,
        stop_token_ids=[5],
        ignore_eos=True,
    )
    submitted = backend.submitted[0]
    assert submitted.token_ids == tokenizer.encode("hello", add_special_tokens=True)
    assert submitted.target.revision == REVISION
    sampling = submitted.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert not sampling.logprobs
    assert sampling.prompt_logprobs is None
    assert (sampling.seed, sampling.max_tokens) == (2**64 - 1, 9)
    assert (sampling.stop_token_ids, sampling.ignore_eos) == ((5,), True)


async def test_the_engine_is_told_what_single_tokens_are_to_do(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    await complete(
        client,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=2,
        logit_bias={"5": 1, "6": -1000},
        allowed_token_ids=[5, 6],
        bad_words=["fox"],
        min_tokens=3,
    )
    sampling = backend.submitted[0].sampling
    assert sampling.min_p == 0.1
    penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
    assert penalties == (1.2, -0.5, 2.0)
    assert sampling.logit_bias == {5: 1.0, 6: -100.0}
    assert sampling.allowed_token_ids == (5, 6)
    assert sampling.bad_words == tuple(tuple(encode(tokenizer, word)) for word in ("fox", " fox"))
    assert sampling.min_tokens == 3


async def test_defaults_are_openais_and_seeds_differ(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for _ in range(2):
        await complete(client, top_k=-1, stop=None, seed=None)
    first, second = (each.sampling for each in backend.submitted)
    assert (first.temperature, first.top_p, first.top_k, first.max_tokens) == (1.0, 1.0, 0, 16)
    assert first.seed != second.seed


@pytest.mark.parametrize("model", [None, "", "tgi", "dummy", BASE])
async def test_names_for_the_base_model(client: httpx.AsyncClient, model: str | None) -> None:
    assert (await complete(client, model=model))["model"] == BASE


async def test_temperatures_that_would_overflow_are_greedy(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await complete(client, temperature=1e-300)
    assert backend.submitted[0].sampling.temperature == 0.0


@pytest.mark.parametrize("prompt", [[4, 5, 6], [[4, 5, 6]]])
async def test_tokens_are_a_prompt_as_they_are(
    client: httpx.AsyncClient, backend: FakeBackend, prompt: Any
) -> None:
    await complete(client, prompt=prompt)
    assert backend.submitted[0].token_ids == [4, 5, 6]


@pytest.mark.parametrize("prompts", [["hello", "world"], [[4, 5], [6]]])
@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_choices_by_index(
    client: httpx.AsyncClient, backend: FakeBackend, prompts: Any, stream: bool
) -> None:
    response = await client.post(PATH, json={"prompt": prompts, "stream": stream})
    texts = {0: "", 1: ""}
    if stream:
        choices = [c for each in events(response.text)[:-1] for c in each["choices"]]
    else:
        choices = response.json()["choices"]
    for choice in choices:
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "one two three", 1: "one two three"}
    assert len({each.request_id for each in backend.submitted}) == 2


async def test_repeated_client_ids_stay_apart_in_the_engine(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for _ in range(2):
        await client.post(PATH, json={"prompt": "a"}, headers={"x-request-id": "same"})
    first, second = backend.submitted
    assert first.request_id != second.request_id


@pytest.mark.parametrize("keep", [False, True])
async def test_a_stop_string_ends_the_output(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer, keep: bool
) -> None:
    ids = encode(tokenizer, "one two three four")
    backend.script = script_of(ids, "length")
    body = await complete(client, stop=["o thr"], include_stop_str_in_output=keep)
    choice = body["choices"][0]
    assert choice["text"] == ("one two thr" if keep else "one tw")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "o thr")
    assert body["usage"]["completion_tokens"] < len(ids)
    assert backend.closed.is_set()


@pytest.mark.parametrize("at_once", [False, True])
async def test_tokens_after_a_stop_string_are_nowhere(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer, at_once: bool
) -> None:
    """Not in the text, the usage or the log probabilities, however many came in one output."""
    ids = encode(tokenizer, "one two three four")
    texts = [tokenizer.decode(ids[:count], skip_special_tokens=True) for count in range(len(ids))]
    until_stop = next(count for count, text in enumerate(texts) if "o thr" in text)
    each = [chunk(id, logprob=-0.25) for id in ids[:-1]]
    backend.script = [*each, chunk(ids[-1], finish="length", logprob=-0.25)]
    if at_once:
        backend.script = [chunk(*ids, finish="length", logprob=-0.25)]
    body = await complete(client, stop=["o thr"], logprobs=0)
    (choice,) = body["choices"]
    assert choice["text"] == "one tw"
    assert 0 < until_stop < len(ids)
    assert body["usage"]["completion_tokens"] == until_stop
    assert choice["logprobs"]["token_logprobs"] == [-0.25] * until_stop


async def test_a_stop_token_is_not_part_of_the_text(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    ids = encode(tokenizer, "one two")
    backend.script = script_of(ids, "stop")
    choice = (await complete(client, stop_token_ids=[ids[-1]]))["choices"][0]
    assert choice["text"] == tokenizer.decode(ids[:-1], skip_special_tokens=True)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[-1])


async def test_the_end_token_is_counted_and_not_shown(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    backend.script = script_of([*encode(tokenizer, "one"), 1], "stop")
    body = await complete(client)
    assert body["choices"][0]["text"] == "one"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len(encode(tokenizer, "one")) + 1


async def test_a_stream_has_openais_shape(client: httpx.AsyncClient) -> None:
    response = await client.post(
        PATH,
        json={"prompt": "hello", "stream": True, "stream_options": {"include_usage": True}},
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert "".join(each["choices"][0]["text"] for each in chunks) == "one two three"
    assert [each["choices"][0]["finish_reason"] for each in chunks][-2:] == [None, "length"]
    assert not any("usage" in each for each in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == (
        last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    )
    assert len({each["id"] for each in [*chunks, last]}) == 1


async def test_usage_can_come_with_every_chunk(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await client.post(
        PATH, json={"prompt": "a", "stream": True, "stream_options": options}
    )
    counts = [each["usage"]["completion_tokens"] for each in events(response.text)[:-1]]
    assert counts == sorted(counts)
    assert counts[0] == 1


async def test_logprobs_are_those_of_the_chosen_tokens(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    ids = encode(tokenizer, "one two")
    backend.script = [chunk(*ids, finish="length", logprob=-0.25)]
    logprobs = (await complete(client, logprobs=0))["choices"][0]["logprobs"]
    assert backend.submitted[0].sampling.logprobs
    assert "".join(logprobs["tokens"]) == "one two"
    assert logprobs["token_logprobs"] == [-0.25] * len(ids)
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"][-1] == len("one two") - len(logprobs["tokens"][-1])
    assert logprobs["top_logprobs"][0] == {logprobs["tokens"][0]: -0.25}


async def test_unknown_fields_are_ignored_and_named(client: httpx.AsyncClient) -> None:
    body = {
        "prompt": "a",
        "metadata": {},
        "zebra": {"a": 1},
        "bad\r\nname": 1,
        "n": 1,
        "echo": False,
    }
    response = await client.post(PATH, json=body)
    assert response.status_code == 200
    assert response.headers["x-graft-ignored-fields"] == "metadata, zebra"


async def test_the_default_length_gives_way_to_the_context(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await complete(client, prompt=[4] * 250)
    assert backend.submitted[0].sampling.max_tokens == 6


async def test_an_unknown_model_is_404_in_both_spellings(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    response = await client.post(PATH, json={"prompt": "a", "model": "../etc/passwd"})
    assert response.status_code == 404
    body = response.json()
    assert body["error"]["code"] == "model_not_found"
    assert (body["object"], body["type"], body["param"]) == ("error", "NotFoundError", "model")
    assert (body["message"], body["code"]) == (body["error"]["message"], 404)
    assert backend.submitted == []


async def test_metrics_tell_what_happened(client: httpx.AsyncClient, metrics: Metrics) -> None:
    await complete(client)
    await client.post(PATH, json={"prompt": ""})
    text = (await client.get("/metrics")).text
    labels = 'engine="0",finished_reason="length",model_name="base-model"'
    assert f"vllm:request_success_total{{{labels}}} 1.0" in text
    assert 'graft_rejected_total{reason="invalid_value"} 1.0' in text
    assert "tgi_request_count 2.0" in text
    assert "tgi_request_success 1.0" in text
    assert 'tgi_request_failure{err="validation"} 1.0' in text
