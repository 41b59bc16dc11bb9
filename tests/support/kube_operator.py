"""`graft operator` against the fake API, as a process or in a thread, and how tests wait for it.

A process is the real thing and takes a second or two to start; a thread runs the same operator in
a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from graft_operator.cluster.ports import free_port
from graft_operator.handlers.operator import run_operator
from graft_operator.settings import OperatorSettings
from tests.support.kube_api import KubeApi
from tests.support.kube_store import Json

Answer = TypeVar("Answer")

DEADLINE_SECONDS = 30.0
POLL_SECONDS = 0.02
TLS_GOODBYE_SECONDS = 0.25
"""What aiohttp's documentation asks for before a loop is closed under its TLS connections."""
COMMAND = "from graft_operator.cli import main; main(prog_name='graft')"


class RunningOperator(Protocol):
    """What tests ask of a running operator."""

    def check(self) -> None:
        """Raise AssertionError if it has ended."""


async def until(
    operator: RunningOperator, ask: Callable[[], Answer], deadline: float = DEADLINE_SECONDS
) -> Answer:
    """Ask until the answer is true in the sense of Python, and return it."""
    end = time.monotonic() + deadline
    while not (answer := ask()):
        operator.check()
        assert time.monotonic() < end, f"still {answer!r}"
        await asyncio.sleep(POLL_SECONDS)
    return answer


@dataclass
class OperatorProcess:
    """A started operator."""

    process: asyncio.subprocess.Process
    log: Path

    def check(self) -> None:
        """Raise AssertionError if it has ended."""
        assert self.process.returncode is None, f"the operator ended\n{self.text()[-3000:]}"

    async def ended(self) -> int:
        """Wait for the end and return the exit code."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.process.wait()

    async def health_url(self) -> str:
        """Return where probes are answered."""
        found = await until(self, lambda: re.search(r"metrics on port (\d+)", self.text()))
        return f"http://127.0.0.1:{found[1]}" if found else ""

    def text(self) -> str:
        """Return what the operator has logged."""
        return self.log.read_text()


@contextlib.asynccontextmanager
async def run_operator_process(
    api: KubeApi, folder: Path, *arguments: str
) -> AsyncIterator[OperatorProcess]:
    """Start an operator; end it whatever happens."""
    log = folder / "operator.log"
    without_proxy = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment = without_proxy | {"KUBECONFIG": str(api.kubeconfig(folder))}
    command = [sys.executable, "-c", COMMAND, "operator", "--health-port", "0", *arguments]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=output, stderr=output
        )
    try:
        yield OperatorProcess(process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class OperatorThread:
    """An operator in a thread with a loop of its own."""

    settings: OperatorSettings
    failure: BaseException | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None
    _started: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def health_url(self) -> str:
        """Where probes are answered."""
        return f"http://127.0.0.1:{self.settings.health_port}"

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise AssertionError if it has ended."""
        alive = self._thread is not None and self._thread.is_alive()
        assert alive, f"the operator ended: {self.failure!r}"

    async def ended(self) -> BaseException | None:
        """Wait for the end and return what it failed with."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, DEADLINE_SECONDS)
        return self.failure

    async def stop(self) -> None:
        """End it."""
        await asyncio.to_thread(self.halt)

    def halt(self) -> None:
        """End it, from a test without a loop."""
        self._started.wait()
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(DEADLINE_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:  # noqa: BLE001 - the test asks for it
            self.failure = error

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        try:
            await run_operator(self.settings, self._stop)
        finally:
            await asyncio.sleep(TLS_GOODBYE_SECONDS)


@contextlib.asynccontextmanager
async def run_operator_thread(
    api: KubeApi, folder: Path, settings: OperatorSettings | None = None
) -> AsyncIterator[OperatorThread]:
    """Start an operator; end it whatever happens."""
    given = replace(
        settings or OperatorSettings(),
        kubeconfig=api.kubeconfig(folder),
        health_host="127.0.0.1",
        health_port=free_port(),
    )
    operator = OperatorThread(given)
    operator.start()
    try:
        yield operator
    finally:
        await operator.stop()


def condition(stored: Json | None, type_: str) -> tuple[str, str]:
    """Return status and reason of a condition; empty while it is not there."""
    conditions = ((stored or {}).get("status") or {}).get("conditions") or []
    found = next((item for item in conditions if item["type"] == type_), None)
    return (found["status"], found["reason"]) if found else ("", "")
