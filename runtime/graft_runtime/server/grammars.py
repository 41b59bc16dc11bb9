"""The server's side of the grammar checker: constraints become grammars in processes of their own.

A constraint is a small program that a client sends. It is tried out where it can neither stall the
server or a step nor take their memory: what kills its process, or takes too long, is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from graft_runtime.errors import InvalidRequestError, NotReadyError, OverloadedError
from graft_runtime.ipc.trial import TrialFailedError, TrialProcesses, TrialStartError
from graft_runtime.sampling.constraint import Constraint
from graft_runtime.sampling.grammar_worker import Verdict

MAX_WAITING: Final = 64
MAX_CACHED: Final = 512
MAX_CACHED_CHARS: Final = 4 * 2**20


class GrammarChecker:
    """Checks constraints, one process each at a time, and remembers the verdicts."""

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        """Start nothing yet: many servers are never asked.

        Args:
            folder: Returns the base model's folder, None until it is on disk.
        """
        self._folder = folder
        self._processes = TrialProcesses(Verdict)
        self._cache: OrderedDict[Constraint, Verdict] = OrderedDict()
        self._pending: dict[Constraint, asyncio.Task[Verdict]] = {}

    async def check(self, constraint: Constraint, param: str) -> str:
        """Return the grammar of a constraint.

        Args:
            constraint: What was asked.
            param: The field that asked for it, for errors.

        Raises:
            InvalidRequestError: It is malformed, not supported, or needs too much time or memory.
            OverloadedError: Too many others are waiting to be checked.
            NotReadyError: No checker can be started now.
        """
        verdict = self._cache.get(constraint)
        if verdict is None:
            verdict = await asyncio.shield(self._begin(constraint))
        else:
            self._cache.move_to_end(constraint)
        if verdict.error is not None:
            raise InvalidRequestError(f"`{param}` cannot be used: {verdict.error}", param=param)
        return verdict.text

    async def close(self) -> None:
        """End all processes."""
        for task in list(self._pending.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, NotReadyError):
                await task
        await self._processes.close()

    def _begin(self, constraint: Constraint) -> asyncio.Task[Verdict]:
        """Return the one check of a constraint, whoever else has asked for the same."""
        task = self._pending.get(constraint)
        if task is None:
            if len(self._pending) >= MAX_WAITING:
                message = "too many output forms are waiting to be checked"
                raise OverloadedError(message, retry_after_seconds=1)
            task = asyncio.create_task(self._run(constraint))
            self._pending[constraint] = task
            task.add_done_callback(lambda _: self._pending.pop(constraint))
        return task

    async def _run(self, constraint: Constraint) -> Verdict:
        folder = self._folder()
        if folder is None:
            raise NotReadyError("the model is still being fetched", retry_after_seconds=5)
        try:
            verdict = await self._processes.ask(("grammar", str(folder)), constraint)
        except TrialFailedError as error:
            verdict = Verdict(error=str(error))
        except TrialStartError as error:
            message = "output forms cannot be checked now"
            raise NotReadyError(message, retry_after_seconds=5) from error
        self._cache[constraint] = verdict
        while len(self._cache) > MAX_CACHED or self._cached_chars() > MAX_CACHED_CHARS:
            self._cache.popitem(last=False)
        return verdict

    def _cached_chars(self) -> int:
        return sum(len(each.value) + len(verdict.text) for each, verdict in self._cache.items())
