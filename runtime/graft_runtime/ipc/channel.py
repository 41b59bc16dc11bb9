"""Message channels between the processes of one pod: ZMQ pairs over unix sockets.

A channel has two ends. The server binds, since it outlives its children; a child connects. Messages
are msgspec structs of one union, encoded as msgpack; nothing is ever pickled.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio

In = TypeVar("In")
Out = TypeVar("Out")

LINGER_MILLISECONDS = 200
"""How long a closing end tries to hand over what it has queued."""


def endpoint(path: Path) -> str:
    """Return the ZMQ address of a unix socket. The path must stay below ~100 characters."""
    return f"ipc://{path}"


class AsyncChannel(Generic[In, Out]):
    """An end for an event loop: the server's, which binds, or an asynchronous child's."""

    def __init__(
        self, context: zmq.asyncio.Context, path: Path, incoming: Any, *, connect: bool = False
    ) -> None:
        self._socket = context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, LINGER_MILLISECONDS if connect else 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        if connect:
            self._socket.connect(endpoint(path))
        else:
            self._socket.bind(endpoint(path))
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._unsent: set[asyncio.Future[Any]] = set()

    def post(self, message: Out) -> None:
        """Queue one message. Messages keep their order; nothing waits for the peer."""
        sent = asyncio.ensure_future(self._socket.send(self._encoder.encode(message)))
        if not sent.done():  # the peer has not connected yet
            self._unsent.add(sent)
            sent.add_done_callback(self._unsent.discard)

    async def receive(self) -> In:
        """Wait for the next message."""
        message: In = self._decoder.decode(await self._socket.recv())
        return message

    def close(self) -> None:
        """Close this end; what is still queued is dropped."""
        for sent in list(self._unsent):
            sent.cancel()
        self._socket.close()


class Channel(Generic[In, Out]):
    """A child's end: plain calls, for a loop that must not be asynchronous."""

    def __init__(self, path: Path, incoming: Any) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, LINGER_MILLISECONDS)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(endpoint(path))
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)

    def send(self, message: Out) -> None:
        """Queue one message. Does not wait for the peer."""
        self._socket.send(self._encoder.encode(message))

    def receive(self, timeout_seconds: float | None) -> list[In]:
        """Return all messages that have arrived, waiting for the first up to the timeout.

        Args:
            timeout_seconds: 0 returns at once, None waits for ever.
        """
        timeout = -1 if timeout_seconds is None else int(timeout_seconds * 1000)
        messages: list[In] = []
        if timeout != 0 and not self._socket.poll(timeout):
            return messages
        # Asking first costs half of what the exception does that says that there is none.
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            messages.append(self._decoder.decode(self._socket.recv(zmq.NOBLOCK)))
        return messages

    def close(self) -> None:
        """Close this end after handing over what is queued."""
        self._socket.close()
        self._context.term()
