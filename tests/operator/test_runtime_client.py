"""Reading reports from pods that answer, refuse, lie or hang."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from graft_operator.errors import RuntimeUnreachableError
from graft_operator.reconcile.pods import Endpoint, PodPoller, ReportChange
from graft_operator.resources.meta import ObjectKey
from graft_operator.runtime_client import RuntimeClient
from graft_operator.settings import ControlSettings
from graft_protocol.naming import LASTING_HEADER, UNLESS_LASTING_HEADER
from graft_protocol.status import LoadReport, lasting_hash
from tests.support.fake_runtime import Answer, serve_with
from tests.support.objects import revision_report, status_report

POD = ObjectKey("Pod", "default", "tiny-0")
DEADLINE_SECONDS = 5.0


@asynccontextmanager
async def pod_answering(answer: Callable[[str, dict[str, str]], Answer]) -> AsyncIterator[str]:
    async with listening(serve_with(answer)) as url:
        yield url


@asynccontextmanager
async def listening(handle: Callable[..., Any]) -> AsyncIterator[str]:
    """Serve connections, and at the end wait until all of them are closed."""
    connections: set[asyncio.Task[Any]] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        await handle(reader, writer)
        await writer.wait_closed()

    server = await asyncio.start_server(tracked, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        if connections:
            await asyncio.wait(connections, timeout=DEADLINE_SECONDS)


@asynccontextmanager
async def reading() -> AsyncIterator[RuntimeClient]:
    client = RuntimeClient(timeout_seconds=0.5)
    try:
        yield client
    finally:
        await client.close()


async def test_an_unchanged_report_is_not_sent_again() -> None:
    asked: list[str | None] = []

    def answer(path: str, headers: dict[str, str]) -> Answer:
        assert (path, headers["authorization"]) == ("/internal/status", "Bearer token")
        asked.append(headers.get("if-none-match"))
        if asked[-1] == '"v1"':
            return 304, {}, b""
        return 200, {"ETag": '"v1"'}, status_report().to_json().encode()

    async with pod_answering(answer) as url, reading() as client:
        first = await client.read(url, "token", None)
        assert await client.read(url, "token", first) is first
    assert asked == [None, '"v1"']


async def test_counters_alone_bring_a_report_again_only_where_they_are_needed() -> None:
    count = 0

    def answer(_path: str, headers: dict[str, str]) -> Answer:
        nonlocal count
        count += 1
        report = revision_report("team-a/loud@111111111111", requests=count)
        status = status_report(revisions=[report], load=LoadReport(running=count))
        tags = {LASTING_HEADER: lasting_hash(status)}
        if headers.get(UNLESS_LASTING_HEADER) == tags[LASTING_HEADER]:
            return 304, tags, b""
        return 200, tags, status.to_json().encode()

    async with pod_answering(answer) as url, reading() as client:
        first = await client.read(url, "t", None)
        assert await client.read(url, "t", first, counts=False) is first
        again = await client.read(url, "t", first)
    assert again.status.revisions[0].requests == 3


async def test_what_two_pods_say_alike_of_an_adapter_is_kept_once() -> None:
    def answer(path: str, _headers: dict[str, str]) -> Answer:
        report = revision_report("team-a/loud@111111111111", bytes=len(path))
        return 200, {}, status_report(revisions=[report]).to_json().encode()

    async with pod_answering(answer) as url, reading() as client:
        one, other = [await client.read(url, "t", None) for _ in range(2)]
    assert one.status.revisions[0] is other.status.revisions[0]


@pytest.mark.parametrize(
    ("code", "body"), [(401, b""), (500, b"{}"), (200, b"not json"), (200, b'{"version": 1}')]
)
async def test_what_is_no_report_counts_as_no_answer(code: int, body: bytes) -> None:
    async with pod_answering(lambda _path, _headers: (code, {}, body)) as url, reading() as client:
        with pytest.raises(RuntimeUnreachableError):
            await client.read(url, "t", None)


async def test_nobody_there_and_nobody_answering_are_both_no_answer() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with reading() as client:
        async with listening(hang) as url:
            with pytest.raises(RuntimeUnreachableError, match="Timeout"):
                await client.read(url, "t", None)
        with pytest.raises(RuntimeUnreachableError, match="ClientConnectorError"):
            await client.read(url, "t", None)


class Pod:
    """A pod whose answers a test decides, and the poller that follows it."""

    def __init__(self) -> None:
        self.hash = "s1"
        self.is_silent = False
        self.asked = 0
        self.changes: list[ReportChange] = []

    def answer(self, _path: str, _headers: dict[str, str]) -> Answer:
        self.asked += 1
        if self.is_silent:
            return 503, {}, b""
        return 200, {}, status_report(set_hash=self.hash).to_json().encode()

    @asynccontextmanager
    async def followed(self, idle_seconds: float) -> AsyncIterator[PodPoller]:
        quick = ControlSettings(poll_busy_seconds=0.005, unreachable_seconds=0.05)
        settings = replace(quick, poll_idle_seconds=idle_seconds)
        async with pod_answering(self.answer) as url, reading() as client:
            poller = PodPoller(
                client,
                settings,
                locate=lambda _: Endpoint(url, "t"),
                expected_hash=lambda _: "s1",
                on_change=self.changes.append,
            )
            poller.follow(POD, "1")
            try:
                yield poller
            finally:
                await poller.stop()

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not what():
                await asyncio.sleep(0)


async def test_a_pod_that_falls_silent_loses_its_report_after_a_while() -> None:
    pod = Pod()
    async with pod.followed(idle_seconds=0.005) as poller:
        await pod.until(lambda: poller.report(POD) is not None)
        pod.is_silent = True
        asked = pod.asked
        await pod.until(lambda: pod.asked > asked)
        assert poller.report(POD) is not None
        await pod.until(lambda: poller.report(POD) is None)
        assert pod.changes[-1].now is None
        pod.is_silent = False
        await pod.until(lambda: poller.report(POD) is not None)


async def test_a_pod_in_its_wanted_state_is_left_in_peace_until_it_is_asked_for() -> None:
    pod = Pod()
    async with pod.followed(idle_seconds=3600) as poller:
        await pod.until(lambda: poller.report(POD) is not None)
        for _ in range(50):
            await asyncio.sleep(0)
        assert pod.asked == 1
        poller.ask_soon(POD)
        await pod.until(lambda: pod.asked == 2)


async def test_a_pod_behind_its_set_is_asked_often() -> None:
    pod = Pod()
    pod.hash = "older"
    async with pod.followed(idle_seconds=3600) as poller:
        await pod.until(lambda: pod.asked >= 5)
        pod.hash = "s1"
        await pod.until(lambda: (r := poller.report(POD)) is not None and r.set_hash == "s1")
    assert [change.now.set_hash for change in pod.changes if change.now] == ["older", "s1"]


async def test_what_a_process_said_is_void_once_another_has_taken_its_place() -> None:
    pod = Pod()
    async with pod.followed(idle_seconds=3600) as poller:
        await pod.until(lambda: poller.report(POD) is not None)
        poller.follow(POD, "2")
        assert poller.report(POD) is None
        await pod.until(lambda: poller.report(POD) is not None)
