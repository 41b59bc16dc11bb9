"""Limits, request ids, and errors that nobody planned for, in process."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.errors import DrainingError
from graft_runtime.ipc.messages import EngineStats
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from tests.support.fake_backend import BASE, FakeBackend, chunk
from tests.support.sse_text import events

SURFACES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/generate": {"inputs": "hello"},
    "/": {"inputs": "hello"},
    "/generate_stream": {"inputs": "hello"},
}
JSON = {"content-type": "application/json"}


@pytest.fixture(params=SURFACES)
def surface(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, SURFACES[request.param]


def check_form(path: str, body: dict[str, Any]) -> None:
    """Check that an error has its family's form."""
    if path.startswith("/v1/"):
        assert set(body) == {"error", "object", "message", "type", "param", "code"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    else:
        assert set(body) == {"error", "error_type"}


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b'{"a": NaN}', JSON, 400),
        (b'{"a": 1, "a": 2}', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {}, 415),
        (gzip.compress(b"{}"), {**JSON, "content-encoding": "gzip"}, 415),
        (b" " * (2 * 2**20 + 1), JSON, 413),
        (b"{}", {**JSON, "x-big": "a" * 20_000}, 431),
        (b"{}", {**JSON, **{f"x-{i}": "a" for i in range(120)}}, 431),
    ],
    ids=["open", "nan", "twice", "deep", "text", "untyped", "gzip", "long", "header", "headers"],
)
async def test_what_cannot_be_read_is_refused_in_the_surfaces_form(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    surface: tuple[str, dict[str, Any]],
    content: bytes,
    headers: dict[str, str],
    status: int,
) -> None:
    path, good = surface
    response = await client.post(path, content=content, headers=headers)
    assert response.status_code == status
    check_form(path, response.json())
    assert backend.submitted == []
    assert (await client.post(path, json=good)).status_code == 200


async def test_a_body_without_length_is_cut_off_at_the_limit(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield b" " * 65_536

    response = await client.post("/v1/completions", content=endless(), headers=JSON)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert sent <= 2 * 2**20 + 2 * 65_536


async def test_a_body_that_does_not_arrive_is_408(backend: FakeBackend, metrics: Metrics) -> None:
    app = create_app(backend, ServerSettings(), metrics=metrics, body_timeout_seconds=0.02)

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        response = await client.post("/v1/completions", content=stalled(), headers=JSON)
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ü", '"quoted"'])
async def test_a_request_id_that_may_do_harm_is_replaced(
    client: httpx.AsyncClient, given: str
) -> None:
    response = await client.get("/livez", headers={b"x-request-id": given.encode()})
    assert len(response.headers["x-request-id"]) == 32


async def test_a_fault_of_our_own_says_nothing_but_the_request_id(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    surface: tuple[str, dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, good = surface
    backend.error = RuntimeError("/root/secret/path at 0x7f00 in SomeClass")
    backend.script = []
    response = await client.post(path, json=good, headers={"x-request-id": "req-7"})
    assert response.status_code == 500
    check_form(path, response.json())
    for leak in ("secret", "0x", "SomeClass", "RuntimeError", "Traceback", ".py"):
        assert leak not in response.text
    assert "req-7" in response.text
    record = next(each for each in caplog.records if each.exc_info)
    assert record.levelno == logging.ERROR
    assert vars(record)["request_id"] == "req-7"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate_stream"])
async def test_a_fault_within_a_stream_is_an_opaque_event(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    backend.script = [chunk(70)]
    backend.error = RuntimeError("/root/secret")
    response = await client.post(path, json={**SURFACES[path], "stream": True})
    assert response.status_code == 200
    assert "secret" not in response.text
    got = events(response.text)
    is_openai = path.startswith("/v1/")
    assert (got[-1] == "[DONE]") is is_openai
    check_form(path, got[-2] if is_openai else got[-1])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate_stream"])
async def test_an_error_before_the_first_token_keeps_its_status(
    client: httpx.AsyncClient, backend: FakeBackend, path: str
) -> None:
    backend.script = []
    backend.error = DrainingError("going down", retry_after_seconds=9)
    response = await client.post(path, json={**SURFACES[path], "stream": True})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "9"
    assert response.headers["connection"] == "close"


async def test_output_that_breaks_off_is_an_error(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = [chunk(70)]
    response = await client.post("/v1/completions", json={"prompt": "hello"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_failed"


async def test_requests_before_the_model_is_there_are_503(metrics: Metrics) -> None:
    for backend in (FakeBackend(None), FakeBackend(None, limit=0)):
        app = create_app(backend, ServerSettings(), metrics=metrics)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
            response = await client.post("/v1/completions", json={"prompt": "hello"})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "not_ready"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/generate", 405),
        ("POST", "/v1/models", 405),
    ],
)
async def test_unknown_paths_and_methods_have_their_familys_form(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    check_form(path, response.json())
    assert ("allow" in response.headers) is (status == 405)


async def test_a_log_line_has_facts_and_no_text(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="graft_runtime.access")
    await client.post(
        "/v1/completions", json={"prompt": "hello"}, headers={"x-request-id": "req-8"}
    )
    record = next(each for each in caplog.records if each.name == "graft_runtime.access")
    facts = vars(record)
    assert facts["request_id"] == "req-8"
    assert (facts["model"], facts["revision"]) == (BASE, None)
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (2, 3)
    assert facts["finish_reason"] == "length"
    times = [facts[f"{name}_seconds"] for name in ("prepare", "first_token", "total")]
    assert times == sorted(times)
    line = json.dumps(facts, default=str)
    assert "hello" not in line
    assert "three" not in line


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            "TEXT",
            "TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=3",
        ),
        (
            "json",
            'JSON {"named_metrics":{"kv_cache_usage_perc":0.25,"num_requests_waiting":3}}',
        ),
        ("BIN", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_who_asks_for_the_pods_load_learns_it_from_any_answer(
    client: httpx.AsyncClient,
    metrics: Metrics,
    form: str | None,
    expected: str | None,
    stream: bool,
) -> None:
    metrics.observe_stats(EngineStats(waiting=3, kv_blocks_used=1, kv_blocks_total=4))
    headers = {} if form is None else {"endpoint-load-metrics-format": form}
    for body in ({"prompt": "hello", "stream": stream}, {}):
        answer = await client.post("/v1/completions", json=body, headers=headers)
        assert answer.headers.get("endpoint-load-metrics") == expected


async def test_the_time_a_client_gives_its_request_reaches_the_backend(
    client: httpx.AsyncClient, backend: FakeBackend, surface: tuple[str, dict[str, Any]]
) -> None:
    path, body = surface
    response = await client.post(path, json=body, headers={"x-request-timeout": "2.5"})
    assert response.status_code == 200
    assert backend.submitted[0].terms.timeout_seconds == 2.5


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
async def test_a_timeout_that_is_no_time_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, surface: tuple[str, dict[str, Any]], value: str
) -> None:
    path, body = surface
    response = await client.post(path, json=body, headers={"x-request-timeout": value})
    assert response.status_code in (400, 422)
    check_form(path, response.json())
    assert backend.submitted == []
