"""Keeps the last report of every runtime pod, by asking each at its own pace.

P pods cost P small requests however many adapters there are. Called by the controller; it decides
nothing but when to ask again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from graft_operator.errors import RuntimeUnreachableError
from graft_operator.reconcile.queue import Backoff
from graft_operator.resources.meta import ObjectKey
from graft_operator.runtime_client import Report, RuntimeClient
from graft_operator.settings import ControlSettings
from graft_protocol.status import RuntimeStatus

log = logging.getLogger(__name__)


class Endpoint(NamedTuple):
    """Where a pod reports, and the token that opens it."""

    url: str
    token: str
    counts: bool = True
    """Whether somebody needs its counters of requests as they are now."""


class ReportChange(NamedTuple):
    """What a pod said before and says now; None while it does not answer."""

    pod: ObjectKey
    before: RuntimeStatus | None
    now: RuntimeStatus | None


Locate = Callable[[ObjectKey], Endpoint | None]
ExpectedHash = Callable[[ObjectKey], str]


@dataclass
class _Followed:
    incarnation: str
    task: asyncio.Task[None] | None = None
    report: Report | None = None
    kick: asyncio.Event = field(default_factory=asyncio.Event)
    is_settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it has answered, or has been silent long enough to count as unreachable."""


class PodPoller:
    """One small task per pod."""

    def __init__(
        self,
        client: RuntimeClient,
        settings: ControlSettings,
        *,
        locate: Locate,
        expected_hash: ExpectedHash,
        on_change: Callable[[ReportChange], None],
    ) -> None:
        """Make a poller.

        Args:
            client: Reads reports.
            settings: Paces.
            locate: Returns where a pod reports, None while that is unknown.
            expected_hash: Returns the set that a pod ought to have.
            on_change: Called when a report changed.
        """
        self._client = client
        self._settings = settings
        self._locate = locate
        self._expected_hash = expected_hash
        self._on_change = on_change
        self._followed: dict[ObjectKey, _Followed] = {}

    def follow(self, pod: ObjectKey, incarnation: str) -> None:
        """Ask a pod from now on; if it is followed already, ask it at once.

        Args:
            pod: Whom to ask.
            incarnation: Changes when the pod's process does: what the one before said is void.
        """
        followed = self._followed.get(pod)
        if followed is not None:
            if followed.incarnation != incarnation:
                followed.incarnation = incarnation
                followed.report = None
            followed.kick.set()
            return
        followed = _Followed(incarnation)
        self._followed[pod] = followed
        followed.task = asyncio.create_task(self._poll(pod, followed), name=f"poll {pod.name}")

    def ask_soon(self, pod: ObjectKey) -> None:
        """Ask a followed pod at once."""
        if pod in self._followed:
            self._followed[pod].kick.set()

    def forget(self, pod: ObjectKey) -> None:
        """Stop asking a pod."""
        followed = self._followed.pop(pod, None)
        if followed is not None and followed.task is not None:
            followed.task.cancel()
            followed.is_settled.set()

    def report(self, pod: ObjectKey) -> RuntimeStatus | None:
        """Return what a pod last said; None while it does not answer."""
        followed = self._followed.get(pod)
        return followed.report.status if followed and followed.report else None

    async def settled(self, pods: Iterable[ObjectKey]) -> None:
        """Wait until each of these has answered, or counts as unreachable."""
        for followed in [self._followed[pod] for pod in pods if pod in self._followed]:
            await followed.is_settled.wait()

    async def stop(self) -> None:
        """Stop asking anyone."""
        tasks = [followed.task for followed in self._followed.values() if followed.task]
        self._followed.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self, pod: ObjectKey, followed: _Followed) -> None:
        loop = asyncio.get_running_loop()
        answered, failures = loop.time(), 0
        while True:
            report, incarnation = followed.report, followed.incarnation
            endpoint = self._locate(pod)
            if endpoint is not None:
                try:
                    report = await self._client.read(
                        endpoint.url, endpoint.token, report, counts=endpoint.counts
                    )
                    answered, failures = loop.time(), 0
                except RuntimeUnreachableError as error:
                    failures += 1
                    log.debug("%s: %s", pod, error)
            is_silent = loop.time() - answered > self._settings.unreachable_seconds
            if incarnation != followed.incarnation:
                failures = 0
                continue
            self._take_in(pod, followed, None if is_silent else report)
            if is_silent or report is not None:
                followed.is_settled.set()
            followed.kick.clear()
            pause = self._pause(pod, followed.report, failures)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(followed.kick.wait(), pause)

    def _take_in(self, pod: ObjectKey, followed: _Followed, report: Report | None) -> None:
        before = followed.report.status if followed.report else None
        now = report.status if report else None
        followed.report = report
        if now != before:
            self._on_change(ReportChange(pod, before, now))

    def _pause(self, pod: ObjectKey, report: Report | None, failures: int) -> float:
        settings, num_pods = self._settings, len(self._followed)
        expected = self._expected_hash(pod)
        idle = max(settings.poll_idle_seconds, num_pods / settings.polls_idle_per_second)
        if report is not None and report.is_settled and report.status.set_hash == expected:
            return idle
        busy = max(settings.poll_busy_seconds, num_pods / settings.polls_busy_per_second)
        # Who gives no report is asked ever more seldom; a change of the pod has it asked at once.
        return Backoff(busy, idle).pause(max(failures, 1))
