"""Requests by route, and a request's choices, on the page of metrics."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from graft_runtime.metrics import Metrics
from tests.support.fake_backend import FakeBackend


def value(metrics: Metrics, start: str) -> float:
    lines = metrics.expose().decode().splitlines()
    (found,) = [line for line in lines if line.startswith(start)]
    return float(found.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("method", "path", "handler", "status"),
    [
        ("POST", "/v1/completions", "/v1/completions", "2xx"),
        ("POST", "/v1/chat/completions", "/v1/chat/completions", "4xx"),
        ("GET", "/v1/models/any/name", "/v1/models/{name:path}", "4xx"),
        ("GET", "/secret/of/a/client", "none", "4xx"),
        ("GET", "/generate", "/generate", "4xx"),
        ("POST", "/v2/models/base-model/generate", "/v2/models/{model:path}/generate", "4xx"),
    ],
)
async def test_a_request_is_counted_by_its_route_and_never_by_its_path(
    client: httpx.AsyncClient, metrics: Metrics, method: str, path: str, handler: str, status: str
) -> None:
    body = {"prompt": "hello"} if method == "POST" else None
    answer = await client.request(method, path, json=body)
    text = metrics.expose().decode()
    assert "secret" not in text
    labels = f'handler="{handler}",method="{method}"'
    assert value(metrics, f'http_requests_total{{{labels},status="{status}"}}') == 1
    assert value(metrics, f"http_request_duration_seconds_count{{{labels}}}") == 1
    sent = value(metrics, f'http_response_size_bytes_sum{{handler="{handler}"}}')
    assert sent == len(answer.content)
    if status == "2xx":
        taken = value(metrics, f'http_request_size_bytes_sum{{handler="{handler}"}}')
        assert taken == len(answer.request.content)


async def test_probes_and_the_page_itself_are_not_counted(
    client: httpx.AsyncClient, metrics: Metrics
) -> None:
    for path in ("/livez", "/readyz", "/health", "/ping", "/metrics", "/version", "/"):
        await client.get(path)
    assert value(metrics, "http_request_duration_highr_seconds_count") == 0


async def test_choices_are_counted_once_a_request(
    client: httpx.AsyncClient, backend: FakeBackend, metrics: Metrics
) -> None:
    backend.script = [replace(each, num_preemptions=1) for each in backend.script]
    body = {"prompt": ["hello", "world"], "n": 3}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    end = '{engine="0",model_name="base-model"}'
    assert value(metrics, f"vllm:request_params_n_count{end}") == 2
    assert value(metrics, f"vllm:request_params_n_sum{end}") == 6
    longest = 2 * len(backend.script)
    assert value(metrics, f"vllm:request_max_num_generation_tokens_sum{end}") == longest
    assert value(metrics, f"vllm:request_num_preemptions_sum{end}") == 6
