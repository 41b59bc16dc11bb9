"""A real loader process and the server's end of its channel."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq.asyncio

from graft_protocol.credentials import Credential
from graft_runtime.adapters.loader import Loader
from graft_runtime.ipc.channel import AsyncChannel
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    FromLoader,
    LoaderProgress,
    LoaderReady,
    ModelPrepared,
    ModelRefused,
    PrepareAdapter,
    PrepareModel,
    Shutdown,
    ToLoader,
)
from graft_runtime.settings import LoaderChildSettings
from tests.support.obey_modes import obey_modes
from tests.support.s3 import S3
from tests.support.spoiled_adapters import CONFIG, WEIGHTS

_PATIENCE_SECONDS = 20
_RUN = """
import pathlib, sys
from graft_runtime.adapters.loader import run_loader
from graft_runtime.settings import LoaderChildSettings
run_loader(LoaderChildSettings.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes()))
"""

Answer = AdapterPrepared | AdapterRefused


class LoaderProcess:
    """Speaks with one loader process."""

    def __init__(
        self,
        folder: Path,
        process: asyncio.subprocess.Process,
        channel: AsyncChannel[FromLoader, ToLoader],
    ) -> None:
        self.folder = folder
        self.process = process
        self.channel = channel
        self.progress: list[LoaderProgress] = []
        self.log = ""
        self._answers: dict[str, Answer] = {}

    async def receive(self) -> FromLoader:
        """Wait for the next message; progress is put aside."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                message = await self.channel.receive()
                if not isinstance(message, LoaderProgress):
                    return message
                self.progress.append(message)

    async def prepare_model(self, uri: str, **fields: Any) -> ModelPrepared | ModelRefused:
        """Ask for the base model and return the answer."""
        self.channel.post(PrepareModel(uri, **fields))
        while True:
            message = await self.receive()
            if isinstance(message, ModelPrepared | ModelRefused):
                return message

    async def prepare(self, revision: str, uri: str, **fields: Any) -> Answer:
        """Ask for an adapter and return the answer."""
        self.channel.post(PrepareAdapter(revision, uri, **fields))
        return await self.answer(revision)

    async def answer(self, revision: str) -> Answer:
        """Return the next answer for a revision, whatever comes for others meanwhile."""
        while revision not in self._answers:
            message = await self.receive()
            if isinstance(message, AdapterPrepared | AdapterRefused):
                self._answers[message.revision] = message
        return self._answers.pop(revision)

    async def stop(self) -> int:
        """Ask it to leave; return its exit status."""
        if self.process.returncode is None:
            self.channel.post(Shutdown())
            async with asyncio.timeout(_PATIENCE_SECONDS):
                _, log = await self.process.communicate()
            self.log = log.decode()
        return await self.process.wait()


def loader_told(folder: Path, settings: dict[str, Any]) -> LoaderChildSettings:
    """Return what a loader is told whose cache, keys and claims lie in a folder."""
    defaults: dict[str, Any] = {
        "socket": folder / "s",
        "cache_dir": folder / "cache",
        "credentials_dir": folder / "credentials",
        "dtype": "float32",
        "max_rank": 16,
        "max_adapter_bytes": 10_000_000,
        "cache_max_bytes": 100_000_000,
        "load_concurrency": 2,
        "allowed_endpoints": (),
        "allowed_uris": (),
        "claims_dir": folder / "claims",
    }
    return LoaderChildSettings(**(defaults | settings))


@asynccontextmanager
async def run_loader_here(
    folder: Path, **settings: Any
) -> AsyncIterator[AsyncChannel[FromLoader, ToLoader]]:
    """Run a loader as a task of this process, for tests that change its constants."""
    told = loader_told(folder, settings)
    context = zmq.asyncio.Context()
    here: AsyncChannel[FromLoader, ToLoader] = AsyncChannel(context, told.socket, FromLoader)
    there: AsyncChannel[ToLoader, FromLoader] = AsyncChannel(
        context, told.socket, ToLoader, connect=True
    )
    running = asyncio.create_task(Loader(told, there).run())
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            yield here
            here.post(Shutdown())
            await running
    finally:
        running.cancel()
        here.close()
        there.close()
        context.term()


@asynccontextmanager
async def run_loader_process(
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
    obeys_modes: bool = False,
    **settings: Any,
) -> AsyncIterator[LoaderProcess]:
    """Run a loader for the length of a with statement; its cache and keys lie in `folder`."""
    told = loader_told(folder, settings)
    settings_file = folder / "settings.json"
    settings_file.write_text(told.to_json())
    told.socket.unlink(missing_ok=True)  # of a loader that ran over this folder before
    context = zmq.asyncio.Context()
    channel: AsyncChannel[FromLoader, ToLoader] = AsyncChannel(context, told.socket, FromLoader)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _RUN,
        str(settings_file),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=obey_modes if obeys_modes else None,
    )
    loader = LoaderProcess(folder, process, channel)
    try:
        message = await loader.receive()
        assert isinstance(message, LoaderReady), message
        yield loader
        await loader.stop()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.communicate()
        channel.close()
        context.term()


def upload(s3: S3, bucket: str, adapter: Path) -> str:
    """Put an adapter into a bucket, with a file that is not part of it, and return its URI."""
    files = {name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    s3.put(bucket, {f"t/a1/{name}": body for name, body in (files | {"x.py": b"1/0"}).items()})
    return f"s3://{bucket}/t/a1"


def prepared(answer: Answer) -> AdapterPrepared:
    """Expect success."""
    assert isinstance(answer, AdapterPrepared), answer
    return answer


def refusal(answer: Answer) -> tuple[str, str]:
    """Expect a refusal; return its reason and message."""
    assert isinstance(answer, AdapterRefused), answer
    return answer.reason, answer.message


def write_key(folder: Path, key: str, credential: Credential) -> None:
    """Project a credential."""
    path = folder / "credentials" / f"{key}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(credential.to_json())
