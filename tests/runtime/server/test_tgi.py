"""The TGI surface, with the fields LoRAX clients need beside it."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from graft_runtime.errors import EngineDiedError, OverloadedError
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import ADAPTER, BASE, REVISION, FakeBackend, chunk, script_of
from tests.support.sse_text import events


async def generate(
    client: httpx.AsyncClient, path: str = "/generate", **parameters: Any
) -> httpx.Response:
    return await client.post(path, json={"inputs": "hello", "parameters": parameters})


async def test_generate_gives_one_object(client: httpx.AsyncClient) -> None:
    response = await generate(client, max_new_tokens=20)
    assert response.json() == {"generated_text": "one two three"}
    assert int(response.headers["x-prompt-tokens"]) > 1
    assert int(response.headers["x-generated-tokens"]) > 1
    assert float(response.headers["x-total-time"]) >= 0


async def test_details_serve_tgi_and_lorax_clients(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    details = (await generate(client, details=True, seed=7, do_sample=True)).json()["details"]
    tokens = details.pop("tokens")
    count = len(backend.script)
    assert details == {
        "finish_reason": "length",
        "prompt_tokens": len(backend.submitted[0].token_ids),
        "generated_tokens": count,
        "skipped_tokens": 0,
        "seed": 7,
        "prefill": [],
    }
    assert [set(token) for token in tokens] == [
        {"id", "text", "logprob", "special", "skipped"}
    ] * count
    assert "".join(token["text"] for token in tokens) == "one two three"


async def test_a_stream_has_one_event_per_token_and_no_done(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    response = await generate(client, "/generate_stream", details=True)
    *tokens, last = events(response.text)
    assert [each["index"] for each in [*tokens, last]] == list(range(1, len(backend.script) + 1))
    assert all(each["generated_text"] is None and each["details"] is None for each in tokens)
    assert last["generated_text"] == "one two three"
    assert last["details"]["input_length"] == last["details"]["prompt_tokens"]
    assert last["details"]["seed"] is None
    assert "".join(each["token"]["text"] for each in [*tokens, last]) == "one two three"


async def test_several_tokens_of_one_step_are_several_events(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("one two", add_special_tokens=False)
    backend.script = [chunk(*ids), chunk(1, finish="stop")]
    *_, last = all_events = events((await generate(client, "/generate_stream")).text)
    assert len(all_events) == len(ids) + 1
    assert last["token"] == {
        "id": 1,
        "text": "</s>",
        "logprob": -0.5,
        "special": True,
        "skipped": False,
    }
    assert last["generated_text"] == "one two"


async def test_an_end_without_a_token_is_still_an_event(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = [*backend.script[:-1], backend.script[-1].__class__((4,), (-1.0,), None)]
    backend.script = [*backend.script, chunk(finish="length")]
    last = events((await generate(client, "/generate_stream", details=True)).text)[-1]
    assert last["generated_text"].startswith("one two")
    assert last["details"]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_root_prepends_the_prompt_unless_told_otherwise(
    client: httpx.AsyncClient, stream: bool
) -> None:
    texts = []
    for parameters in ({}, {"return_full_text": False}):
        body = {"inputs": "hello ", "stream": stream, "parameters": parameters}
        response = await client.post("/", json=body)
        answer = events(response.text)[-1] if stream else response.json()[0]
        texts.append(answer["generated_text"])
    assert texts == ["hello one two three", "one two three"]


async def test_stop_strings_stay_in_the_text(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("one two three four", add_special_tokens=False)
    backend.script = script_of(ids, "length")
    body = (await generate(client, stop=["two"], details=True)).json()
    assert body["generated_text"] == "one two"
    assert body["details"]["finish_reason"] == "stop_sequence"


async def test_an_end_token_is_named_as_such(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = script_of([5, 1], "stop")
    body = (await generate(client, details=True)).json()
    assert body["details"]["finish_reason"] == "eos_token"


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        (None, 1.0),
        ({}, 0.0),
        ({"temperature": 1.0}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.7}, 0.7),
        ({"top_k": 3}, 1.0),
        ({"top_p": 0.5}, 1.0),
        ({"typical_p": 0.95}, 1.0),
        ({"temperature": 0, "do_sample": True}, 0.0),
    ],
)
async def test_sampling_follows_tgis_rule(
    client: httpx.AsyncClient, backend: FakeBackend, parameters: Any, temperature: float
) -> None:
    body = {"inputs": "hello", "parameters": parameters}
    assert (await client.post("/generate", json=body)).status_code == 200
    assert backend.submitted[0].sampling.temperature == temperature


async def test_an_adapter_is_chosen_by_id(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await generate(client, adapter_id=ADAPTER)
    await generate(client, adapter_id=None)
    await generate(client, adapter_id="")
    assert [each.target.revision for each in backend.submitted] == [REVISION, None, None]


async def test_an_unknown_adapter_is_never_the_base_model(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    response = await generate(client, adapter_id="nobody")
    assert response.status_code == 404
    assert response.json() == {
        "error": "The model does not exist.",
        "error_type": "model_not_found",
    }
    assert backend.submitted == []


async def test_truncation_keeps_the_end(
    client: httpx.AsyncClient, backend: FakeBackend, tokenizer: Tokenizer
) -> None:
    body = {"inputs": "one two three", "parameters": {"truncate": 2}}
    await client.post("/generate", json=body)
    whole = tokenizer.encode("one two three", add_special_tokens=True)
    assert backend.submitted[0].token_ids == whole[-2:]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 9),
        ("best_of", 0),
        ("watermark", "yes"),
        ("grammar", "a+"),
        ("top_n_tokens", 6),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("frequency_penalty", 3),
        ("return_k_alternatives", -1),
        ("adapter_source", "s3"),
        ("api_token", "secret"),
        ("merged_adapters", {"ids": ["a"]}),
        ("max_new_tokens", 0),
        ("temperature", -1),
        ("top_p", 0.0),
        ("top_k", 0),
        ("seed", -1),
        ("stop", ["1", "2", "3", "4", "5"]),
        ("stop", "text"),
        ("truncate", 0),
    ],
)
async def test_a_parameter_that_is_not_honoured_is_422_and_named(
    client: httpx.AsyncClient, backend: FakeBackend, name: str, value: Any
) -> None:
    response = await generate(client, **{name: value})
    assert response.status_code == 422
    body = response.json()
    assert set(body) == {"error", "error_type"}
    assert body["error_type"] == "validation"
    assert body["error"].startswith(f"Input validation error: `parameters.{name}`")
    assert "secret" not in body["error"]
    assert backend.submitted == []


async def test_length_errors_use_tgis_words(client: httpx.AsyncClient) -> None:
    response = await generate(client, max_new_tokens=999)
    assert response.status_code == 422
    assert "`inputs` tokens + `max_new_tokens` must be <= 256" in response.json()["error"]
    empty = await client.post("/generate", json={"inputs": ""})
    assert empty.json()["error"] == "Input validation error: `inputs` cannot be empty"


async def test_unknown_parameters_are_ignored_and_named(client: httpx.AsyncClient) -> None:
    response = await generate(client, zebra=1)
    assert response.headers["x-graft-ignored-fields"] == "parameters.zebra"


async def test_a_full_queue_is_429_in_tgis_form(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.refusal = OverloadedError("300 requests wait", retry_after_seconds=3)
    response = await generate(client)
    assert response.status_code == 429
    assert response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert response.headers["retry-after"] == "3"


async def test_an_error_within_a_stream_is_an_event(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = [chunk(5)]
    backend.error = EngineDiedError("the engine went away")
    response = await generate(client, "/generate_stream")
    assert response.status_code == 200
    last = events(response.text)[-1]
    assert last["error_type"] == "generation"
    assert "the engine went away" in last["error"]


async def test_a_dead_engine_is_424(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = [chunk(5)]
    backend.error = EngineDiedError("the engine went away")
    assert (await generate(client)).status_code == 424


async def test_info_is_the_union_of_what_clients_read(client: httpx.AsyncClient) -> None:
    info = (await client.get("/info")).json()
    assert info["model_id"] == "base-model"
    assert info["max_total_tokens"] == 256
    assert info["max_input_length"] == info["max_input_tokens"] == 255
    assert info["model_sha"] == "sha256:00"
    assert (info["model_dtype"], info["model_device_type"]) == ("torch.bfloat16", "cpu")
    assert (info["max_concurrent_requests"], info["max_batch_total_tokens"]) == (320, 16_384)
    assert None not in info.values()


async def test_info_leaves_out_what_only_a_running_engine_knows(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.built_for = None
    info = (await client.get("/info")).json()
    assert info["model_id"] == "base-model"
    assert "model_dtype" not in info


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
async def test_health_is_empty_or_503(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    good = await client.get(path)
    assert (good.status_code, good.content) == (200, b"")
    backend.condition = backend.condition.__class__(True, False, True, "draining")
    bad = await client.get(path)
    assert bad.status_code == 503
    assert bad.json() == {"error": "unhealthy", "error_type": "healthcheck"}


async def test_an_output_longer_than_tgi_checks_ends_where_the_context_does(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.limit = 2048
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 1_000_000}}
    assert (await client.post("/generate", json=body)).status_code == 200
    submitted = backend.submitted[0]
    assert submitted.sampling.max_tokens == 2048 - len(submitted.token_ids)
    backend.limit = 512
    assert (await client.post("/generate", json=body)).status_code == 422


async def test_headers_tell_of_model_adapter_and_times(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = [replace(each, queue_seconds=2.0) for each in backend.script]
    body = {"inputs": "hello", "parameters": {"adapter_id": ADAPTER}}
    answer = await client.post("/generate", json=body)
    headers = answer.headers
    assert (headers["x-model-id"], headers["x-adapter-id"]) == (BASE, ADAPTER)
    assert headers["x-queue-time"] == "2000"
    for name in (
        *("compute-time", "total-time", "validation-time", "inference-time"),
        *("time-to-first-token", "time-per-token", "time-per-output-token"),
    ):
        float(headers[f"x-{name}"])
    streamed = await client.post("/generate_stream", json=body)
    assert (streamed.headers["x-model-id"], streamed.headers["x-adapter-id"]) == (BASE, ADAPTER)
