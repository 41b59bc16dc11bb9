"""Server-sent events: framing, keep-alive comments, and errors once a stream has begun.

Knows no surface: events arrive as bytes, and the surface says how its errors look inside a stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from graft_runtime.errors import RequestError, SlowReaderError
from graft_runtime.server.context import Exchange
from graft_runtime.server.errors import as_request_error
from graft_runtime.server.exchange import SLOW_READER_SECONDS, stop, watch
from graft_runtime.server.hang_up import hang_up

_logger = logging.getLogger(__name__)

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b":\n\n"
KEEP_ALIVE_SECONDS: Final = 15.0
"""Silence after which a comment is sent, so that proxies keep the connection."""
LAST_WRITE_SECONDS: Final = 5.0
"""How long the last event of a failed stream waits for a client that does not read."""

_encode = msgspec.json.Encoder().encode


def event(payload: Any) -> bytes:
    """Frame one JSON value."""
    return b"data: " + _encode(payload) + b"\n\n"


def named_event(name: str, payload: Any) -> bytes:
    """Frame one JSON value with the name of its kind."""
    return b"event: " + name.encode() + b"\n" + event(payload)


class SseResponse(Response):
    """A stream of events that ends with its client, its deadline or its source.

    Headers are sent with the first event: an error before it is an ordinary error answer. Later
    ones become events, since the status is gone.
    """

    def __init__(
        self,
        exchange: Exchange,
        events: AsyncGenerator[bytes, None],
        *,
        error_events: Callable[[RequestError], Sequence[bytes]],
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a stream.

        Args:
            exchange: Whose answer this is.
            events: Framed events; closed in every case.
            error_events: What ends the stream after an error.
            timeout_seconds: Longest time from the exchange's arrival to the end.
            headers: More headers.
        """
        own = {"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})}
        super().__init__(None, 200, headers=own, media_type="text/event-stream")
        del self.headers["content-length"]
        self._exchange = exchange
        self._events = events
        self._error_events = error_events
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        wire = _Wire(send, self.raw_headers)
        keeper = asyncio.create_task(wire.keep_alive(KEEP_ALIVE_SECONDS))
        try:
            await watch(
                self._exchange,
                receive,
                self._produce(wire),
                timeout_seconds=self._timeout_seconds,
            )
        except ClientDisconnect:
            return
        except SlowReaderError:
            await self._give_up(scope, receive)
        except Exception as error:
            if not wire.started:
                raise
            last = self._error_events(as_request_error(error, self._exchange.request_id))
            try:
                async with asyncio.timeout(LAST_WRITE_SECONDS):
                    await wire.end(last)
            except TimeoutError:
                await self._give_up(scope, receive)
        finally:
            await stop(keeper)

    async def _give_up(self, scope: Scope, receive: Receive) -> None:
        request_id = self._exchange.request_id
        _logger.info("closed a stream that was not read", extra={"request_id": request_id})
        await hang_up(scope, receive)

    async def _produce(self, wire: _Wire) -> None:
        async with aclosing(self._events) as events:
            async for each in events:
                await self._write(wire, each)
        await wire.end(())

    async def _write(self, wire: _Wire, data: bytes) -> None:
        try:
            async with asyncio.timeout(SLOW_READER_SECONDS):
                await wire.write(data)
        except TimeoutError as error:
            self._exchange.abort_reason = "slow_reader"
            raise SlowReaderError("the client does not read its stream") from error


class _Wire:
    """One response body that two tasks write to, events and comments, each whole."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._lock = asyncio.Lock()
        self._ended = False
        self._last = asyncio.get_running_loop().time()
        self.started = False

    async def write(self, data: bytes, *, more: bool = True) -> None:
        async with self._lock:
            if self._ended:
                return
            if not self.started:
                self.started = True
                await self._send(
                    {"type": "http.response.start", "status": 200, "headers": self._headers}
                )
            self._ended = not more
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            self._last = asyncio.get_running_loop().time()

    async def end(self, last_events: Sequence[bytes]) -> None:
        await self.write(b"".join(last_events), more=False)

    async def keep_alive(self, seconds: float) -> None:
        """Write a comment after each such silence, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._last + seconds - loop.time()))
            if loop.time() - self._last >= seconds:
                await self.write(KEEP_ALIVE)
