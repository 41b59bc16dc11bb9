"""A runtime pod without a model: reads the same files, loads nothing, reports the same way.

Started as a process by tests of the control plane. What a source does is in its URI's last part:
``ok...`` works, ``slow-<ms>...`` takes that long, ``fail-<Reason>...`` fails for that reason,
``bytes-<n>...`` is that large. As
the model's URI, ``crash...`` ends the process. ``GET /which/<name>`` tells which revision answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import Any

import yaml

from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import (
    NUM_SHARDS,
    AdapterEntry,
    MalformedShardError,
    Shard,
    parse_shard,
    set_hash,
    shard_key,
)
from graft_protocol.naming import (
    ENV_POD_NAME,
    ENV_POD_ROOT,
    LASTING_HEADER,
    STATUS_PATH,
    UNLESS_LASTING_HEADER,
    PodPaths,
)
from graft_protocol.reasons import AdapterState, EngineState, Reason
from graft_protocol.status import (
    ModelReport,
    RevisionReport,
    RuntimeStatus,
    ShardReport,
    lasting_hash,
)

POLL_SECONDS = 0.02
Answer = tuple[int, dict[str, str], bytes]


class Trouble(Enum):
    """What is wrong with a pod that still takes requests."""

    HANGS = auto()
    """Whoever asks for its report gets no answer, ever."""
    FAILS = auto()
    """Whoever asks for its report is told of an internal error."""


def digest_of(uri: str) -> str:
    """Return the digest that the content of a source has here."""
    return "sha256:" + hashlib.sha256(uri.encode()).hexdigest()


def directive(uri: str) -> tuple[str, str]:
    """Return what a source does, and its argument."""
    verb, _, rest = uri.rpartition("/")[2].partition("-")
    return verb, rest.partition("-")[0]


class FakeRuntime:
    """The state of one pod."""

    def __init__(self, paths: PodPaths, name: str) -> None:
        self.paths = paths
        self.name = name
        document = yaml.safe_load(paths.config_file.read_text())
        self.config = RuntimeConfig.model_validate(document)
        self.shards: dict[int, Shard] = {}
        self.shard_problems: dict[int, str] = {}
        self.reports: dict[str, RevisionReport] = {}
        self.started: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.on_report: Callable[[str, AdapterState | None], None] = lambda *_: None
        """Told when a revision comes to another state; None is its end."""
        self.remounted = asyncio.Event()
        """Set by those who know that the files have changed."""
        self._texts: dict[int, str] = {}
        self._answer: tuple[str, str, bytes] | None = None
        self.state = EngineState.STARTING
        self.reason: Reason | None = None
        self.trouble: Trouble | None = None
        self.asked = 0
        """How often somebody wanted its report."""

    @property
    def token(self) -> str:
        return self.paths.token_file.read_text()

    def entries(self) -> list[AdapterEntry]:
        return [entry for shard in self.shards.values() for entry in shard.entries]

    async def run(self, poll_seconds: float = POLL_SECONDS) -> None:
        await self._start_model()
        while True:
            self.remounted.clear()
            self._read_shards()
            self._converge()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.remounted.wait(), poll_seconds)

    async def _start_model(self) -> None:
        verb, argument = directive(self.config.model.uri)
        if verb == "crash":
            print("the model cannot be loaded", file=sys.stderr, flush=True)
            os._exit(3)
        if verb == "slow":
            await asyncio.sleep(int(argument) / 1000)
        self._answer = None
        if verb == "fail":
            self.state, self.reason = EngineState.FAILED, Reason(argument)
        else:
            self.state = EngineState.READY

    def _read_shards(self) -> None:
        for index in range(NUM_SHARDS):
            try:
                text = (self.paths.adapters_dir / shard_key(index)).read_text()
                if self._texts.get(index) == text:
                    continue
                self.shards[index] = parse_shard(text)
                self.shard_problems.pop(index, None)
            except (OSError, MalformedShardError) as error:
                text = ""
                self.shard_problems[index] = str(error)
            self._texts[index] = text
            self._answer = None

    def _converge(self) -> None:
        wanted = {entry.revision: entry for entry in self.entries()}
        for revision in self.reports.keys() - wanted.keys():
            self._answer = None
            del self.reports[revision]
            self.started.discard(revision)
            self.on_report(revision, None)
        for revision, entry in wanted.items():
            if entry.digest is None and entry.resolver != self.name:
                continue
            if revision not in self.started:
                self.started.add(revision)
                task = asyncio.create_task(self._load(entry))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def _load(self, entry: AdapterEntry) -> None:
        self._report(entry, AdapterState.DOWNLOADING, Reason.DOWNLOADING)
        verb, argument = directive(entry.uri)
        if verb == "slow":
            await asyncio.sleep(int(argument) / 1000)
        if verb == "fail":
            self._report(entry, AdapterState.FAILED, Reason(argument), message="as asked")
        elif entry.digest is None:
            self._report(entry, AdapterState.PENDING, Reason.PENDING, digest=digest_of(entry.uri))
        elif entry.digest != digest_of(entry.uri):
            self._report(entry, AdapterState.FAILED, Reason.CHECKSUM_MISMATCH, message="digest")
        else:
            # As if so many of a hundred requests had failed.
            ends = {"requests": 100, "errors": int(argument)} if verb == "errors" else {}
            size = int(argument) if verb == "bytes" else 1234
            facts = {"bytes": size, "rank": 8, **ends}
            self._report(entry, AdapterState.AVAILABLE, Reason.AVAILABLE, **facts)

    def _report(
        self, entry: AdapterEntry, state: AdapterState, reason: Reason, **facts: Any
    ) -> None:
        if entry.revision in self.started:
            self._answer = None
            self.reports[entry.revision] = RevisionReport(
                revision=entry.revision, state=state, reason=reason, **facts
            )
            self.on_report(entry.revision, state)

    def which(self, name: str) -> str | None:
        """Return the revision that answers to a name."""
        best: tuple[int, str] | None = None
        for entry in self.entries():
            report = self.reports.get(entry.revision)
            available = report is not None and report.state is AdapterState.AVAILABLE
            if available and name in (entry.served_name, *entry.aliases):
                best = max(best or (-1, ""), (entry.weight, entry.revision))
        return best[1] if best else None

    def status(self) -> RuntimeStatus:
        hashes = [self.shards[i].hash if i in self.shards else "" for i in range(NUM_SHARDS)]
        problems = [self.shard_problems.get(i, "") for i in range(NUM_SHARDS)]
        weights = {entry.revision: entry.weight for entry in self.entries()}
        return RuntimeStatus(
            version="0",
            pod=self.name,
            state=self.state,
            reason=self.reason,
            message="as asked" if self.reason else "",
            ready=self.is_ready,
            model=ModelReport(
                served_name=self.config.model.served_name,
                uri=self.config.model.uri,
                digest=digest_of(self.config.model.uri),
            ),
            set_hash=set_hash(hashes),
            shards=tuple(
                ShardReport(hash=h, reason=Reason.MALFORMED_SHARD if p else None, message=p)
                for h, p in zip(hashes, problems, strict=True)
            ),
            revisions=tuple(
                report.model_copy(update={"weight": weights.get(revision, 0)})
                for revision, report in sorted(self.reports.items())
            ),
        )

    @property
    def is_ready(self) -> bool:
        return self.state is EngineState.READY and len(self.shards) == NUM_SHARDS

    def public(self, path: str, headers: dict[str, str]) -> Answer:
        del headers
        if path.startswith("/which/"):
            revision = self.which(path.removeprefix("/which/"))
            return (200 if revision else 404), {}, (revision or "").encode()
        ok = {"/livez": True, "/readyz": self.is_ready, "/startupz": self.is_ready}
        return (200 if ok.get(path) else 503), {}, b""

    def internal(self, path: str, headers: dict[str, str]) -> Answer | None:
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {}, b""
        if path != STATUS_PATH:
            return 404, {}, b""
        self.asked += 1
        if self.trouble is not None:
            return (500, {}, b"") if self.trouble is Trouble.FAILS else None
        if self._answer is None:
            status = self.status()
            body = status.to_json().encode()
            etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            self._answer = etag, lasting_hash(status), body
        etag, lasting, body = self._answer
        tags = {"ETag": etag, LASTING_HEADER: lasting}
        if headers.get("if-none-match") == etag or headers.get(UNLESS_LASTING_HEADER) == lasting:
            return 304, tags, b""
        return 200, tags, body


def serve_with(answer: Callable[[str, dict[str, str]], Answer | None]) -> Callable[..., Any]:
    """Return a connection handler that answers each request of a kept connection.

    Where there is no answer, it waits until whoever asked has hung up.
    """

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                pairs = (line.split(":", 1) for line in lines)
                headers = {key.strip().lower(): value.strip() for key, value in pairs}
                found = answer(first.split()[1], headers)
                if found is None:
                    await reader.read()
                    raise ConnectionAbortedError
                code, extra, body = found
                extra |= {"Content-Length": str(len(body)), "Content-Type": "application/json"}
                text = "".join(f"{key}: {value}\r\n" for key, value in extra.items())
                writer.write(f"HTTP/1.1 {code} X\r\n{text}\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return handle


async def main() -> None:
    """Serve until SIGTERM."""
    name = os.environ[ENV_POD_NAME]
    runtime = FakeRuntime(PodPaths(Path(os.environ[ENV_POD_ROOT])), name)
    server = runtime.config.server
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    await asyncio.start_server(serve_with(runtime.public), server.host, server.port)
    await asyncio.start_server(serve_with(runtime.internal), server.host, server.internal_port)
    print(json.dumps({"message": "up", "pod": name}), flush=True)
    running = asyncio.create_task(runtime.run())
    await done.wait()
    running.cancel()


if __name__ == "__main__":
    asyncio.run(main())
