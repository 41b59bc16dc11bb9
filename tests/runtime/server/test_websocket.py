"""``/v1/stream``: generations side by side on one WebSocket, over a real listener."""

import asyncio
import json
import logging
import socket
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.datastructures import Headers
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from graft_protocol.config import ServerSettings
from graft_protocol.desired import key_hash
from graft_runtime.errors import EngineDiedError, OverloadedError
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.caller import may_use
from graft_runtime.server.listener import Listener
from graft_runtime.server.websocket import CLOSE_SLOW, MAX_OUTGOING, Connection
from tests.support.fake_backend import ADAPTER, BASE, REVISION, FakeBackend, chunk

DEADLINE_SECONDS = 60.0
MAX_BYTES = 65_536


@pytest.fixture
def listener(backend: FakeBackend, metrics: Metrics) -> Listener:
    settings = ServerSettings(max_body_bytes=MAX_BYTES)
    app = create_app(backend, settings, metrics=metrics)
    return Listener(
        app, host="127.0.0.1", port=0, drain_timeout_seconds=1, max_message_bytes=MAX_BYTES
    )


@pytest.fixture
async def address(listener: Listener) -> AsyncIterator[str]:
    port = await listener.start()
    yield f"ws://127.0.0.1:{port}/v1/stream"
    await listener.stop()


@pytest.fixture
async def client(address: str) -> AsyncIterator[ClientConnection]:
    async with connect(address, proxy=None) as connection:
        yield connection


async def send(client: ClientConnection, **message: Any) -> None:
    await client.send(json.dumps(message))


async def ask(client: ClientConnection, id: str, *, chat: bool = False, **body: Any) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "hello"}
    await send(client, type="request", id=id, path=path, body=prompt | body)


async def receive(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        message: dict[str, Any] = json.loads(await client.recv())
    return message


async def until_ended(client: ClientConnection, count: int) -> dict[str, list[dict[str, Any]]]:
    """Return all messages by their ids, once so many requests have ended."""
    found: dict[str, list[dict[str, Any]]] = {}
    while count:
        message = await receive(client)
        found.setdefault(message["id"], []).append(message)
        count -= message["type"] in ("end", "error")
    return found


def text_of(messages: list[dict[str, Any]]) -> str:
    events = [each["data"] for each in messages if each["type"] == "event"]
    return "".join(choice["text"] for event in events for choice in event["choices"])


async def test_a_request_is_answered_by_the_events_of_its_route(client: ClientConnection) -> None:
    await ask(client, "a", frobnicate=1)
    messages = (await until_ended(client, 1))["a"]
    assert text_of(messages) == "one two three"
    assert {each["data"]["object"] for each in messages[:-1]} == {"text_completion"}
    end = messages[-1]
    assert end.pop("request_id").endswith(".a")
    assert end == {"type": "end", "id": "a", "ignored_fields": ["frobnicate"]}


async def test_several_requests_run_side_by_side(
    client: ClientConnection, backend: FakeBackend
) -> None:
    backend.gate_at = 1
    await ask(client, "a")
    await ask(client, "b", model=ADAPTER)
    await ask(client, "c", chat=True)
    begun: set[str] = set()
    while not begun >= {"a", "b"}:  # neither can end before the gate is open
        begun.add((await receive(client))["id"])
    backend.gate.set()
    found = await until_ended(client, 3)
    assert found.keys() == {"a", "b", "c"}
    assert {each.target.revision for each in backend.submitted} == {None, REVISION}


async def test_one_request_is_cancelled_and_the_others_go_on(
    client: ClientConnection, backend: FakeBackend, metrics: Metrics
) -> None:
    backend.gate_at = 1
    await ask(client, "a")
    await ask(client, "b")
    assert {(await receive(client))["id"] for _ in range(2)} == {"a", "b"}
    await send(client, type="cancel", id="a")
    end = await receive(client)
    assert (end["type"], end["id"], end["cancelled"]) == ("end", "a", True)
    assert len(backend.running) == 1
    assert 'graft_aborted_total{reason="client_disconnect"} 1.0' in metrics.expose().decode()
    backend.gate.set()
    rest = await until_ended(client, 1)
    assert rest["b"][-1]["type"] == "end"
    await send(client, type="cancel", id="a")  # has ended: nothing to do
    await ask(client, "a")
    assert (await until_ended(client, 1))["a"][-1]["type"] == "end"


async def test_a_client_that_leaves_gives_its_requests_up(
    client: ClientConnection, backend: FakeBackend
) -> None:
    backend.gate_at = 1
    await ask(client, "a")
    await receive(client)
    await client.close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await backend.closed.wait()
    assert not backend.running


@pytest.mark.parametrize(
    ("message", "id", "param"),
    [
        ({"type": "request"}, None, "id"),
        ({"type": "request", "id": ""}, None, "id"),
        ({"type": "request", "id": "x" * 65}, None, "id"),
        ({"type": "shout", "id": "a"}, None, "type"),
        ({"type": "request", "id": "a", "path": "/v1/models", "body": {}}, "a", "path"),
        ({"type": "request", "id": "a", "path": "/v1/completions", "body": []}, "a", "body"),
        ({"type": "request", "id": "a", "path": "/v1/completions", "body": {}}, "a", "prompt"),
        (
            {
                "type": "request",
                "id": "a",
                "path": "/v1/completions",
                "body": {"prompt": "x", "temperature": -1},
            },
            "a",
            "temperature",
        ),
    ],
)
async def test_a_bad_message_is_answered_and_the_connection_goes_on(
    client: ClientConnection, message: dict[str, Any], id: str | None, param: str
) -> None:
    await client.send(json.dumps(message))
    error = await receive(client)
    assert (error["type"], error["id"], error["status"]) == ("error", id, 400)
    assert error["error"]["param"] == param
    await ask(client, "b")
    assert (await until_ended(client, 1))["b"][-1]["type"] == "end"


@pytest.mark.parametrize("data", ["no json", "[]", '{"id":"a","id":"b"}', b'{"id":"a"}'])
async def test_what_is_no_message_is_refused(client: ClientConnection, data: str | bytes) -> None:
    await client.send(data)
    error = await receive(client)
    assert (error["type"], error["id"], error["status"]) == ("error", None, 400)


async def test_an_id_in_use_is_refused_and_its_request_goes_on(
    client: ClientConnection, backend: FakeBackend
) -> None:
    backend.gate_at = 1
    await ask(client, "a")
    await receive(client)
    await ask(client, "a")
    assert (await receive(client))["error"]["param"] == "id"
    backend.gate.set()
    assert (await until_ended(client, 1))["a"][-1]["type"] == "end"


async def test_errors_have_openais_form_and_status(
    client: ClientConnection, backend: FakeBackend
) -> None:
    await ask(client, "a", model="nobody")
    error = await receive(client)
    assert (error["status"], error["error"]["code"]) == (404, "model_not_found")
    backend.refusal = OverloadedError("full")
    await ask(client, "b")
    assert (await receive(client))["status"] == 429
    backend.refusal, backend.script = None, backend.script[:1]
    backend.error = EngineDiedError("the engine is gone")
    await ask(client, "c")
    messages = (await until_ended(client, 1))["c"]
    assert [each["type"] for each in messages] == ["event", "error"]
    assert messages[-1]["status"] == 503


async def test_one_connection_runs_only_so_many_requests(
    client: ClientConnection, backend: FakeBackend
) -> None:
    backend.gate_at = 0
    for index in range(65):
        await ask(client, str(index))
    error = await receive(client)
    assert (error["type"], error["status"]) == ("error", 429)
    backend.gate.set()
    assert len(await until_ended(client, 64)) == 64


async def test_too_long_a_message_closes_the_connection(client: ClientConnection) -> None:
    await client.send("x" * (MAX_BYTES + 1))
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1009


async def test_the_connections_id_is_the_clients(address: str, backend: FakeBackend) -> None:
    headers = {"x-request-id": "from-me"}
    async with connect(address, proxy=None, additional_headers=headers) as client:
        assert client.response is not None
        assert client.response.headers["x-request-id"] == "from-me"
        await ask(client, "a")
        messages = await until_ended(client, 1)
    assert messages["a"][-1]["request_id"] == "from-me.a"
    assert backend.submitted[0].request_id.startswith("from-me.a-")


async def test_the_connections_key_is_that_of_its_requests(
    address: str, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = []
    monkeypatch.setattr(
        backend, "check_admission", lambda _: admitted.append(may_use((key_hash("mine"),)))
    )
    for key in ("mine", "another"):
        headers = {"authorization": f"Bearer {key}"}
        async with connect(address, proxy=None, additional_headers=headers) as client:
            await ask(client, "a")
            await until_ended(client, 1)
    assert admitted == [True, False]


async def test_a_connection_that_takes_not_even_a_goodbye_is_dropped(
    listener: Listener,
    address: str,
    backend: FakeBackend,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(Connection.__init__, "__kwdefaults__", {"slow_reader_seconds": 0.2})
    backend.script = [chunk(9)] * 200_000
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        port = urllib.parse.urlsplit(address).port
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
        async with (
            asyncio.timeout(DEADLINE_SECONDS),
            connect(address, sock=small, ping_interval=None) as client,
        ):
            await ask(client, "a")
            await backend.closed.wait()
            while listener._server.server_state.connections:  # though nothing of it has been read
                await asyncio.sleep(0)
    assert 'graft_aborted_total{reason="slow_reader"} 1.0' in metrics.expose().decode()
    lines = [each.message for each in caplog.records if each.name.startswith("graft_runtime")]
    assert lines.count("closed a connection that was not read") == 1
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


class DeafSocket:
    """A client that sends one request and reads nothing."""

    headers = Headers({})

    def __init__(self) -> None:
        body = {"prompt": "x", "model": BASE}
        path = "/v1/completions"
        request = {"type": "request", "id": "a", "path": path, "body": body}
        self._message: str | None = json.dumps(request)
        self.closed_with: int | None = None

    async def receive(self) -> dict[str, Any]:
        if self._message is None:
            await asyncio.Event().wait()
        text, self._message = self._message, None
        return {"type": "websocket.receive", "text": text}

    async def send_text(self, data: str) -> None:
        await asyncio.Event().wait()

    async def close(self, code: int, reason: str) -> None:
        self.closed_with = code


async def test_a_client_that_does_not_read_loses_its_requests(
    backend: FakeBackend, metrics: Metrics
) -> None:
    backend.script = [chunk(9) for _ in range(4 * MAX_OUTGOING)] + [chunk(9, finish="length")]
    backend.limit = 4096
    frontend = create_app(backend, ServerSettings(), metrics=metrics).state.frontend
    socket = DeafSocket()
    connection = Connection(frontend, socket, "x", slow_reader_seconds=0.2)  # type: ignore[arg-type]  # stands in
    async with asyncio.timeout(DEADLINE_SECONDS):
        await connection.serve()
    assert socket.closed_with == CLOSE_SLOW
    assert 'graft_aborted_total{reason="slow_reader"} 1.0' in metrics.expose().decode()
    assert backend.closed.is_set()
    assert not backend.running
