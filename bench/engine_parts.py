"""What the benchmarks of the engine measure with: a real server, and the machine at its best."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch.nn import functional

from graft_operator.cluster.ports import free_ports
from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import AdapterEntry, build_shards, shard_key
from graft_protocol.digest import FileRecord, manifest_digest
from graft_protocol.naming import ENV_POD_NAME, ENV_POD_ROOT, PodPaths
from graft_protocol.revisions import pinned_revision
from graft_runtime.sources.cache_entry import file_sha256

START_SECONDS = 600.0


@dataclass
class Server:
    """A running pod."""

    url: str
    client: httpx.AsyncClient
    adapters_dir: Path
    pid: int

    async def metrics(self) -> dict[str, float]:
        """Return all samples by name and labels."""
        page = (await self.client.get(f"{self.url}/metrics")).text
        lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def engine_wait_seconds(self) -> float:
        """Return how long the engine's own loop has waited for a core since its start (Linux)."""
        process = Path("/proc")
        children = (process / f"{self.pid}/task/{self.pid}/children").read_text().split()
        commands = {one: (process / one / "cmdline").read_bytes().split(b"\0") for one in children}
        (engine,) = (one for one, command in commands.items() if b"engine" in command)
        # Nanoseconds on a core, nanoseconds of waiting for one, and turns.
        columns = (process / f"{engine}/task/{engine}/schedstat").read_text().split()
        return int(columns[1]) / 1e9

    async def desire(self, entries: Iterable[AdapterEntry]) -> None:
        """Change the set of adapters, as the kubelet would show the change."""
        version = Path(tempfile.mkdtemp(prefix="..v", dir=self.adapters_dir))
        for shard in build_shards(entries):
            (version / shard_key(shard.index)).write_text(shard.to_json())
            link = self.adapters_dir / shard_key(shard.index)
            if not link.is_symlink():
                link.symlink_to(Path("..data") / link.name)
        swap = self.adapters_dir / "..next"
        swap.symlink_to(version.name)
        swap.replace(self.adapters_dir / "..data")

    async def serves_exactly(self, names: AbstractSet[str], pause_seconds: float = 0.2) -> None:
        """Wait until these adapters, and no others, are among the models."""
        served: set[str] | None = None
        while served != names:
            await asyncio.sleep(pause_seconds if served is not None else 0)
            models = (await self.client.get(f"{self.url}/v1/models")).json()
            served = {model["id"] for model in models["data"] if model["parent"] is not None}
            served = {name for name in served if "/" not in name}

    async def load_adapters(self, folders: dict[str, Path]) -> None:
        """Desire adapters and wait until each is among the models."""
        await self.desire(entry(name, folder) for name, folder in folders.items())
        await self.serves_exactly(folders.keys())


@asynccontextmanager
async def serve(
    model_uri: str,
    engine: dict[str, Any],
    pages: int = 1,
    cache: Path | None = None,
    cache_bytes: int = 10 * 2**30,
) -> AsyncIterator[Server]:
    """Start `graft-runtime serve` and wait until it is ready; end it whatever happens.

    A cache that is given outlives the server: the next one finds adapters there.
    """
    root = Path(tempfile.mkdtemp(prefix="graft-"))
    ports = free_ports(3)
    config = RuntimeConfig.model_validate(
        {
            "service": {"namespace": "default", "name": "bench"},
            "model": {"servedName": "base", "uri": model_uri},
            "engine": engine,
            "adapters": {"devicePages": pages},
            "cache": {"maxBytes": cache_bytes},
            "server": {
                "host": "127.0.0.1",
                **dict(zip(("port", "grpcPort", "internalPort"), ports, strict=True)),
            },
        }
    )
    paths = PodPaths(root)
    for folder in (paths.config_file.parent, paths.adapters_dir, paths.token_file.parent):
        folder.mkdir(parents=True)
    if cache is not None:
        paths.cache_dir.parent.mkdir(parents=True)
        paths.cache_dir.symlink_to(cache)
    paths.config_file.write_text(config.to_json())
    paths.token_file.write_text("bench")
    environment = os.environ | {ENV_POD_ROOT: str(root), ENV_POD_NAME: "bench-0"}
    command = (sys.executable, "-m", "graft_runtime.cli", "serve")
    log = root / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=output)
    # A kept connection may be closed by the server just when a request is sent on it.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    try:
        async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:  # noqa: S113 - as long as it takes
            server = Server(f"http://127.0.0.1:{ports[0]}", client, paths.adapters_dir, process.pid)
            await _until_ready(server, process, log)
            yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if sys.exc_info()[0] is not SystemExit:
            shutil.rmtree(root, ignore_errors=True)


async def _until_ready(server: Server, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.returncode is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not start: {log}")
        try:
            if (await server.client.get(f"{server.url}/startupz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)


def entry(name: str, folder: Path) -> AdapterEntry:
    """Return the pinned entry of an adapter in a folder."""
    files = [
        FileRecord(file.name, file.stat().st_size, file_sha256(file) or "")
        for file in folder.iterdir()
    ]
    digest = manifest_digest(files)
    revision = pinned_revision("default", name, digest)
    uri = folder.resolve().as_uri()
    return AdapterEntry(revision=revision, served_name=name, uri=uri, digest=digest)


@dataclass(frozen=True)
class Machine:
    """What this machine can do at best, measured."""

    read_bytes_per_second: float
    flops: float
    """bfloat16 multiplications and additions per second."""

    def best_rate(self, config: dict[str, Any], requests: int, context: int) -> float:
        """Return the tokens per second that no program could exceed.

        Every weight is read once per step and every key and value of each request; every weight is
        multiplied once per request.
        """
        hidden, ffn = config["hidden_size"], config["intermediate_size"]
        kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
        layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
        weights = config["num_hidden_layers"] * layer + hidden * config["vocab_size"]
        cached = 2 * 2 * kv * config["num_hidden_layers"] * context * requests
        read_seconds = (2 * weights + cached) / self.read_bytes_per_second
        return float(requests / max(read_seconds, 2 * weights * requests / self.flops))


def measure_machine(threads: int) -> Machine:
    """Measure how fast memory is read, by the C library's search for a byte, and bf16 products."""
    size = 256 * 2**20
    parts = [ctypes.create_string_buffer(size) for _ in range(threads)]
    search = ctypes.CDLL(None).memchr
    search.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

    def read(part: Any) -> None:
        search(ctypes.addressof(part), 1, size)

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            begin = time.perf_counter()
            list(pool.map(read, parts))
            best = min(best, time.perf_counter() - begin)
    torch.set_num_threads(threads)
    side = 2048
    left, right = torch.randn(side, side).bfloat16(), torch.randn(side, side).bfloat16()
    fastest = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        functional.linear(left, right)
        fastest = min(fastest, time.perf_counter() - begin)
    return Machine(threads * size / best, 2 * side**3 / fastest)
