"""A real pod for tests: `graft-runtime serve` with its engine and loader, on loopback ports."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from graft_operator.cluster.ports import free_ports
from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import AdapterEntry, build_shards, shard_key
from graft_protocol.digest import FileRecord, is_adapter_file, manifest_digest
from graft_protocol.naming import ENV_POD_NAME, ENV_POD_ROOT, STATUS_PATH, PodPaths
from graft_protocol.reasons import AdapterState
from graft_protocol.revisions import pinned_revision
from graft_protocol.status import RuntimeStatus
from graft_runtime.sources.cache_entry import file_sha256

Answer = TypeVar("Answer")

TOKEN = "test-token"
DEADLINE_SECONDS = 400.0
POLL_SECONDS = 0.02


@dataclass
class RunningPod:
    """A pod that has been started, and what tests ask of it."""

    process: asyncio.subprocess.Process
    paths: PodPaths
    url: str
    grpc_address: str
    internal_url: str
    client: httpx.AsyncClient
    log: Path
    told: list[str] = field(default_factory=list)
    """What the startup probe said while the pod was not ready."""

    async def until(
        self,
        ask: Callable[[], Awaitable[Answer]],
        good: Callable[[Answer], bool],
        deadline_seconds: float = DEADLINE_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> Answer:
        """Ask again until the answer is good.

        Raises:
            AssertionError: It was not within the deadline, or the pod ended.
        """
        deadline = time.monotonic() + deadline_seconds
        ended = asyncio.create_task(self.process.wait())
        try:
            while not good(answer := await ask()):
                assert time.monotonic() < deadline, f"still {answer!r}\n{self.log_tail()}"
                await asyncio.wait([ended], timeout=poll_seconds)
                assert not ended.done(), f"the pod ended\n{self.log_tail()}"
            return answer
        finally:
            ended.cancel()

    async def status(self) -> RuntimeStatus:
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = await self.client.get(self.internal_url + STATUS_PATH, headers=headers)
        return RuntimeStatus.model_validate_json(answer.content)

    async def is_ready(self) -> bool:
        try:
            answer = await self.client.get(f"{self.url}/startupz")
            if answer.status_code != 200:
                self.told.append(answer.json()["detail"])
            return (await self.client.get(f"{self.url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    def desire(self, entries: Iterable[AdapterEntry]) -> None:
        """Write the desired set as the kubelet does: a new folder, then one atomic switch."""
        folder = self.paths.adapters_dir
        version = Path(tempfile.mkdtemp(prefix="..v", dir=folder))
        for shard in build_shards(entries):
            (version / shard_key(shard.index)).write_text(shard.to_json())
        switch = folder / "..data_tmp"
        switch.symlink_to(version.name)
        switch.rename(folder / "..data")
        for shard in build_shards([]):
            link = folder / shard_key(shard.index)
            if not link.is_symlink():
                link.symlink_to(Path("..data") / link.name)

    async def states(self) -> dict[str, AdapterState]:
        return {one.revision: one.state for one in (await self.status()).revisions}

    async def until_available(self, *entries: AdapterEntry) -> None:
        wanted = {entry.revision for entry in entries}
        await self.until(
            self.states,
            lambda states: all(states.get(one) is AdapterState.AVAILABLE for one in wanted),
        )

    async def complete(self, prompt: str, **fields: Any) -> str:
        """Return the text of one completion; the answer must be 200."""
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 16} | fields
        answer = await self.client.post(f"{self.url}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    async def gauges(self) -> dict[str, float]:
        """Return what must be zero when nobody asks for anything."""
        status = await self.status()
        page = (await self.client.get(f"{self.url}/metrics")).text
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
        names = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
        gauges = {name: float(value) for name, value in lines if name.split("{")[0] in names}
        assert len(gauges) == len(names), page
        active = sum(one.active_requests for one in status.revisions)
        return gauges | {
            "running": status.load.running,
            "waiting": status.load.waiting,
            "kv_blocks": status.load.kv_blocks_used,
            "active": active,
        }

    def children(self) -> dict[str, tuple[int, int]]:
        """Return (pid, start time in clock ticks) of the server, engine and loader processes."""
        found = {"server": (self.process.pid, _start_time(self.process.pid))}
        tasks = Path(f"/proc/{self.process.pid}/task")
        for task in tasks.iterdir():
            for pid in map(int, (task / "children").read_text().split()):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"graft_runtime.cli" in arguments:
                    name = arguments[arguments.index(b"graft_runtime.cli") + 1].decode()
                    found[name] = (pid, _start_time(pid))
        return found

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-30:])


def _start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@asynccontextmanager
async def run_pod(
    model_dir: Path,
    *,
    cache_dir: Path | None = None,
    until_ready: bool = True,
    **settings: dict[str, Any],
) -> AsyncIterator[RunningPod]:
    """Start a pod over a model on disk and wait until it is ready; end it whatever happens.

    Args:
        model_dir: The base model.
        cache_dir: A disk cache that outlives the pod.
        until_ready: Whether to wait.
        settings: Sections of `RuntimeConfig`: ``engine={...}``, ``adapters={...}``.
    """
    root = Path(tempfile.mkdtemp(prefix="graft-"))  # short: unix sockets lie below it
    port, grpc_port, internal_port = free_ports(3)
    ports = {"port": port, "grpcPort": grpc_port, "internalPort": internal_port}
    config = RuntimeConfig.model_validate(
        {
            "service": {"namespace": "default", "name": "test"},
            "model": {"servedName": "base", "uri": model_dir.resolve().as_uri()},
            "engine": {"threads": 1} | settings.get("engine", {}),
            "adapters": settings.get("adapters", {}),
            "server": {"host": "127.0.0.1"} | ports | settings.get("server", {}),
        }
    )
    paths = lay_out(root, config, cache_dir)
    log = root / "log"
    environment = os.environ | {ENV_POD_ROOT: str(root), ENV_POD_NAME: "test-0"}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "graft_runtime.cli", "serve", env=environment, stderr=output
        )
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(
        timeout=DEADLINE_SECONDS, limits=limits, trust_env=False
    ) as client:
        pod = RunningPod(
            process,
            paths,
            f"http://127.0.0.1:{port}",
            f"127.0.0.1:{grpc_port}",
            f"http://127.0.0.1:{internal_port}",
            client,
            log,
        )
        try:
            pod.desire([])
            if until_ready:
                await pod.until(pod.is_ready, bool)
            yield pod
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()
            shutil.rmtree(root, ignore_errors=True)


def lay_out(root: Path, config: RuntimeConfig, cache_dir: Path | None = None) -> PodPaths:
    """Write what is mounted into a pod."""
    paths = PodPaths(root)
    for folder in (paths.config_file.parent, paths.adapters_dir, paths.token_file.parent):
        folder.mkdir(parents=True)
    if cache_dir is not None:
        paths.cache_dir.parent.mkdir(parents=True)
        paths.cache_dir.symlink_to(cache_dir)
    paths.config_file.write_text(config.to_json())  # JSON is YAML
    paths.token_file.write_text(TOKEN)
    return paths


def entry_for(
    name: str, folder: Path, *, with_template: bool = False, **fields: Any
) -> AdapterEntry:
    """Return a desired entry for an adapter in a folder, pinned to what lies there now."""
    files = [
        FileRecord(file.name, file.stat().st_size, file_sha256(file) or "")
        for file in folder.iterdir()
        if is_adapter_file(file.name, with_template=with_template)
    ]
    digest = manifest_digest(files)
    values = {
        "revision": pinned_revision("default", name, digest),
        "served_name": name,
        "uri": folder.resolve().as_uri(),
        "digest": digest,
        "chat_template": True if with_template else None,
    }
    return AdapterEntry.model_validate(values | fields)


async def stream_tokens(
    client: httpx.AsyncClient, url: str, body: dict[str, Any]
) -> AsyncIterator[str]:
    """Yield the texts of a streamed completion until ``[DONE]``."""
    request = client.stream("POST", f"{url}/v1/completions", json=body | {"stream": True})
    async with request as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                yield event["choices"][0]["text"]
