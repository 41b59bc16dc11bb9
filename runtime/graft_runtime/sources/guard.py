"""Keeps a store's client to the hosts it may speak with.

The client follows redirects by itself, wherever they lead, and cannot be told not to. For as
long as a source is open its client gets this as its proxy. It opens connections to the source's own
endpoint and to nothing else, at checked addresses; bytes pass untouched, under TLS unread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from graft_runtime.errors import ReasonedError
from graft_runtime.sources.endpoints import Endpoint, parse_endpoint, resolve

_HEAD_BYTES = 1 << 16
_RELAY_BYTES = 1 << 18
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")
_CONNECTION = re.compile(rb"\r\n(?:proxy-)?connection:[^\r]*", re.IGNORECASE)
_REFUSED = b"<Error><Code>PermanentRedirect</Code></Error>"
_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_REFUSED),
    _REFUSED,
)
_UNREACHABLE = b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def guarded(
    allowed: Collection[Endpoint], connect_timeout_seconds: float
) -> AsyncIterator[Guard]:
    """Run a proxy on loopback that leads to the allowed endpoints alone."""
    guard = Guard(allowed, connect_timeout_seconds)
    server = await asyncio.start_server(guard.serve, "127.0.0.1", 0, limit=_HEAD_BYTES)
    guard.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield guard
    finally:
        server.close()
        await guard.end()


class Guard:
    """A running proxy."""

    def __init__(self, allowed: Collection[Endpoint], connect_timeout_seconds: float) -> None:
        self.url = ""
        self.has_refused = False
        """Whether the client wanted to go somewhere else."""
        self._allowed = frozenset(allowed)
        self._connect_timeout_seconds = connect_timeout_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection, in a task that `end` can end."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Drop the connections that are still open."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._handle(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # one side went away; the other one sees that its connection ends
        finally:
            writer.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        match = _REQUEST.match(head)
        endpoint = _endpoint_of(match[1], match[2]) if match else None
        if match is None or endpoint not in self._allowed:
            self.has_refused = True
            writer.write(_FORBIDDEN)
            await writer.drain()
            return
        try:
            upstream = await self._connect(endpoint)
        except (OSError, ReasonedError):
            writer.write(_UNREACHABLE)
            await writer.drain()
            return
        try:
            if match[1] == b"CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                upstream[1].write(_as_origin(head, match))
                # Not every server tells that it will close, and the client would ask again here.
                answer = await upstream[0].readuntil(b"\r\n\r\n")
                writer.write(_as_last(answer))
            await _relay_both((reader, writer), upstream)
        finally:
            upstream[1].close()

    async def _connect(self, endpoint: Endpoint) -> _Stream:
        last: OSError = ConnectionError(f"{endpoint.host} has no address")
        for address in await resolve(endpoint.host, endpoint.port, self._connect_timeout_seconds):
            try:
                async with asyncio.timeout(self._connect_timeout_seconds):
                    return await asyncio.open_connection(
                        str(address), endpoint.port, limit=_RELAY_BYTES
                    )
            except OSError as error:
                last = error
        raise last


def _endpoint_of(method: bytes, target: bytes) -> Endpoint | None:
    """Return where a proxied request wants to go; None for what is no such request."""
    text = target.decode("latin-1")
    if method == b"CONNECT":
        url = f"https://{text}"
    else:
        parts = urlsplit(text)
        url = f"{parts.scheme}://{parts.netloc}"
    try:
        return parse_endpoint(url)
    except ReasonedError:
        return None


def _as_origin(head: bytes, match: re.Match[bytes]) -> bytes:
    """Write a request as its server expects it, the last one on its connection."""
    parts = urlsplit(match[2].decode("latin-1"))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    first = b"%b %b HTTP/1.1\r\nConnection: close" % (match[1], target.encode("latin-1"))
    return first + _CONNECTION.sub(b"", head[match.end() - 2 :])


def _as_last(head: bytes) -> bytes:
    """Write an answer's head as the last one on its connection."""
    status, _, fields = head.partition(b"\r\n")
    return status + b"\r\nConnection: close" + _CONNECTION.sub(b"", b"\r\n" + fields)


async def _relay_both(client: _Stream, upstream: _Stream) -> None:
    """Pass bytes both ways until the server has said all it has to say."""
    asking = asyncio.create_task(_relay(client[0], upstream[1]))
    try:
        await _relay(upstream[0], client[1])
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await asking


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_RELAY_BYTES):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
