"""The outermost layer: request ids, limits on headers and body, and the last catch of errors.

Plain ASGI, so that streams pass through unbuffered. It never looks into a body; `body` does.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graft_runtime.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    RequestError,
    SlowBodyError,
)
from graft_runtime.metrics import Metrics
from graft_runtime.server.caller import set_caller
from graft_runtime.server.context import Exchange
from graft_runtime.server.errors import (
    as_request_error,
    family_of,
    wire_error,
)
from graft_runtime.server.load_header import load_header
from graft_runtime.server.refusals import note_refusal
from graft_runtime.server.request_headers import open_exchange, read_headers
from graft_runtime.server.tracing import NoTracer, Tracer

MAX_HEADER_BYTES: Final = 16 * 1024
"""Names and values of all headers together."""
MAX_HEADERS: Final = 100
CLIENT_LEFT: Final = 499
"""How a request is counted whose client left before there was an answer."""
BODY_TIMEOUT_SECONDS: Final = 10.0
"""From the first read of a body to its end."""


class LimitsMiddleware:
    """Opens an `Exchange` for each request and guards the application behind it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        metrics: Metrics | None,
        tracer: Tracer | None = None,
        body_timeout_seconds: float = BODY_TIMEOUT_SECONDS,
    ) -> None:
        """Wrap an application.

        Args:
            app: What to guard.
            max_body_bytes: Longest body that is read.
            metrics: Where requests and refusals are counted, if anywhere.
            tracer: What is told of refusals, if anything.
            body_timeout_seconds: How long a body may take to arrive.
        """
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._tracer = tracer or NoTracer()
        self._body_timeout_seconds = body_timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                set_caller(scope["headers"])
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        exchange = open_exchange(headers, scope["path"])
        scope.setdefault("state", {})["exchange"] = exchange
        more = [] if self._metrics is None else load_header(headers, self._metrics)
        answer = _Answer(send, exchange, more)
        try:
            self._check_headers(headers)
            read_headers(exchange, headers)
            set_caller(headers)
            await self._app(scope, self._limited(receive), answer.send)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:
            if answer.started:
                raise
            await self._refuse(scope, receive, answer, error)
        finally:
            self._count(scope, answer)

    def _count(self, scope: Scope, answer: _Answer) -> None:
        if self._metrics is None:
            return
        exchange = answer.exchange
        sizes = (exchange.num_body_bytes, answer.num_bytes)
        route = getattr(scope.get("route"), "path", None)
        self._metrics.http.answered(
            scope["method"], route, answer.status, exchange.elapsed(), sizes
        )

    async def _refuse(
        self, scope: Scope, receive: Receive, answer: _Answer, error: Exception
    ) -> None:
        exchange = answer.exchange
        refusal = as_request_error(error, exchange.request_id)
        note_refusal(
            self._metrics,
            self._tracer,
            exchange,
            refusal,
            {"method": scope["method"], "status": refusal.status},
            asks_to_generate=scope["method"] == "POST",
        )
        response = wire_error(exchange.family or family_of(scope["path"]), refusal).response()
        await response(scope, receive, answer.send)

    def _check_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        total = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADERS or total > MAX_HEADER_BYTES:
            message = f"at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes together"
            raise HeadersTooLargeError(message)
        announced = next((value for name, value in headers if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> RequestError:
        return BodyTooLargeError(f"the body is longer than {self._max_body_bytes} bytes")

    def _limited(self, receive: Receive) -> Receive:
        """Return a `receive` that counts the body's bytes and its time while it is being read."""
        num_bytes = 0
        deadline: float | None = None
        complete = False

        async def limited() -> Message:
            nonlocal num_bytes, deadline, complete
            if complete:
                return await receive()
            loop = asyncio.get_running_loop()
            deadline = deadline or loop.time() + self._body_timeout_seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise SlowBodyError("the body did not arrive in time") from error
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return limited


class _Answer:
    """Passes an answer on, with the request's id in its headers, and remembers that it began."""

    def __init__(self, send: Send, exchange: Exchange, more: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._more = more
        self.exchange = exchange
        self.started = False
        self.status = CLIENT_LEFT
        self.num_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            own = (b"x-request-id", self.exchange.request_id.encode())
            message = {**message, "headers": [*message.get("headers", []), own, *self._more]}
        self.num_bytes += len(message.get("body", b""))
        await self._send(message)
