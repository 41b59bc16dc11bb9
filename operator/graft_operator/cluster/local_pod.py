"""One pod of local mode: a supervised runtime process with the folders a pod has.

It is started again with growing pauses when it dies, and probed for readiness as a kubelet would.
Made by `local_deployment`; it knows nothing of replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from graft_operator.cluster.mounts import Lookup, Ports, mount_all
from graft_operator.cluster.process import kill_group, spawn, stop
from graft_operator.errors import NotFoundError
from graft_operator.log import last_words
from graft_operator.settings import LocalSettings
from graft_protocol.naming import ENV_POD_NAME, ENV_POD_ROOT

LOG_TAIL_BYTES = 8192
KILL_SECONDS = 1.0
"""How long a killed process may take to be gone."""
log = logging.getLogger(__name__)
STEADY_SECONDS = 60.0
"""A process that lived this long starts with a fresh pause when it dies."""


@dataclass(frozen=True)
class PodSpec:
    """What a pod is made from."""

    name: str
    namespace: str
    template: Mapping[str, Any]
    root: Path
    log: Path
    ports: Ports
    claims_dir: Path
    """Holds a folder for each volume claim of the pod's namespace."""


class LocalPod:
    """A supervised process; `on_change` is called when `ready`, `restarts` or `trouble` changed."""

    def __init__(
        self,
        spec: PodSpec,
        settings: LocalSettings,
        lookup: Lookup,
        on_change: Callable[[LocalPod], None],
    ) -> None:
        self.spec = spec
        self.ready = False
        self.restarts = 0
        self.trouble = ""
        self._process: asyncio.subprocess.Process | None = None
        self._settings = settings
        self._lookup = lookup
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._grace_seconds = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to supervise."""
        self._task = asyncio.create_task(self._supervise(), name=f"pod {self.spec.name}")
        self._task.add_done_callback(self._on_end)

    async def stop(self, grace_seconds: float) -> None:
        """End the process, gently first, and wait until it is gone."""
        self._grace_seconds = grace_seconds
        self._stopping.set()
        if self._task is None:
            return
        # Not awaited itself: a caller that is cancelled must not take the supervision along.
        _, unfinished = await asyncio.wait({self._task}, timeout=grace_seconds + KILL_SECONDS)
        if unfinished:
            # An earlier stop with a longer grace period is under way.
            self.kill()
            await asyncio.wait(unfinished)

    def kill(self) -> None:
        """End the process without waiting for anything it still does."""
        if self._process is not None:
            kill_group(self._process)

    def refresh_volumes(self) -> None:
        """Bring the mounted files up to date with the stored objects."""
        try:
            self._mount()
        except (NotFoundError, OSError) as error:
            self._changed(trouble=f"volumes: {error}")

    def _mount(self) -> None:
        spec = self.spec
        mount_all(
            spec.template, spec.namespace, spec.root, self._lookup, spec.ports, spec.claims_dir
        )

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause = self._settings.restart_first_seconds
        while not self._stopping.is_set():
            started = loop.time()
            try:
                await self._run_once()
            except (NotFoundError, OSError) as error:
                self._changed(ready=False, trouble=f"cannot start: {error}")
            if self._stopping.is_set():
                break
            if loop.time() - started > STEADY_SECONDS:
                pause = self._settings.restart_first_seconds
            await self._rest(pause)
            pause = min(pause * 2, self._settings.restart_max_seconds)
            self.restarts += 1
        self._changed(ready=False, trouble="")

    async def _run_once(self) -> None:
        spec = self.spec
        self._mount()
        process = await spawn(self._command(), self._environment(), spec.log)
        self._process = process
        probe = asyncio.create_task(self._probe(), name=f"probe {spec.name}")
        ended = asyncio.create_task(process.wait(), name=f"wait {spec.name}")
        stopping = asyncio.create_task(self._stopping.wait(), name=f"stop {spec.name}")
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(probe, stopping)
            self._changed(ready=False)
            await stop(process, self._grace_seconds)
            await ended
            self._process = None
        if not self._stopping.is_set():
            said = _end_of(spec.log)
            self._changed(trouble=f"the process ended with {process.returncode}: {said}")

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("pod %s is no longer supervised", self.spec.name, exc_info=task.exception())
            self._changed(ready=False, trouble=f"no longer supervised: {task.exception()!r}")

    def _command(self) -> tuple[str, ...]:
        if self._settings.runtime_command:
            return self._settings.runtime_command
        command = self.spec.template["spec"]["containers"][0]["command"]
        # The runtime of the same installation, also when its folder is not on PATH.
        beside = shutil.which(command[0], path=str(Path(sys.executable).parent))
        return (beside or command[0], *command[1:])

    def _environment(self) -> dict[str, str]:
        container = self.spec.template["spec"]["containers"][0]
        named = {item["name"]: item["value"] for item in container["env"] if "value" in item}
        own = {ENV_POD_ROOT: str(self.spec.root), ENV_POD_NAME: self.spec.name}
        return {**os.environ, **self._settings.environment, **named, **own}

    async def _probe(self) -> None:
        container = self.spec.template["spec"]["containers"][0]
        path = container["readinessProbe"]["httpGet"]["path"]
        url = f"http://127.0.0.1:{self.spec.ports.http}{path}"
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            while True:
                ready = await _answers(client, url)
                self._changed(ready=ready, trouble="" if ready else self.trouble)
                pause = (
                    self._settings.probe_ready_seconds if ready else self._settings.probe_seconds
                )
                await asyncio.sleep(pause)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _changed(self, *, ready: bool | None = None, trouble: str | None = None) -> None:
        before = (self.ready, self.trouble)
        self.ready = self.ready if ready is None else ready
        self.trouble = self.trouble if trouble is None else trouble
        if (self.ready, self.trouble) != before:
            self._on_change(self)


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        response = await client.get(url)
    except httpx.HTTPError:
        return False
    return response.is_success


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _end_of(log: Path) -> str:
    """Return what a process said last."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return "no log"
    return last_words(text) or "nothing in its log"
