"""The server's side of the grammar checker: constraints become grammars in processes of their own.

A constraint is a small program that a client sends. It is tried out where it can neither stall the
server or a step nor take their memory: what kills its process, or takes too long, is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from graft_runtime.errors import InvalidRequestError, NotReadyError, OverloadedError
from graft_runtime.sampling.constraint import Constraint
from graft_runtime.sampling.grammar_worker import CPU_SECONDS, LENGTH_BYTES, Verdict, frame

logger = logging.getLogger(__name__)

MAX_WORKERS: Final = 2
"""So that one slow constraint does not hold up all others."""
MAX_WAITING: Final = 64
WALL_SECONDS: Final = 20.0
"""The kernel counts computing time; this is for a process that gets none."""
START_SECONDS: Final = 60.0
MAX_CACHED: Final = 512
MAX_CACHED_CHARS: Final = 4 * 2**20


class GrammarChecker:
    """Checks constraints, one process each at a time, and remembers the verdicts."""

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        """Start nothing yet: many servers are never asked.

        Args:
            folder: Returns the base model's folder, None until it is on disk.
        """
        self._folder = folder
        self._places = asyncio.Semaphore(MAX_WORKERS)
        self._idle: list[_Worker] = []
        self._cache: OrderedDict[Constraint, Verdict] = OrderedDict()
        self._pending: dict[Constraint, asyncio.Task[Verdict]] = {}

    async def check(self, constraint: Constraint, param: str) -> str:
        """Return the grammar of a constraint.

        Args:
            constraint: What was asked.
            param: The field that asked for it, for errors.

        Raises:
            InvalidRequestError: It is malformed, not supported, or needs too much time or memory.
            OverloadedError: Too many others are waiting to be checked.
            NotReadyError: No checker can be started now.
        """
        verdict = self._cache.get(constraint)
        if verdict is None:
            verdict = await asyncio.shield(self._begin(constraint))
        else:
            self._cache.move_to_end(constraint)
        if verdict.error is not None:
            raise InvalidRequestError(f"`{param}` cannot be used: {verdict.error}", param=param)
        return verdict.text

    async def close(self) -> None:
        """End all processes."""
        for task in list(self._pending.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, NotReadyError):
                await task
        while self._idle:
            await self._idle.pop().end()

    def _begin(self, constraint: Constraint) -> asyncio.Task[Verdict]:
        """Return the one check of a constraint, whoever else has asked for the same."""
        task = self._pending.get(constraint)
        if task is None:
            if len(self._pending) >= MAX_WAITING:
                message = "too many output forms are waiting to be checked"
                raise OverloadedError(message, retry_after_seconds=1)
            task = asyncio.create_task(self._run(constraint))
            self._pending[constraint] = task
            task.add_done_callback(lambda _: self._pending.pop(constraint))
        return task

    async def _run(self, constraint: Constraint) -> Verdict:
        async with self._worker() as worker:
            verdict = await worker.ask(constraint)
        self._cache[constraint] = verdict
        while len(self._cache) > MAX_CACHED or self._cached_chars() > MAX_CACHED_CHARS:
            self._cache.popitem(last=False)
        return verdict

    def _cached_chars(self) -> int:
        return sum(len(each.value) + len(verdict.text) for each, verdict in self._cache.items())

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[_Worker]:
        """Lend a process; one that has died or was left in the middle is not taken back."""
        async with self._places:
            worker = self._idle.pop() if self._idle else await self._start()
            try:
                yield worker
            finally:
                if worker.is_idle:
                    self._idle.append(worker)
                else:
                    await worker.end()

    async def _start(self) -> _Worker:
        folder = self._folder()
        if folder is None:
            raise NotReadyError("the model is still being fetched", retry_after_seconds=5)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "graft_runtime.cli", "grammar", str(folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        worker = _Worker(process)
        try:
            await worker.greet()
        except BaseException:
            await worker.end()
            raise
        return worker


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._problem: str | None = None
        self.is_idle = False

    async def greet(self) -> None:
        """Wait until it can check.

        Raises:
            NotReadyError: It never will.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                self._problem = (await self._receive()).error
        except (TimeoutError, EOFError) as error:
            logger.warning("the grammar checker did not start", exc_info=error)
            message = "output forms cannot be checked now"
            raise NotReadyError(message, retry_after_seconds=5) from error
        self.is_idle = self._problem is None

    async def ask(self, constraint: Constraint) -> Verdict:
        """Return the verdict; that of a constraint which kills the process is its death."""
        if self._problem is not None:
            return Verdict(error=self._problem)
        self.is_idle = False
        try:
            async with asyncio.timeout(WALL_SECONDS):
                self._send(constraint)
                verdict = await self._receive()
        except TimeoutError:
            return Verdict(error=_TOO_SLOW)
        except (EOFError, ConnectionError):
            return Verdict(error=_cause_of_death(await self._process.wait()))
        self.is_idle = True
        return verdict

    async def end(self) -> None:
        """Kill it, and close the pipe."""
        self.is_idle = False
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _send(self, constraint: Constraint) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(frame(constraint))

    async def _receive(self) -> Verdict:
        if self._process.stdout is None:
            raise EOFError
        header = await self._process.stdout.readexactly(LENGTH_BYTES)
        body = await self._process.stdout.readexactly(int.from_bytes(header))
        return msgspec.msgpack.decode(body, type=Verdict)


_TOO_SLOW: Final = f"it takes more than {CPU_SECONDS} seconds to prepare"


def _cause_of_death(status: int) -> str:
    if status == -signal.SIGXCPU:
        return _TOO_SLOW
    logger.warning("the grammar checker was ended by a constraint", extra={"status": status})
    return "it needs too much memory, or is nested too deeply"
