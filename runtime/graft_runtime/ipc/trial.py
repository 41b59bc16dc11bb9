"""Trials: what outsiders wrote (a grammar, a template) is run in processes that may die of it.

A question can neither stall its asker nor take its memory: what kills its process, or takes too
long, has failed. Knows no question; `graft_runtime.ipc.trial_worker` is the inner side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from graft_runtime.ipc.trial_worker import CPU_SECONDS, LENGTH_BYTES, frame

logger = logging.getLogger(__name__)

MAX_PROCESSES: Final = 2
"""So that one slow question does not hold up all others."""
WALL_SECONDS: Final = 20.0
"""The kernel counts computing time; this is for a process that gets none."""
START_SECONDS: Final = 60.0

A = TypeVar("A", bound=msgspec.Struct)


class TrialFailedError(Exception):
    """A question killed its process, or took too long; the message says which."""


class TrialStartError(Exception):
    """No process can be started now."""


class TrialProcesses(Generic[A]):
    """The processes of one kind, started when they are first needed, one question at a time."""

    def __init__(self, answer: type[A]) -> None:
        """Start nothing yet: many servers are never asked.

        Args:
            answer: Type of the answers, and of the greeting.
        """
        self._answer = answer
        self._places = asyncio.Semaphore(MAX_PROCESSES)
        self._idle: list[_Process[A]] = []

    async def ask(self, command: Sequence[str], question: msgspec.Struct) -> A:
        """Return the answer.

        Args:
            command: Arguments of ``graft-runtime`` for a process that can answer.
            question: What is asked.

        Raises:
            TrialFailedError: The question is too much for a process.
            TrialStartError: There is none to ask.
        """
        async with self._process(command) as process:
            return await process.ask(question)

    async def close(self) -> None:
        """End all idle processes."""
        while self._idle:
            await self._idle.pop().end()

    @contextlib.asynccontextmanager
    async def _process(self, command: Sequence[str]) -> AsyncIterator[_Process[A]]:
        """Lend a process; one that has died or was left in the middle is not taken back."""
        async with self._places:
            process = self._idle.pop() if self._idle else await self._start(command)
            try:
                yield process
            finally:
                if process.is_idle:
                    self._idle.append(process)
                else:
                    await process.end()

    async def _start(self, command: Sequence[str]) -> _Process[A]:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "graft_runtime.cli", *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        process = _Process(started, self._answer)
        try:
            await process.greet()
        except BaseException:
            await process.end()
            raise
        return process


class _Process(Generic[A]):
    """One process and the pipe to it."""

    def __init__(self, process: asyncio.subprocess.Process, answer: type[A]) -> None:
        self._process = process
        self._answer = answer
        self.is_idle = False

    async def greet(self) -> None:
        """Wait until it can answer.

        Raises:
            TrialStartError: It never will.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._receive()
        except (TimeoutError, EOFError) as error:
            logger.warning("a trial process did not start", exc_info=error)
            raise TrialStartError("the trial process did not start") from error
        self.is_idle = True

    async def ask(self, question: msgspec.Struct) -> A:
        """Return the answer; a question that kills the process has failed."""
        self.is_idle = False
        try:
            async with asyncio.timeout(WALL_SECONDS):
                self._send(question)
                answer = await self._receive()
        except TimeoutError as error:
            raise TrialFailedError(_TOO_SLOW) from error
        except (EOFError, ConnectionError) as error:
            raise TrialFailedError(_cause_of_death(await self._process.wait())) from error
        self.is_idle = True
        return answer

    async def end(self) -> None:
        """Kill it, and close the pipe."""
        self.is_idle = False
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _send(self, question: msgspec.Struct) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(frame(question))

    async def _receive(self) -> A:
        if self._process.stdout is None:
            raise EOFError
        header = await self._process.stdout.readexactly(LENGTH_BYTES)
        body = await self._process.stdout.readexactly(int.from_bytes(header))
        return msgspec.msgpack.decode(body, type=self._answer)


_TOO_SLOW: Final = f"it takes more than {CPU_SECONDS} seconds to prepare"


def _cause_of_death(status: int) -> str:
    if status == -signal.SIGXCPU:
        return _TOO_SLOW
    logger.warning("a trial process was ended by its question", extra={"status": status})
    return "it needs too much memory, or is nested too deeply"
