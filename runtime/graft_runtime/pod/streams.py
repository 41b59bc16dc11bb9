"""The requests in flight: one stream per request from the engine to the surface that asked."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from graft_runtime.errors import OverloadedError, RequestError
from graft_runtime.ipc.messages import TokenOutput

CHARS_PER_TOKEN = 4
"""What a token of a text holds at the least, so that its tokens are not overestimated before they
are known."""
MAX_RETRY_AFTER_SECONDS = 60
ENDS_REMEMBERED = 32
"""How many of the last requests' ends tell how fast the queue moves."""


@dataclass(eq=False)
class Stream:
    """What the engine says to one request, in order, or the error that ends it."""

    request_id: str
    num_prompt: int
    tenant: str | None = None
    """The namespace of the adapter that is asked, as known so far; None for the base model."""
    revision: str | None = None
    """Known once it has been sent to the engine."""
    sent: bool = False
    """Whether the engine has it. Before that it waits for its adapter, or for an engine."""
    started: bool = False
    """Whether the engine has answered at all; until then the request counts as waiting."""
    opened_at: float = 0.0
    """When it came in, in the clock's seconds."""
    queue_seconds: float | None = None
    """How long it waited before the engine computed something of it; None while it waits."""
    queue: asyncio.Queue[TokenOutput | RequestError] = field(default_factory=asyncio.Queue)


class Outcomes(NamedTuple):
    """How a revision's requests have ended so far."""

    requests: int = 0
    errors: int = 0
    """Those that failed by the server's fault."""


class Streams:
    """All requests in flight, and the bounds on those that wait."""

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        max_waiting_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with nothing.

        Args:
            max_running: Requests that the engine runs at a time.
            max_waiting: Requests beyond these.
            max_waiting_tokens: Tokens of the prompts of requests that have not started.
            clock: Seconds, for telling how fast the queue moves.
        """
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=ENDS_REMEMBERED)
        self._limit = max_running + max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._streams: dict[str, Stream] = {}
        self._active: Counter[str] = Counter()
        self._by_tenant: Counter[str] = Counter()
        self._ended: dict[str, Outcomes] = {}
        self._waiting_tokens = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def active(self) -> dict[str, int]:
        """Requests in flight per revision."""
        return dict(self._active)

    def num_of_tenant(self, tenant: str) -> int:
        """Return how many requests for a namespace's adapters are in flight, those held with it."""
        return self._by_tenant[tenant]

    def outcomes(self, revision: str) -> Outcomes:
        """Return how a revision's requests have ended."""
        return self._ended.get(revision, Outcomes())

    def count_end(self, revision: str | None, *, is_error: bool) -> None:
        """Count a request of a revision that has ended, or that it could not even begin."""
        if revision is not None:
            known = self.outcomes(revision)
            self._ended[revision] = Outcomes(known.requests + 1, known.errors + is_error)

    def forget_outcomes(self, known: Collection[str]) -> None:
        """Drop the counts of revisions that are gone."""
        for revision in [one for one in self._ended if one not in known]:
            del self._ended[revision]

    def check_room(self, prompt_chars: int = 0) -> None:
        """Refuse when the queue is full by count or by tokens.

        Args:
            prompt_chars: Length of the prompt's text. A prompt that is longer than the whole queue
                may come in when nothing waits.

        Raises:
            OverloadedError: It is.
        """
        tokens = self._waiting_tokens + prompt_chars // CHARS_PER_TOKEN
        is_full = self._waiting_tokens > 0 and tokens >= self._max_waiting_tokens
        has_most = len(self._streams) >= self._limit
        if is_full or has_most:
            raise OverloadedError(
                "Model is overloaded",
                retry_after_seconds=self._retry_after_seconds(),
                limit=self._limit if has_most else None,
            )

    def open(self, stream: Stream) -> None:
        """Count a request in: it waits from now on, for whatever it may be."""
        stream.opened_at = self._clock()
        self._streams[stream.request_id] = stream
        self._waiting_tokens += stream.num_prompt
        self._count(stream.tenant, 1)
        self._idle.clear()

    def move(self, stream: Stream, tenant: str | None) -> None:
        """Count a request for another namespace, since its name leads there by now."""
        self._count(stream.tenant, -1)
        self._count(tenant, 1)
        stream.tenant = tenant

    def send(self, stream: Stream, revision: str | None) -> None:
        """Note that the engine gets a request now, and for which revision."""
        stream.sent = True
        stream.revision = revision
        if revision is not None:
            self._active[revision] += 1

    def begin(self, request_id: str) -> None:
        """Note that the engine computes something of a request. One that is gone is no error."""
        stream = self._streams.get(request_id)
        if stream is not None and stream.queue_seconds is None:
            stream.queue_seconds = self._clock() - stream.opened_at

    def close(self, stream: Stream) -> None:
        """Count a request out."""
        del self._streams[stream.request_id]
        self._ends.append(self._clock())
        self._start(stream)
        if stream.revision is not None:
            self._active[stream.revision] -= 1
            self._active += Counter()  # drops what has come to zero
        self._count(stream.tenant, -1)
        if not self._streams:
            self._idle.set()

    def deliver(self, output: TokenOutput) -> None:
        """Hand one output to its request. One that is gone already is no error."""
        stream = self._streams.get(output.request_id)
        if stream is not None:
            self._start(stream)
            stream.queue.put_nowait(output)

    def fail_all(self, error: RequestError) -> None:
        """End every request that the engine has with an error."""
        for stream in self._streams.values():
            if stream.sent:
                stream.queue.put_nowait(error)

    def fail_revision(self, revision: str, error: RequestError) -> None:
        """End a revision's requests with an error."""
        for stream in self._streams.values():
            if stream.revision == revision:
                stream.queue.put_nowait(error)

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def _retry_after_seconds(self) -> int:
        """Return when one of the requests in flight should have ended, going by the last ones."""
        if len(self._ends) < 2:
            return 1
        since = self._clock() - self._ends[0]
        seconds = math.ceil(since / len(self._ends))
        return min(max(1, seconds), MAX_RETRY_AFTER_SECONDS)

    def _count(self, tenant: str | None, number: int) -> None:
        if tenant is not None:
            self._by_tenant[tenant] += number
            self._by_tenant += Counter()

    def _start(self, stream: Stream) -> None:
        if not stream.started:
            stream.started = True
            self._waiting_tokens -= stream.num_prompt
