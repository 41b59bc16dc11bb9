"""Two loader processes on one disk cache, and many loads in one: who fetches, who waits."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from graft_protocol.digest import manifest_digest
from graft_runtime.ipc.messages import PrepareAdapter
from tests.support.cached import records_of
from tests.support.fault_proxy import Fault, FaultProxy, spoil
from tests.support.loader_process import (
    LoaderProcess,
    prepared,
    run_loader_process,
    upload,
    write_key,
)
from tests.support.s3 import S3
from tests.support.spoiled_adapters import CONFIG, WEIGHTS, with_config

DEADLINE_SECONDS = 20


class Gate:
    """Holds the first reads of weights back until told to let them pass."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.opened.wait(DEADLINE_SECONDS)
        with self._lock:
            self.inside -= 1

    def plan(self, path: str) -> Fault | None:
        return Fault(before=self) if urlsplit(path).path.endswith(WEIGHTS) else None


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def proxy(s3: S3, gate: Gate) -> Iterator[FaultProxy]:
    with spoil(s3.endpoint) as running:
        running.plan = gate.plan
        yield running
        gate.opened.set()


def digest_of(adapter: Path) -> str:
    return manifest_digest(
        records_of({name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    )


async def until_read(proxy: FaultProxy, times: int) -> None:
    """Wait until the weights have been asked for so many times."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while proxy.gets_of(WEIGHTS) < times:
            await asyncio.sleep(0.01)


async def start(
    stack: AsyncExitStack, folder: Path, name: str, s3: S3, proxy: FaultProxy, base_model: Path
) -> LoaderProcess:
    """Run a loader with a socket and keys of its own on the cache of all."""
    own = folder / name
    own.mkdir()
    write_key(own, "k", s3.credential.model_copy(update={"endpoint": proxy.endpoint}))
    loader = await stack.enter_async_context(
        run_loader_process(own, cache_dir=folder / "cache", allowed_endpoints=(proxy.endpoint,))
    )
    await loader.prepare_model(base_model.as_uri())
    return loader


async def test_two_processes_fetch_a_content_once(
    folder: Path, s3: S3, proxy: FaultProxy, gate: Gate, base_model: Path, peft_adapter: Path
) -> None:
    uri, digest = upload(s3, "two", peft_adapter), digest_of(peft_adapter)
    neighbour = with_config(peft_adapter, folder / "neighbour", lora_alpha=3)
    async with AsyncExitStack() as stack:
        first = await start(stack, folder, "a", s3, proxy, base_model)
        second = await start(stack, folder, "b", s3, proxy, base_model)
        first.channel.post(PrepareAdapter("x/one@0", uri, digest=digest, credential="k"))
        await until_read(proxy, 1)
        second.channel.post(PrepareAdapter("x/two@0", uri, digest=digest, credential="k"))
        # When this one is there, the one before it has come as far as it can.
        prepared(await second.prepare("x/other@0", neighbour.as_uri()))
        assert (proxy.gets_of(CONFIG), proxy.gets_of(WEIGHTS)) == (1, 1)
        gate.opened.set()
        one = prepared(await first.answer("x/one@0"))
        two = prepared(await second.answer("x/two@0"))
        assert (one.path, one.digest) == (two.path, two.digest)
        assert proxy.gets_of(WEIGHTS) == 1
        assert list((folder / "cache" / "locks").iterdir()) == []


async def test_the_turn_of_a_process_that_dies_goes_to_who_waits(
    folder: Path, s3: S3, proxy: FaultProxy, gate: Gate, base_model: Path, peft_adapter: Path
) -> None:
    uri, digest = upload(s3, "heir", peft_adapter), digest_of(peft_adapter)
    async with AsyncExitStack() as stack:
        heir = await start(stack, folder, "b", s3, proxy, base_model)
        dying = await start(stack, folder, "a", s3, proxy, base_model)
        dying.channel.post(PrepareAdapter("x/one@0", uri, digest=digest, credential="k"))
        await until_read(proxy, 1)
        heir.channel.post(PrepareAdapter("x/two@0", uri, digest=digest, credential="k"))
        dying.process.kill()
        await dying.process.wait()
        gate.opened.set()
        assert prepared(await heir.answer("x/two@0")).digest == digest


async def test_no_more_adapters_are_fetched_at_a_time_than_allowed(
    folder: Path, s3: S3, proxy: FaultProxy, gate: Gate, base_model: Path, peft_adapter: Path
) -> None:
    names = [f"cold-{number}" for number in range(6)]
    adapters = [
        with_config(peft_adapter, folder / name, lora_alpha=3 + number)
        for number, name in enumerate(names)
    ]
    uris = [upload(s3, name, adapter) for name, adapter in zip(names, adapters, strict=True)]
    async with AsyncExitStack() as stack:
        loader = await start(stack, folder, "a", s3, proxy, base_model)
        for name, uri in zip(names, uris, strict=True):
            loader.channel.post(PrepareAdapter(name, uri, credential="k"))
        await until_read(proxy, 2)
        # When the model is answered again, every wish before it has had its turn.
        await loader.prepare_model(base_model.as_uri())
        assert proxy.gets_of(CONFIG) == 2
        gate.opened.set()
        answers = [prepared(await loader.answer(name)) for name in names]
    assert len({answer.digest for answer in answers}) == len(names)
    assert gate.most == 2
