"""Loading by API as its clients see it, over a port that remembers what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.errors import AdapterLoadError, InvalidRequestError
from graft_runtime.metrics import Metrics
from graft_runtime.server.adapter_port import Blend, source_uri
from graft_runtime.server.app import create_app
from tests.support.fake_backend import ADAPTER, FakeBackend
from tests.support.recording_port import RecordingPort


@pytest.fixture
def recorder() -> RecordingPort:
    return RecordingPort()


@pytest.fixture
async def client(
    backend: FakeBackend, metrics: Metrics, recorder: RecordingPort
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(backend, ServerSettings(), metrics=metrics, adapters=recorder)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        yield client


async def generate(client: httpx.AsyncClient, **parameters: Any) -> httpx.Response:
    return await client.post("/generate", json={"inputs": "hello", "parameters": parameters})


async def test_load_and_unload_speak_as_vllm_does(
    client: httpx.AsyncClient, recorder: RecordingPort
) -> None:
    body = {"lora_name": "x", "lora_path": "s3://b/x", "load_inplace": True}
    answer = await client.post("/v1/load_lora_adapter", json=body)
    assert answer.text == "Success: LoRA adapter 'x' added successfully."
    body = {"lora_name": "x", "lora_int_id": 3}
    answer = await client.post("/v1/unload_lora_adapter", json=body)
    assert answer.text == "Success: LoRA adapter 'x' removed successfully."
    assert recorder.asked == [("load", "x", "s3://b/x", True), ("unload", "x")]


@pytest.mark.parametrize("body", [{}, {"lora_name": "x"}, {"lora_path": "s3://b/x"}])
async def test_a_load_needs_name_and_path(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/v1/load_lora_adapter", json=body)
    assert answer.status_code == 400
    assert answer.json()["message"] == "Both 'lora_name' and 'lora_path' must be provided."


async def test_a_request_names_its_source_as_for_lorax(
    client: httpx.AsyncClient, backend: FakeBackend, recorder: RecordingPort
) -> None:
    assert (await generate(client, adapter_id="a/b", adapter_source="hub")).status_code == 200
    assert recorder.asked == [("demand", "hf://a/b")]
    assert backend.submitted[0].target.served_name == ADAPTER
    assert (await generate(client, adapter_source="hub")).status_code == 422
    assert (await generate(client, adapter_id=ADAPTER)).status_code == 200
    assert len(recorder.asked) == 1


async def test_a_load_that_fails_is_lorax_424_for_the_request(
    client: httpx.AsyncClient, recorder: RecordingPort
) -> None:
    recorder.refusal = AdapterLoadError("ShapeMismatch: no")
    answer = await generate(client, adapter_id="a/b", adapter_source="hub")
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
    body = {"lora_name": "x", "lora_path": "s3://b/x"}
    assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 400


async def test_merged_adapters_are_added_up_with_their_weights(
    client: httpx.AsyncClient, recorder: RecordingPort
) -> None:
    await generate(client, merged_adapters={"ids": ["a", "b"], "weights": [0.25, 1]})
    await generate(client, merged_adapters={"ids": ["a", "b"]})
    assert recorder.asked == [Blend(("a", "b"), (0.25, 1.0)), Blend(("a", "b"), (0.5, 0.5))]


@pytest.mark.parametrize(
    "fields",
    [
        {"ids": []},
        {"ids": ["a"], "weights": [1, 2]},
        {"ids": ["a"], "merge_strategy": "ties"},
        {"ids": ["a"], "weights": ["x"]},
        {"ids": ["a"] * 9},
    ],
)
async def test_a_merge_that_is_not_linear_or_whole_is_refused_by_name(
    client: httpx.AsyncClient, recorder: RecordingPort, fields: dict[str, Any]
) -> None:
    answer = await generate(client, merged_adapters=fields)
    assert answer.status_code == 422
    assert "merged_adapters" in answer.json()["error"]
    assert recorder.asked == []
    both = await generate(client, adapter_id=ADAPTER, merged_adapters={"ids": ["a"]})
    assert both.status_code == 422


def test_paths_become_uris() -> None:
    assert source_uri("/data/x") == "file:///data/x"
    assert source_uri("org/repo") == source_uri("org/repo", "hub") == "hf://org/repo"
    assert source_uri("gs://b/x") == "gs://b/x"
    assert source_uri("b/x", "s3") == source_uri("s3://b/x", "s3") == "s3://b/x"
    assert source_uri("/x", "local") == "file:///x"
    for path, source in (("x", "pbase"), ("gs://b/x", "s3")):
        with pytest.raises(InvalidRequestError):
            source_uri(path, source)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ],
)
async def test_openai_routes_load_and_merge_as_lorax_does(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    recorder: RecordingPort,
    path: str,
    body: dict[str, Any],
) -> None:
    merged = {"ids": ["a", "b"], "weights": [0.25, 1]}
    for more in ({"model": "a/b", "adapter_source": "hub"}, {"merged_adapters": merged}):
        answer = await client.post(path, json=body | more)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == ADAPTER
    assert recorder.asked == [("demand", "hf://a/b"), Blend(("a", "b"), (0.25, 1.0))]
    for refused in (
        {"adapter_source": "hub"},
        {"model": ADAPTER, "merged_adapters": merged},
        {"merged_adapters": {"ids": ["a"], "merge_strategy": "ties"}},
    ):
        answer = await client.post(path, json=body | refused)
        assert answer.status_code == 400
        assert answer.json()["param"].startswith(min(refused))


async def test_without_loading_by_api_openai_routes_refuse_it_by_name(
    backend: FakeBackend, metrics: Metrics
) -> None:
    app = create_app(backend, ServerSettings(), metrics=metrics)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        for field, value in (("adapter_source", "hub"), ("merged_adapters", {"ids": ["a"]})):
            body = {"prompt": "hello", "model": "a/b", field: value}
            answer = await client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.json()["param"]) == (400, field)
