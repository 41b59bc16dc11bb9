"""A work queue of keys: each key once, one worker per key, failures with growing pauses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from graft_operator.errors import GraftError

K = TypeVar("K", bound=Hashable)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """How long a key rests after its n-th failure in a row."""

    first_seconds: float
    max_seconds: float

    def pause(self, failures: int) -> float:
        """Return the pause in seconds; `failures` counts from 1."""
        return min(self.first_seconds * 2.0 ** min(failures - 1, 30), self.max_seconds)


class WorkQueue(Generic[K]):
    """Runs a handler for keys. A key added while it is worked on is worked on once more after."""

    def __init__(
        self,
        handle: Callable[[K], Awaitable[float | None]],
        *,
        workers: int,
        backoff: Backoff,
        on_done: Callable[[K, str, float], None] | None = None,
    ) -> None:
        """Make a queue.

        Args:
            handle: Works on one key; may return after how many seconds to do it again.
            workers: Most keys in work at the same time.
            backoff: How failures are repeated.
            on_done: Told of each attempt: the key, ``ok`` or ``error``, and the seconds it took.
        """
        self._handle = handle
        self._num_workers = workers
        self._backoff = backoff
        self._on_done = on_done
        # A dict keeps order and drops duplicates; the value is since when a key waits.
        self._ready: dict[K, float] = {}
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._has_work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work."""
        self._tasks = [
            asyncio.create_task(self._work(), name=f"worker {index}")
            for index in range(self._num_workers)
        ]

    async def stop(self) -> None:
        """Give up all work, also what is under way."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, key: K) -> None:
        """Have a key worked on soon; a pause it is in ends."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._active:
            self._again.add(key)
        else:
            self._ready.setdefault(key, time.monotonic())
            self._has_work.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Have a key worked on after a while, unless that happens earlier anyway."""
        if key in self._ready or key in self._timers:
            return
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    @property
    def depth(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._ready)

    @property
    def oldest_seconds(self) -> float:
        """For how long the key that waits longest has waited."""
        return time.monotonic() - next(iter(self._ready.values())) if self._ready else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is in work; pauses do not count."""
        return not self._ready and not self._active

    def check_integrity(self) -> None:
        """Raise AssertionError when the sets contradict each other. For tests."""
        contradictions: dict[str, object] = {
            "ready and active": self._ready.keys() & self._active,
            "again without active": self._again - self._active,
            "ready and resting": self._ready.keys() & self._timers.keys(),
            "more keys than workers": len(self._active) > self._num_workers,
        }
        found = [name for name, is_so in contradictions.items() if is_so]
        if found:
            raise AssertionError(", ".join(found))

    async def _work(self) -> None:
        while True:
            while not self._ready:
                self._has_work.clear()
                await self._has_work.wait()
            key = next(iter(self._ready))
            del self._ready[key]
            self._active.add(key)
            pause = await self._attempt(key)
            self._active.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif pause is not None:
                self.add_after(key, pause)

    async def _attempt(self, key: K) -> float | None:
        """Work on a key and return after how many seconds to do it again, if at all."""
        began, outcome = time.monotonic(), "error"
        try:
            pause = await self._handle(key)
            outcome = "ok"
        except Exception as error:  # One object's fault must not stop the others.
            count = self._failures.get(key, 0) + 1
            self._failures[key] = count
            pause = self._backoff.pause(count)
            expected = isinstance(error, GraftError)
            trace = None if expected else error
            log.warning("%s: %s; again in %.1f s", key, error, pause, exc_info=trace)
            return pause
        finally:
            if self._on_done is not None:
                self._on_done(key, outcome, time.monotonic() - began)
        self._failures.pop(key, None)
        return pause
