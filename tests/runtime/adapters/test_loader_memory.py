"""A loader that runs for months remembers nothing of what is gone."""

import asyncio
import gc
from pathlib import Path
from typing import cast

from graft_runtime.adapters.loader import Loader
from graft_runtime.ipc.channel import AsyncChannel
from graft_runtime.ipc.messages import (
    AdapterRefused,
    FromLoader,
    PrepareAdapter,
    ReleaseAdapter,
    Shutdown,
    ToLoader,
)
from tests.support.loader_process import loader_told

COUNT = 500


class Channel:
    """The loader's end of a channel whose other end is the test."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[ToLoader] = asyncio.Queue()
        self.answers: asyncio.Queue[FromLoader] = asyncio.Queue()

    def post(self, message: FromLoader) -> None:
        self.answers.put_nowait(message)

    async def receive(self) -> ToLoader:
        return await self.told.get()


def sizes(loader: Loader) -> dict[str, int]:
    gc.collect()
    return {name: len(table) for name, table in vars(loader).items() if hasattr(table, "__len__")}


async def test_revisions_that_fail_and_are_released_leave_nothing(tmp_path: Path) -> None:
    channel = Channel()
    typed = cast("AsyncChannel[ToLoader, FromLoader]", channel)
    loader = Loader(loader_told(tmp_path, {}), typed)
    before = sizes(loader)
    running = asyncio.create_task(loader.run())
    async with asyncio.timeout(60):
        for number in range(COUNT):
            channel.told.put_nowait(PrepareAdapter(f"a{number}", f"pvc://claim-{number}/nothing"))
        refused = set[str]()
        while len(refused) < COUNT:
            answer = await channel.answers.get()
            if isinstance(answer, AdapterRefused):
                refused.add(answer.revision)
        for name in sorted(refused):
            channel.told.put_nowait(ReleaseAdapter(name))
        channel.told.put_nowait(Shutdown())
        await running
    assert sizes(loader) == before
