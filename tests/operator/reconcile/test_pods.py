"""What is known of pods: from the first question on, and while one does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from graft_operator.errors import RuntimeUnreachableError
from graft_operator.reconcile.pods import Endpoint, PodPoller, ReportChange
from graft_operator.resources.meta import ObjectKey
from graft_operator.runtime_client import Report, RuntimeClient
from graft_operator.settings import ControlSettings
from graft_protocol.reasons import EngineState
from graft_protocol.status import ModelReport, RuntimeStatus

POD = ObjectKey("Pod", "default", "tiny-0")
QUICK = ControlSettings(poll_busy_seconds=0.001, poll_idle_seconds=0.001, unreachable_seconds=30.0)
DEADLINE_SECONDS = 30.0


class ScriptedClient(RuntimeClient):
    """Fails a number of times before it answers; never goes near a network."""

    def __init__(self, failures: float) -> None:
        self.failures = failures
        self.asked = 0

    async def read(
        self, base_url: str, token: str, known: Report | None, *, counts: bool = True
    ) -> Report:
        self.asked += 1
        if self.asked <= self.failures:
            raise RuntimeUnreachableError("scripted")
        status = RuntimeStatus(
            version="1",
            pod=POD.name,
            model=ModelReport(served_name="tiny", uri="s3://models/tiny"),
            state=EngineState.READY,
            ready=True,
        )
        return Report(status, None)


@asynccontextmanager
async def polling(
    client: ScriptedClient, settings: ControlSettings = QUICK, *, unlocated: int = 0
) -> AsyncIterator[PodPoller]:
    """Follow one pod, whose address becomes known after some questions only."""
    asked = 0

    def locate(_: ObjectKey) -> Endpoint | None:
        nonlocal asked
        asked += 1
        return Endpoint("http://pod", "token") if asked > unlocated else None

    changes: list[ReportChange] = []
    poller = PodPoller(
        client, settings, locate=locate, expected_hash=lambda _: "", on_change=changes.append
    )
    poller.follow(POD, "1")
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield poller
    finally:
        await poller.stop()


async def test_a_pod_is_settled_by_its_first_answer_and_not_by_a_question_in_vain() -> None:
    client = ScriptedClient(failures=3)
    async with polling(client) as poller:
        await poller.settled([POD])
        assert client.asked == 4
        assert poller.report(POD) is not None


async def test_a_pod_whose_address_is_not_known_yet_is_waited_for() -> None:
    async with polling(ScriptedClient(failures=0), unlocated=3) as poller:
        await poller.settled([POD])
        assert poller.report(POD) is not None


async def test_a_pod_that_stays_silent_is_settled_as_unreachable() -> None:
    settings = replace(QUICK, unreachable_seconds=0.05)
    async with polling(ScriptedClient(failures=float("inf")), settings) as poller:
        await poller.settled([POD])
        assert poller.report(POD) is None


async def test_a_pod_that_goes_away_holds_nobody_up() -> None:
    async with polling(ScriptedClient(failures=float("inf"))) as poller:
        waiting = asyncio.create_task(poller.settled([POD]))
        await asyncio.sleep(0)
        poller.forget(POD)
        await waiting


async def test_a_pod_that_gives_no_report_is_asked_ever_more_seldom() -> None:
    settings = replace(QUICK, poll_idle_seconds=3600.0, unreachable_seconds=0.5)
    client = ScriptedClient(failures=float("inf"))
    async with polling(client, settings) as poller:
        await poller.settled([POD])
    # 1, 2, 4 ms and so on; without an end to the first pause there would be some hundred.
    assert client.asked <= 11
