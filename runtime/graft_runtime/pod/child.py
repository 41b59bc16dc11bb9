"""One supervised child process and the channel to it.

A child that dies is started again, each time on a socket of its own, so that nothing an earlier
one left behind can be mistaken for the new one's. Too many deaths in a row end the attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import zmq.asyncio

from graft_runtime.errors import ChildDiedError
from graft_runtime.ipc.channel import AsyncChannel
from graft_runtime.ipc.messages import Shutdown
from graft_runtime.settings import ChildSettings

logger = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

RESTART_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Pause before each restart; the last one repeats."""
MAX_DEATHS = 5
DEATH_WINDOW_SECONDS = 300.0
"""This many deaths within the window and the child is given up: a loop of crashes helps nobody."""
ENVIRONMENT = {"GOMP_SPINCOUNT": "2000"}
"""What children get unless the pod's own environment says otherwise. Threads that wait for the next
parallel region spin for some microseconds and then sleep. Spinning longer takes cores from whoever
else has work in the pod, and then a step waits for its own threads; not spinning at all costs a
decoder that is alone a third of its speed (``bench/README.md`` has the figures)."""
STOP_SECONDS = 5.0
"""How long a child may take to leave after `Shutdown` before it is killed."""


@dataclass(frozen=True)
class Callbacks(Generic[In]):
    """Whom a child's supervisor tells. All are called on the event loop and must not block."""

    started: Callable[[], None]
    message: Callable[[In], None]
    stopped: Callable[[str], None]


class Child(Generic[In, Out]):
    """A child process kept alive."""

    def __init__(
        self,
        name: str,
        run_dir: Path,
        incoming: Any,
        settings: Callable[[Path], ChildSettings],
        callbacks: Callbacks[In],
    ) -> None:
        self.name = name
        self.restarts = 0
        self._run_dir = run_dir
        self._incoming = incoming
        self._settings = settings
        self._callbacks = callbacks
        self._context = zmq.asyncio.Context.instance()
        self._channel: AsyncChannel[In, Out | Shutdown] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The running process's id."""
        return None if self._process is None else self._process.pid

    def post(self, message: Out) -> None:
        """Send a message; dropped when no child is running, since a new one starts from nothing."""
        if self._channel is not None:
            self._channel.post(message)

    async def run(self) -> None:
        """Keep a child running until `stop`.

        Raises:
            ChildDiedError: It died too often to go on.
        """
        while True:
            reason = await self._run_once()
            if self._stopping:
                return
            self._callbacks.stopped(reason)
            self._count_death(reason)
            pause = RESTART_SECONDS[min(self.restarts, len(RESTART_SECONDS) - 1)]
            self.restarts += 1
            await asyncio.sleep(pause)

    def abandon(self) -> None:
        """Start no other process after this one."""
        self._stopping = True

    async def stop(self) -> None:
        """Ask the child to leave; kill it if it does not."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        if self._channel is not None:
            self._channel.post(Shutdown())
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            logger.warning("child does not leave; killing it", extra={"child": self.name})
            process.kill()
            await process.wait()

    async def _run_once(self) -> str:
        """Start one process, pass its messages on until it ends, and say how it ended."""
        socket = self._run_dir / f"{self.name}{self.restarts}.sock"
        settings_file = socket.with_suffix(".json")
        settings_file.write_text(self._settings(socket).to_json())
        channel = AsyncChannel[In, Out | Shutdown](self._context, socket, self._incoming)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "graft_runtime.cli", self.name, str(settings_file)),
                env=ENVIRONMENT | os.environ,
            )
            self._process, self._channel = process, channel
            logger.info("child started", extra={"child": self.name, "child_pid": process.pid})
            self._callbacks.started()
            await self._pump(channel, process)
        finally:
            self._channel = None
            channel.close()
            socket.unlink(missing_ok=True)
            settings_file.unlink(missing_ok=True)
        return _ending(process.returncode)

    async def _pump(
        self, channel: AsyncChannel[In, Out | Shutdown], process: asyncio.subprocess.Process
    ) -> None:
        reader = asyncio.create_task(self._read(channel))
        waiter = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((reader, waiter), return_when=asyncio.FIRST_COMPLETED)
            if process.returncode is None and not reader.cancelled():
                reader.result()  # a message nobody understands is a bug: let it be seen
        finally:
            for task in (reader, waiter):
                task.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    async def _read(self, channel: AsyncChannel[In, Out | Shutdown]) -> None:
        while True:
            self._callbacks.message(await channel.receive())

    def _count_death(self, reason: str) -> None:
        now = time.monotonic()
        self._deaths.append(now)
        logger.error("child died", extra={"child": self.name, "ending": reason})
        if len(self._deaths) == MAX_DEATHS and now - self._deaths[0] < DEATH_WINDOW_SECONDS:
            message = f"the {self.name} process died {MAX_DEATHS} times; the last one {reason}"
            raise ChildDiedError(message)


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"was ended by signal {-returncode}"
    return f"exited with status {returncode}"
