"""``/v2`` over HTTP: descriptions, plain generation, errors in Triton's form."""

from typing import Any

import httpx
import pytest

from graft_runtime.errors import EngineDiedError, OverloadedError
from graft_runtime.server.backend import Health
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import ADAPTER, BASE, REVISION, FakeBackend
from tests.support.sse_text import events

MODEL = f"/v2/models/{BASE}"


async def generate(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(f"{MODEL}/generate", json={"text_input": "hello "} | body)


async def test_the_server_and_its_models_describe_themselves(client: httpx.AsyncClient) -> None:
    server = (await client.get("/v2")).json()
    assert server["name"] == "graft"
    assert "binary_tensor_data" in server["extensions"]
    model = (await client.get(MODEL)).json()
    assert (model["name"], model["versions"]) == (BASE, ["1"])
    assert {"name": "text_input", "datatype": "BYTES", "shape": [1]} in model["inputs"]
    assert {"name": "text_output", "datatype": "BYTES", "shape": [-1]} in model["outputs"]
    config = (await client.get(f"{MODEL}/versions/1/config")).json()
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert [each["name"] for each in config["input"] if not each["optional"]] == ["text_input"]


async def test_health_answers_200_or_400_without_a_body(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    paths = ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready", f"{MODEL}/versions/1/ready")
    answers = [await client.get(path) for path in paths]
    assert [(each.status_code, each.content) for each in answers] == [(200, b"")] * 4
    backend.condition = Health(live=True, ready=False, started=True, detail="loading")
    answers = [await client.get(path) for path in paths]
    assert [each.status_code for each in answers] == [200, 400, 400, 400]
    unknown = await client.get("/v2/models/nobody/ready")
    assert (unknown.status_code, unknown.content) == (400, b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/nobody"),
        ("GET", "/v2/models/nobody/config"),
        ("GET", "/v2/models/nobody/stats"),
        ("GET", f"{MODEL}/versions/2"),
        ("POST", "/v2/models/team/nobody/generate"),
        ("POST", f"{MODEL}/versions/2/generate"),
    ],
)
async def test_an_unknown_model_or_version_is_not_found_in_tritons_form(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path, json={"text_input": "x"})
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"].startswith("Request for unknown model: '")


async def test_generate_prepends_the_prompt_unless_told_otherwise(
    client: httpx.AsyncClient,
) -> None:
    whole = (await generate(client)).json()
    assert whole == {
        "model_name": BASE,
        "model_version": "1",
        "text_output": "hello one two three",
    }
    short = (await generate(client, exclude_input_in_output=True, id="r1")).json()
    assert (short["text_output"], short["id"]) == ("one two three", "r1")


async def test_it_does_not_matter_where_parameters_stand_or_whether_they_are_strings(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await generate(client, parameters={"temperature": 0, "max_tokens": 7, "seed": 5})
    await generate(client, temperature=0, max_tokens=7, seed=5)
    text = '{"temperature": "0", "max_tokens": "7", "seed": "5", "ignore_eos": "False"}'
    await generate(client, sampling_parameters=text)
    await generate(client, parameters={"sampling_parameters": text})
    seen = [each.sampling for each in backend.submitted]
    assert (seen[0].temperature, seen[0].max_tokens, seen[0].seed) == (0, 7, 5)
    assert seen == [seen[0]] * 4


async def test_a_body_needs_no_content_type(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        f"{MODEL}/generate",
        content=b'{"text_input":"hello "}',
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.json()["text_output"] == "hello one two three"
    assert answer.headers["content-type"] == "application/json"


async def test_the_adapter_is_named_as_the_model_or_beside_it(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await client.post(f"/v2/models/{ADAPTER}/generate", json={"text_input": "x"})
    await generate(client, parameters={"lora_name": ADAPTER})
    assert [each.target.revision for each in backend.submitted] == [REVISION] * 2
    refused = await generate(client, parameters={"lora_name": "nobody"})
    assert refused.status_code == 400
    assert "lora_name" in refused.json()["error"]


async def test_a_stream_gives_the_new_text_only_and_no_done(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"text_input": "hello ", "stream": True, "return_finish_reason": True}
    answer = await client.post(f"{MODEL}/generate_stream", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = events(answer.text)
    assert len(parts) == len(backend.script)
    assert "".join(each["text_output"] for each in parts) == "one two three"
    reasons = [each["finish_reason"] for each in parts]
    assert reasons == ["None"] * (len(parts) - 1) + ["length"]
    assert "[DONE]" not in answer.text


async def test_a_stream_without_the_flag_has_one_event_with_everything(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post(f"{MODEL}/generate_stream", json={"text_input": "hello "})
    assert [each["text_output"] for each in events(answer.text)] == ["hello one two three"]


async def test_more_outputs_come_when_asked_for(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    flags = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens")
    answer = await generate(
        client,
        **{f"return_{flag}": True for flag in (*flags, "num_output_tokens")},
        parameters={"logprobs": 0},
    )
    body = answer.json()
    count = len(backend.script)
    assert body["finish_reason"] == "length"
    assert body["num_output_tokens"] == count
    assert body["num_input_tokens"] == len(backend.submitted[0].token_ids)
    assert body["cumulative_logprob"] == -0.5 * count
    assert body["logprobs"].count("decoded_token") == count


async def test_several_answers_are_elements_of_one_tensor(client: httpx.AsyncClient) -> None:
    body = (await generate(client, exclude_input_in_output=True, parameters={"n": 3})).json()
    assert body["text_output"] == ["one two three"] * 3


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "text_input"),
        ({"text_input": 5}, "text_input"),
        ({"text_input": ["a", "b"]}, "text_input"),
        ({"text_input": "x", "stream": "yes"}, "stream"),
        ({"text_input": "x", "stream": True}, "generate stream"),
        ({"text_input": "x", "image": "aGk="}, "image"),
        ({"text_input": "x", "parameters": {"temperature": "hot"}}, "temperature"),
        ({"text_input": "x", "sampling_parameters": "{"}, "sampling_parameters"),
        ({"text_input": "x", "parameters": {"use_beam_search": True}}, "use_beam_search"),
        ({"text_input": "x", "parameters": [1]}, "parameters"),
        ({"text_input": "x", "id": 5}, "id"),
    ],
)
async def test_what_cannot_be_honoured_is_a_400_that_names_it(
    client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], names: str
) -> None:
    answer = await client.post(f"{MODEL}/generate", json=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert names in answer.json()["error"]
    assert not backend.submitted


async def test_streaming_with_the_input_in_the_output_is_refused_in_the_backends_words(
    client: httpx.AsyncClient,
) -> None:
    body = {"text_input": "x", "stream": True, "exclude_input_in_output": False}
    answer = await client.post(f"{MODEL}/generate_stream", json=body)
    assert answer.status_code == 400
    assert "`exclude_input_in_output` = False is not allowed" in answer.json()["error"]


async def test_unknown_parameters_are_named_in_a_header(client: httpx.AsyncClient) -> None:
    answer = await generate(client, parameters={"frobnicate": 1, "timeout": 5})
    assert answer.status_code == 200
    assert answer.headers["x-graft-ignored-fields"] == "frobnicate, timeout"


async def test_a_failure_in_a_stream_is_its_last_event(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = backend.script[:1]
    backend.error = EngineDiedError("the engine failed under this request")
    body = {"text_input": "x", "stream": True}
    answer = await client.post(f"{MODEL}/generate_stream", json=body)
    first, last = events(answer.text)
    assert first["text_output"]
    assert last == {"error": "the engine failed under this request"}


async def test_overload_is_told_with_its_status(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.refusal = OverloadedError("full", retry_after_seconds=3)
    answer = await generate(client)
    assert (answer.status_code, answer.json()) == (429, {"error": "full"})
    assert answer.headers["retry-after"] == "3"


async def test_statistics_count_every_surfaces_inferences_by_name(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await generate(client)
    await client.post("/v1/completions", json={"model": ADAPTER, "prompt": "x"})
    backend.script, backend.error = backend.script[:1], EngineDiedError("gone")
    await generate(client)
    base, adapter = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert (base["name"], base["inference_count"]) == (BASE, 1)
    assert base["inference_stats"]["fail"]["count"] == 1
    assert base["inference_stats"]["success"]["ns"] > 0
    assert base["last_inference"] > 0
    assert (adapter["name"], adapter["inference_count"]) == (ADAPTER, 1)
    only = (await client.get(f"/v2/models/{ADAPTER}/stats")).json()["model_stats"]
    assert only == [adapter]


async def test_the_repository_lists_what_can_be_asked(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    entry = {"version": "1", "state": "READY", "reason": ""}
    expected = [{"name": BASE, **entry}, {"name": ADAPTER, **entry}]
    for content in (b"", b'{"ready":true}'):
        answer = await client.post("/v2/repository/index", content=content)
        assert answer.json() == expected
    backend.condition = Health(live=True, ready=False, started=True, detail="loading")
    assert (await client.post("/v2/repository/index", json={"ready": True})).json() == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/models/x/load"),
        ("POST", "/v2/repository/models/x/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/cudasharedmemory/region/r/register"),
        ("GET", "/v2/trace/setting"),
        ("POST", f"{MODEL}/trace/setting"),
        ("POST", "/v2/logging"),
    ],
)
async def test_what_is_not_done_here_is_a_501_that_says_so(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 501
    assert set(answer.json()) == {"error"}


async def test_unknown_paths_and_methods_have_tritons_form(client: httpx.AsyncClient) -> None:
    missing = await client.get("/v2/nothing/here")
    assert (missing.status_code, set(missing.json())) == (404, {"error"})
    wrong = await client.put("/v2/health/live")
    assert (wrong.status_code, set(wrong.json())) == (405, {"error"})


async def test_an_empty_prompt_is_refused_where_the_model_has_no_start_token(
    client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    # This tokenizer puts a start token in front, so an empty text is a prompt of one token.
    assert tokenizer.encode("", add_special_tokens=True)
    assert (await generate(client, text_input="")).status_code == 200
