"""How an application is put on a port: uvicorn with its limits, without its logs and signals."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from graft_runtime.server.hang_up import EXTENSION

MAX_HEAD_BYTES: Final = 64 * 1024
"""Where the parser gives up on a request's head; `limits` refuses smaller ones by name."""
KEEP_ALIVE_SECONDS: Final = 5
"""How long an idle connection stays open."""
BACKLOG: Final = 2048

SWITCH_SECONDS: Final = 0.001
"""How long a thread may keep the interpreter while others wait. The loop asks for it several times
for one answer, and with Python's own 5 ms each of these waits behind every thread that reads a long
prompt."""


def share_interpreter() -> None:
    """Let the event loop's thread have its turn often; for the whole process."""
    sys.setswitchinterval(SWITCH_SECONDS)


class _Http(H11Protocol):
    """Lets the application drop a connection; see `hang_up`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as its base
        super().connection_made(transport)
        self.app = _with_abort(self.app, transport)


class _WebSocket(WebSocketsSansIOProtocol):
    """The same for a WebSocket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.app = _with_abort(self.app, self.transport)


def _with_abort(app: Any, transport: asyncio.Transport) -> Any:
    """Return an application whose scopes say how their connection is dropped."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("extensions", {})[EXTENSION] = transport.abort
        await app(scope, receive, send)

    return called


class _Server(uvicorn.Server):
    """Leaves signals to the process, which has more than one server to end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections, which send what they are given at once.

    The event loop would see to that if it had made the socket. Without it a token waits until the
    client has confirmed the one before, which clients put off for 40 ms.

    Raises:
        OSError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    bound.setblocking(False)
    return bound


class Listener:
    """One application on one port, from `start` to `stop`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        drain_timeout_seconds: float,
        max_message_bytes: int | None = None,
    ) -> None:
        """Prepare; nothing is bound yet.

        Args:
            app: The application.
            host: Address to bind.
            port: Port to bind; 0 picks a free one.
            drain_timeout_seconds: How long requests may go on after `stop`; whole seconds count.
            max_message_bytes: Longest message of a WebSocket; None refuses WebSockets.
        """
        self._address = (host, port)
        self._server = _Server(
            uvicorn.Config(
                app,
                lifespan="on",
                http=_Http,
                ws="none" if max_message_bytes is None else _WebSocket,
                ws_max_size=max_message_bytes or 0,
                ws_per_message_deflate=False,  # what a message grows to would have no bound
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_graceful_shutdown=max(1, round(drain_timeout_seconds)),
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Bind, serve in the background, and return the port.

        Raises:
            OSError: The address cannot be bound.
        """
        bound = bind(*self._address)
        port: int = bound.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]))
        return port

    async def wait(self) -> None:
        """Return when serving has ended; raises what ended it."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Take no new connections, let running requests end, and return when all is closed."""
        self._server.should_exit = True
        await self.wait()
