"""Runs a generation no longer than its client stays and its deadline allows.

Both kinds of answer, whole and streamed, go through `watch`; the routes and `sse` call it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from graft_runtime.errors import DeadlineError
from graft_runtime.server.context import Exchange

T = TypeVar("T")

SLOW_READER_SECONDS: Final = 30.0
"""How long a client may read nothing of a stream that waits for it, on every surface."""


async def watch(
    exchange: Exchange, receive: Receive, work: Coroutine[Any, Any, T], *, timeout_seconds: float
) -> T:
    """Return the work's result, or cancel it as soon as nobody waits for it.

    The reason for a cancellation stands in the exchange before it is delivered.

    Args:
        exchange: Whose work this is.
        receive: The connection; its body has been read.
        work: What to run.
        timeout_seconds: Counted from the exchange's arrival.

    Raises:
        ClientDisconnect: The client left.
        DeadlineError: The time is over.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        remaining = max(0.0, timeout_seconds - exchange.elapsed())
        await asyncio.wait({working, gone}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        exchange.abort_reason = "client_disconnect" if gone.done() else "deadline"
    except asyncio.CancelledError:
        exchange.abort_reason = "shutdown"
        raise
    finally:
        await stop(working, gone)
    if exchange.abort_reason == "client_disconnect":
        raise ClientDisconnect
    raise DeadlineError(f"the request took longer than {timeout_seconds:g} seconds")


async def within(exchange: Exchange, work: Awaitable[T], *, timeout_seconds: float) -> T:
    """Return the work's result, or cancel it when its time is over or the caller is cancelled.

    Args:
        exchange: Whose work this is; its abort reason is the caller's to set before it cancels.
        work: What to run.
        timeout_seconds: From now.

    Raises:
        DeadlineError: The time is over.
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({working}, timeout=max(0.0, timeout_seconds))
        if working.done():
            return working.result()
        exchange.abort_reason = "deadline"
    finally:
        await stop(working)
    raise DeadlineError("the request took longer than allowed")


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have cleaned up; what they raise is of no interest."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
