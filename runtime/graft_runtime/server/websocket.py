"""``/v1/stream``: many generations side by side on one WebSocket.

A message carries an OpenAI body and an id; answers are the events that its own route would stream,
each with the id. ``docs/websocket.md`` has the messages. A client that reads slowly holds up its
own requests, then loses them: nothing is kept for it without bound.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, cast

import msgspec
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from graft_runtime.errors import InvalidRequestError, OverloadedError, RequestError
from graft_runtime.server.body import THREAD_BYTES, parse_object
from graft_runtime.server.caller import set_caller
from graft_runtime.server.context import Exchange, Frontend, safe_request_id
from graft_runtime.server.errors import as_request_error, openai_error
from graft_runtime.server.exchange import SLOW_READER_SECONDS, stop, within
from graft_runtime.server.hang_up import hang_up
from graft_runtime.server.openai import chat, completions
from graft_runtime.server.refusals import note_refusal
from graft_runtime.server.request_headers import read_headers
from graft_runtime.server.sse import DONE

router = APIRouter()

PATH: Final = "/v1/stream"
MAX_REQUESTS: Final = 64
"""Generations of one connection at the same time."""
MAX_OUTGOING: Final = 64
"""Messages of one connection that wait for the client."""
MAX_ID_CHARS: Final = 64
CLOSE_SLOW: Final = 4008
"""Private use: the client did not read."""

Opener = Callable[[Frontend, Exchange, Mapping[str, Any]], Awaitable[AsyncGenerator[bytes, None]]]

_OPENERS: Final[Mapping[str, Opener]] = {
    "/v1/completions": completions.open_events,
    "/v1/chat/completions": chat.open_events,
}
_EVENT_START: Final = b"data: "
_logger = logging.getLogger(__name__)


@router.websocket(PATH)
async def stream(websocket: WebSocket) -> None:
    """Serve one connection until either side closes it."""
    frontend = cast("Frontend", websocket.app.state.frontend)
    set_caller(websocket.headers.raw)
    own_id = safe_request_id(websocket.headers.get("x-request-id", ""))
    await websocket.accept(headers=[(b"x-request-id", own_id.encode())])
    await Connection(frontend, websocket, own_id).serve()


class Connection:
    """One client and its generations."""

    def __init__(
        self,
        frontend: Frontend,
        websocket: WebSocket,
        id: str,
        *,
        slow_reader_seconds: float = SLOW_READER_SECONDS,
    ) -> None:
        """Prepare.

        Args:
            frontend: What runs the requests.
            websocket: The accepted connection.
            id: Its id, which those of its requests begin with.
            slow_reader_seconds: How long the client may read nothing.
        """
        self._frontend = frontend
        self._websocket = websocket
        self._id = id
        self._slow_reader_seconds = slow_reader_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._works: dict[str, asyncio.Task[None]] = {}
        """What a client may cancel: each task's own work, so that the task can still tell of it."""
        self._exchanges: dict[str, Exchange] = {}
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(MAX_OUTGOING)
        self._is_stuck = False
        """Whether the client took not even the message that it is given up."""

    async def serve(self) -> None:
        """Read and write until the connection ends; then give up what still runs."""
        reading = asyncio.create_task(self._read())
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not reading.cancelled():
                reading.result()
        finally:
            await stop(reading, writing, *self._tasks.values())
        if self._is_stuck and self._websocket.client_state is WebSocketState.CONNECTED:
            await hang_up(self._websocket.scope, self._websocket.receive)

    async def _read(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            try:
                if text is None:
                    raise InvalidRequestError("a message must be text")
                await self._take(text.encode())
            except RequestError as error:
                await self._put(_error(None, error))

    async def _take(self, data: bytes) -> None:
        """Do what one message asks.

        Raises:
            RequestError: It cannot be done, and there is no request to tell it to.
        """
        if len(data) > THREAD_BYTES:
            message = await asyncio.to_thread(parse_object, data)
        else:
            message = parse_object(data)
        id = message.get("id")
        if not isinstance(id, str) or not 0 < len(id) <= MAX_ID_CHARS:
            message_text = f"`id` must be a string of 1 to {MAX_ID_CHARS} characters"
            raise InvalidRequestError(message_text, param="id")
        kind = message.get("type")
        if kind == "cancel":
            if id in self._works:
                self._works[id].cancel()
        elif kind == "request":
            self._start(id, message, len(data))
        else:
            raise InvalidRequestError("`type` must be `request` or `cancel`", param="type")

    def _start(self, id: str, message: Mapping[str, Any], num_bytes: int) -> None:
        if id in self._tasks:
            raise InvalidRequestError("`id` is that of a request which still runs", param="id")
        exchange = Exchange(self._request_id(id), PATH, num_body_bytes=num_bytes, is_named=True)
        work = asyncio.create_task(self._generate(id, exchange, message))
        task = asyncio.create_task(self._answer(id, exchange, work))
        self._works[id], self._tasks[id], self._exchanges[id] = work, task, exchange
        task.add_done_callback(lambda _: self._forget(id))

    def _forget(self, id: str) -> None:
        for each in (self._works, self._tasks, self._exchanges):
            each.pop(id)

    def _request_id(self, id: str) -> str:
        """Return an id for the log: the client's within the connection's, if that is harmless."""
        wanted = f"{self._id}.{id}"
        return wanted if safe_request_id(wanted) == wanted else uuid.uuid4().hex

    async def _answer(self, id: str, exchange: Exchange, work: asyncio.Task[None]) -> None:
        """See one request to its end, and tell the client how it ended."""
        timeout = self._frontend.settings.request_timeout_seconds
        end: dict[str, Any] = {"type": "end", "id": id, "request_id": exchange.request_id}
        try:
            await within(exchange, work, timeout_seconds=timeout)
        except asyncio.CancelledError:
            if not work.cancelled() or _is_cancelled():
                raise
            end["cancelled"] = True
        except Exception as error:  # noqa: BLE001 - told to the client; the connection goes on
            await self._put(_error(id, self._refused(exchange, error)))
            return
        if exchange.ignored_fields:
            end["ignored_fields"] = exchange.ignored_fields
        await self._put(end)

    async def _generate(self, id: str, exchange: Exchange, message: Mapping[str, Any]) -> None:
        if len(self._tasks) > MAX_REQUESTS:
            raise OverloadedError(f"one connection runs at most {MAX_REQUESTS} requests at a time")
        read_headers(exchange, self._websocket.headers.raw)
        exchange.trace_parent = {**exchange.trace_parent, **_trace_parent(message)}
        path, body = message.get("path"), message.get("body")
        opener = _OPENERS.get(path) if isinstance(path, str) else None
        if opener is None:
            raise InvalidRequestError(f"`path` must be one of {', '.join(_OPENERS)}", param="path")
        if not isinstance(body, dict):
            raise InvalidRequestError("`body` must be an object", param="body")
        # Whatever the body says, its answer is a stream here.
        events = await opener(self._frontend, exchange, {**body, "stream": True})
        async with aclosing(events):
            async for event in events:
                if event != DONE:
                    data = msgspec.Raw(event.removeprefix(_EVENT_START).rstrip())
                    await self._put({"type": "event", "id": id, "data": data})

    def _refused(self, exchange: Exchange, error: Exception) -> RequestError:
        refusal = as_request_error(error, exchange.request_id)
        metrics, tracer = self._frontend.metrics, self._frontend.tracer
        note_refusal(metrics, tracer, exchange, refusal, {"status": refusal.status})
        return refusal

    # Outgoing

    async def _put(self, message: Mapping[str, Any]) -> None:
        await self._outgoing.put(msgspec.json.encode(message))

    async def _write(self) -> None:
        """Send what waits; ends when the client is gone or has not read for too long."""
        while True:
            data = await self._outgoing.get()
            try:
                async with asyncio.timeout(self._slow_reader_seconds):
                    await self._websocket.send_text(data.decode())
            except TimeoutError:
                _logger.info(
                    "closed a connection that was not read", extra={"request_id": self._id}
                )
                for exchange in self._exchanges.values():
                    exchange.abort_reason = "slow_reader"
                await self._close()
                return
            except WebSocketDisconnect:
                return

    async def _close(self) -> None:
        """Say goodbye, if the client takes even that."""
        try:
            async with asyncio.timeout(1):
                await self._websocket.close(CLOSE_SLOW, "the client does not read")
        except TimeoutError:
            self._is_stuck = True
        except (WebSocketDisconnect, RuntimeError):
            return


def _error(id: str | None, error: RequestError) -> dict[str, Any]:
    wire = openai_error(error)
    return {"type": "error", "id": id, "status": wire.status, "error": wire.body["error"]}


def _trace_parent(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the span that a message names for its own request."""
    given = message.get("traceparent")
    return {"traceparent": given} if isinstance(given, str) else {}


def _is_cancelled() -> bool:
    """Tell whether the running task itself is to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
