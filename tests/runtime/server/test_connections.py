"""A real server and raw sockets: who leaves is noticed at once, streams flow, silence is filled."""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.server import sse
from graft_runtime.server.app import create_app
from graft_runtime.server.listener import Listener
from tests.support.fake_backend import ADAPTER, FakeBackend, chunk
from tests.support.sse_text import events

DEADLINE_SECONDS = 60.0
"""For what takes milliseconds on an idle machine: reaching it is a failure."""
MANY = 200_000
"""Tokens whose events are more than any buffer takes."""


@asynccontextmanager
async def serving(
    backend: FakeBackend, metrics: Metrics, **settings: Any
) -> AsyncIterator[tuple[int, Listener]]:
    app = create_app(backend, ServerSettings(**settings), metrics=metrics)
    listener = Listener(app, host="127.0.0.1", port=0, drain_timeout_seconds=1)
    port = await listener.start()
    try:
        yield port, listener
    finally:
        backend.gate.set()
        await listener.stop()


def raw_request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


async def connect(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    await writer.drain()
    return reader, writer


async def leave(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close a connection politely, or with a reset as a dying client does."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        assert reset


REQUESTS = [
    ("/v1/completions", {"prompt": "hello", "model": ADAPTER}),
    ("/v1/completions", {"prompt": ["hello", "world"], "model": ADAPTER}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "model": ADAPTER}),
    ("/generate", {"inputs": "hello", "parameters": {"adapter_id": ADAPTER}}),
]


@pytest.mark.parametrize(("path", "body"), REQUESTS)
@pytest.mark.parametrize(
    ("gate_at", "reset"), [(0, False), (1, True)], ids=["before-the-first-token", "between-tokens"]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_request_at_once(
    backend: FakeBackend,
    metrics: Metrics,
    path: str,
    body: dict[str, Any],
    gate_at: int,
    stream: bool,
    reset: bool,
) -> None:
    backend.gate_at = gate_at
    path = "/generate_stream" if stream and path == "/generate" else path
    async with serving(backend, metrics) as (port, _), asyncio.timeout(DEADLINE_SECONDS):
        _, writer = await connect(port, raw_request(path, {**body, "stream": stream}))
        await backend.reached_gate.wait()
        assert backend.running
        await leave(writer, reset=reset)
        while backend.running:
            backend.closed.clear()
            await backend.closed.wait()
        assert not backend.gate.is_set()  # nothing but the client's leaving ended it
    text = metrics.expose().decode()
    aborted = len(backend.submitted)
    assert f'graft_aborted_total{{reason="client_disconnect"}} {aborted}.0' in text
    assert f'finished_reason="abort",model_name="base-model"}} {aborted}.0' in text
    assert 'running_lora_adapters="",waiting_lora_adapters=""' in text


async def test_a_client_that_leaves_within_its_body_is_forgotten(
    backend: FakeBackend, metrics: Metrics
) -> None:
    async with serving(backend, metrics) as (port, _), asyncio.timeout(DEADLINE_SECONDS):
        half = raw_request("/v1/completions", {"prompt": "hello"})[:-5]
        _, writer = await connect(port, half)
        await leave(writer, reset=False)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            good = await client.post("/v1/completions", json={"prompt": "hello"})
        assert good.status_code == 200
    assert len(backend.submitted) == 1


async def test_tokens_arrive_while_the_engine_goes_on(
    backend: FakeBackend, metrics: Metrics
) -> None:
    backend.gate_at = 1
    async with serving(backend, metrics) as (port, _), asyncio.timeout(DEADLINE_SECONDS):
        data = raw_request("/v1/completions", {"prompt": "hello", "stream": True})
        reader, writer = await connect(port, data)
        first = await reader.readuntil(b"\n\n\r\n")
        assert b'"text":"one"' in first
        assert backend.running
        backend.gate.set()
        rest = await reader.readuntil(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in rest
        await leave(writer, reset=False)


async def test_silence_is_filled_with_comments(
    backend: FakeBackend, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.gate_at = 0
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.02)
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        serving(backend, metrics) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        client.stream("POST", "/generate_stream", json={"inputs": "hello"}) as response,
    ):
        parts = response.aiter_text()
        seen = await anext(parts)
        while seen.count(":\n\n") < 3:
            seen += await anext(parts)
        assert set(seen) == {":", "\n"}
        backend.gate.set()
        rest = "".join([part async for part in parts])
    assert events(seen + rest)[-1]["generated_text"] == "one two three"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_takes_too_long_ends_with_its_deadline(
    backend: FakeBackend, metrics: Metrics, stream: bool
) -> None:
    backend.gate_at = 1
    async with (
        serving(backend, metrics, request_timeout_seconds=0.05) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        body = {"prompt": "hello", "stream": stream}
        response = await client.post("/v1/completions", json=body)
        assert not backend.running
    if stream:
        error, done = events(response.text)[-2:]
        assert (response.status_code, done) == (200, "[DONE]")
        assert error["error"]["code"] == "deadline_exceeded"
    else:
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
    assert 'graft_aborted_total{reason="deadline"} 1.0' in metrics.expose().decode()


async def stall_until_dropped(
    port: int, listener: Listener, backend: FakeBackend, path: str, **body: Any
) -> None:
    """Ask for a stream and read nothing; return once the server has dropped the connection."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(raw_request(path, body))
        while not backend.submitted or backend.running:
            backend.closed.clear()
            await backend.closed.wait()
        while listener._server.server_state.connections:  # though nothing of it has been read
            await asyncio.sleep(0)


async def test_a_client_that_does_not_read_ends_with_its_deadline(
    backend: FakeBackend,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sse, "LAST_WRITE_SECONDS", 0.05)
    backend.script = [chunk(70)] * MANY
    async with (
        serving(backend, metrics, request_timeout_seconds=0.5) as (port, listener),
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        body = {"prompt": "hello", "stream": True}
        await stall_until_dropped(port, listener, backend, "/v1/completions", **body)
    assert 'graft_aborted_total{reason="deadline"} 1.0' in metrics.expose().decode()
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_a_client_that_does_not_read_at_all_is_given_up_early(
    backend: FakeBackend,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sse, "SLOW_READER_SECONDS", 0.2)
    backend.script = [chunk(70)] * MANY
    async with serving(backend, metrics) as (port, listener), asyncio.timeout(DEADLINE_SECONDS):
        await stall_until_dropped(port, listener, backend, "/generate_stream", inputs="hello")
    assert 'graft_aborted_total{reason="slow_reader"} 1.0' in metrics.expose().decode()
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_running_requests_may_end_when_the_listener_stops(
    backend: FakeBackend, metrics: Metrics
) -> None:
    backend.gate_at = 1
    async with serving(backend, metrics) as (port, listener), asyncio.timeout(DEADLINE_SECONDS):
        data = raw_request("/v1/completions", {"prompt": "hello", "stream": True})
        reader, writer = await connect(port, data)
        await backend.reached_gate.wait()
        stopping = asyncio.create_task(listener.stop())
        backend.gate.set()
        await reader.readuntil(b"data: [DONE]\n\n")
        await stopping
        writer.close()


async def test_requests_that_outlive_the_drain_are_closed(
    backend: FakeBackend, metrics: Metrics
) -> None:
    backend.gate_at = 1
    async with serving(backend, metrics) as (port, listener), asyncio.timeout(DEADLINE_SECONDS):
        data = raw_request("/v1/completions", {"prompt": "hello", "stream": True})
        _, writer = await connect(port, data)
        await backend.reached_gate.wait()
        await listener.stop()
        assert not backend.running
        await leave(writer, reset=False)
    assert 'graft_aborted_total{reason="shutdown"} 1.0' in metrics.expose().decode()


TWO_LENGTHS = raw_request("/v1/completions", {}).replace(
    b"\r\n\r\n", b"\r\ncontent-length: 9\r\n\r\n"
)
ENDLESS_HEADER = b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000


@pytest.mark.parametrize(
    "data",
    [TWO_LENGTHS, b"GARBAGE\r\n\r\n", ENDLESS_HEADER],
    ids=["two-lengths", "no-http", "endless-header"],
)
async def test_what_is_no_http_is_refused_and_closed(
    backend: FakeBackend, metrics: Metrics, data: bytes
) -> None:
    async with (
        asyncio.timeout(DEADLINE_SECONDS),
        serving(backend, metrics) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        reader, writer = await connect(port, data)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            assert data is ENDLESS_HEADER  # closed with most of it unread
        else:
            assert answer.startswith(b"HTTP/1.1 400")
        writer.close()
        assert (await client.get("/livez")).status_code == 200
