"""Several generations of one request as one stream, in the order in which output comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from graft_runtime.server.exchange import stop

T = TypeVar("T")


async def merge(
    sources: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """Yield each source's items with its index. Closing this closes all; an error ends all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for item in source:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()
    pumps = [
        asyncio.create_task(_pump(index, source, queue)) for index, source in enumerate(sources)
    ]
    try:
        open_sources = len(sources)
        while open_sources:
            entry = await queue.get()
            if entry is None:
                open_sources -= 1
            elif isinstance(entry, BaseException):
                raise entry
            else:
                yield entry
    finally:
        await stop(*pumps)


async def _pump(
    index: int,
    source: AsyncGenerator[T, None],
    queue: asyncio.Queue[tuple[int, T] | BaseException | None],
) -> None:
    try:
        async with aclosing(source) as items:
            async for item in items:
                queue.put_nowait((index, item))
    except Exception as error:  # noqa: BLE001 - raised where the items are read
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
