"""The requests in flight: one stream per request from the engine to the surface that asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from graft_runtime.errors import OverloadedError, RequestError
from graft_runtime.ipc.messages import TokenOutput

RETRY_AFTER_SECONDS = 1


@dataclass(eq=False)
class Stream:
    """What the engine says to one request, in order, or the error that ends it."""

    request_id: str
    revision: str | None
    num_prompt: int
    started: bool = False
    """Whether the engine has answered at all; until then the request counts as waiting."""
    queue: asyncio.Queue[TokenOutput | RequestError] = field(default_factory=asyncio.Queue)


class Streams:
    """All requests in flight, and the bounds on those that wait."""

    def __init__(self, max_running: int, max_waiting: int, max_waiting_tokens: int) -> None:
        self._limit = max_running + max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._streams: dict[str, Stream] = {}
        self._active: Counter[str] = Counter()
        self._waiting_tokens = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def active(self) -> dict[str, int]:
        """Requests in flight per revision."""
        return dict(self._active)

    def check_room(self) -> None:
        """Refuse when the queue is full by count or by tokens.

        Raises:
            OverloadedError: It is.
        """
        if len(self._streams) >= self._limit or self._waiting_tokens >= self._max_waiting_tokens:
            raise OverloadedError("Model is overloaded", retry_after_seconds=RETRY_AFTER_SECONDS)

    def open(self, stream: Stream) -> None:
        """Count a request in."""
        self._streams[stream.request_id] = stream
        self._waiting_tokens += stream.num_prompt
        if stream.revision is not None:
            self._active[stream.revision] += 1
        self._idle.clear()

    def close(self, stream: Stream) -> None:
        """Count a request out."""
        del self._streams[stream.request_id]
        self._start(stream)
        if stream.revision is not None:
            self._active[stream.revision] -= 1
            self._active += Counter()  # drops what has come to zero
        if not self._streams:
            self._idle.set()

    def deliver(self, output: TokenOutput) -> None:
        """Hand one output to its request. One that is gone already is no error."""
        stream = self._streams.get(output.request_id)
        if stream is not None:
            self._start(stream)
            stream.queue.put_nowait(output)

    def fail_all(self, error: RequestError) -> None:
        """End every request with an error."""
        for stream in self._streams.values():
            stream.queue.put_nowait(error)

    def fail_revision(self, revision: str, error: RequestError) -> None:
        """End a revision's requests with an error."""
        for stream in self._streams.values():
            if stream.revision == revision:
                stream.queue.put_nowait(error)

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def _start(self, stream: Stream) -> None:
        if not stream.started:
            stream.started = True
            self._waiting_tokens -= stream.num_prompt
