"""A generation's line in the log and its place in the metrics."""

import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.errors import EngineDiedError
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from tests.support.fake_backend import ADAPTER, REVISION, FakeBackend

LOGGER = "graft_runtime.access"
PROMPT = "a very secret prompt"


async def ask(
    backend: FakeBackend, metrics: Metrics, *, logs_text: bool = False, **body: Any
) -> httpx.Response:
    app = create_app(backend, ServerSettings(), metrics=metrics, logs_text=logs_text)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        return await client.post(
            "/v1/completions", json={"prompt": PROMPT} | body, headers={"x-request-id": "r-1"}
        )


def line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    return vars(record)


def values(metrics: Metrics, start: str) -> list[float]:
    lines = metrics.expose().decode().splitlines()
    return [float(each.rpartition(" ")[2]) for each in lines if each.startswith(start)]


async def test_the_log_tells_who_asked_what_and_how_long_it_took(
    backend: FakeBackend, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    backend.script = [replace(each, queue_seconds=0.0, num_cached=2) for each in backend.script]
    await ask(backend, metrics, model=ADAPTER)
    found = line(caplog)
    assert found["request_id"] == "r-1"
    assert (found["model"], found["revision"]) == (ADAPTER, REVISION)
    assert (found["tenant"], found["adapter_digest"]) == ("default", "0123456789ab")
    assert found["prompt_tokens"] == len(backend.submitted[0].token_ids)
    assert (found["completion_tokens"], found["cached_tokens"]) == (len(backend.script), 2)
    assert (found["finish_reason"], found["cause"]) == ("length", "length")
    phases = [found[f"{name}_seconds"] for name in ("prepare", "queue", "prefill", "decode")]
    assert sum(phases) == pytest.approx(found["total_seconds"], abs=0.01)
    assert "prompt" not in found
    assert PROMPT not in str(found)


async def test_texts_are_logged_only_when_the_pod_was_told_to(
    backend: FakeBackend, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    await ask(backend, metrics, logs_text=True)
    found = line(caplog)
    assert found["prompt"].endswith(PROMPT)
    assert found["output"] == "one two three"


async def test_a_good_request_is_in_both_families_of_histograms(
    backend: FakeBackend, metrics: Metrics
) -> None:
    backend.script = [replace(each, queue_seconds=0.25) for each in backend.script]
    await ask(backend, metrics, max_tokens=9)
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds"):
        assert values(metrics, f"vllm:request_{name}_count") == [1]
    assert values(metrics, "vllm:request_queue_time_seconds_sum") == [0.25]
    assert values(metrics, "tgi_request_queue_duration_sum") == [0.25]
    assert values(metrics, "vllm:request_params_max_tokens_sum") == [9]
    assert values(metrics, "tgi_request_max_new_tokens_sum") == [9]
    count = len(backend.script)
    assert values(metrics, "vllm:request_generation_tokens_sum") == [count]
    assert values(metrics, "tgi_request_generated_tokens_sum") == [count]
    assert values(metrics, "vllm:time_per_output_token_seconds_count") == [count - 1]


async def test_a_failed_request_is_not_among_the_good_ones(
    backend: FakeBackend, metrics: Metrics
) -> None:
    backend.script, backend.error = backend.script[:1], EngineDiedError("gone")
    await ask(backend, metrics)
    assert values(metrics, "vllm:request_decode_time_seconds_count") == [0]
    assert values(metrics, "tgi_request_duration_count") == [0]
    assert values(metrics, 'vllm:request_success_total{engine="0",finished_reason="error"') == [1]
