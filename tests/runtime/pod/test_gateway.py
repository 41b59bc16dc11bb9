"""Requests between a surface and the engine: deadlines, terms, what is given back."""

from __future__ import annotations

import asyncio

import pytest

from graft_protocol.config import EngineSettings, ModelSettings, RuntimeConfig, ServiceIdentity
from graft_protocol.reasons import Reason
from graft_protocol.status import ProgressReport
from graft_runtime.adapters.manager import AdapterManager
from graft_runtime.errors import DeadlineError, OverloadedError
from graft_runtime.ipc.messages import (
    Abort,
    EngineReady,
    Sampling,
    Submit,
    ToEngine,
    TokenOutput,
)
from graft_runtime.pod.gateway import Gateway
from graft_runtime.pod.state import PodState
from graft_runtime.server.backend import Target, Terms

BASE = Target("tiny", None)
SAMPLING = Sampling(max_tokens=4)


class Pod:
    """A gateway without processes behind it."""

    def __init__(self, *, is_up: bool = True, **engine: int) -> None:
        config = RuntimeConfig(
            service=ServiceIdentity(namespace="ns", name="tiny"),
            model=ModelSettings(served_name="tiny", uri="file:///model"),
            engine=EngineSettings(**engine),
        )
        self.state = PodState()
        if is_up:
            self.state.engine = EngineReady(64, 100, 16, 10, 1)
        self.posted: list[ToEngine] = []
        self.gateway = Gateway(
            config, self.state, AdapterManager("pod", 1.0), self.posted.append, "pod"
        )


async def test_a_request_ends_at_its_deadline_and_is_aborted() -> None:
    pod = Pod()
    terms = Terms(timeout_seconds=0.05)
    with pytest.raises(DeadlineError):
        async for _ in pod.gateway.generate("r", [1, 2], SAMPLING, BASE, terms):
            pass
    assert [type(message) for message in pod.posted] == [Submit, Abort]
    assert len(pod.gateway.streams) == 0


async def test_a_request_that_is_held_ends_at_its_deadline_and_was_never_sent() -> None:
    pod = Pod(is_up=False)
    terms = Terms(timeout_seconds=0.05)
    with pytest.raises(DeadlineError):
        async for _ in pod.gateway.generate("r", [1, 2], SAMPLING, BASE, terms):
            pass
    assert pod.posted == []
    assert len(pod.gateway.streams) == 0


async def test_requests_that_are_held_count_as_waiting() -> None:
    pod = Pod(is_up=False, max_running=1, max_waiting=1)
    chunks = [pod.gateway.generate(f"r{number}", [1], SAMPLING, BASE) for number in range(2)]
    first = [asyncio.ensure_future(anext(each)) for each in chunks]
    while len(pod.gateway.streams) < 2:
        await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        pod.gateway.check_admission(5)
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)
    assert len(pod.gateway.streams) == 0


async def test_the_terms_of_a_request_reach_the_engine() -> None:
    pod = Pod()
    terms = Terms(priority=3, cache_salt="pepper")
    chunks = pod.gateway.generate("r", [1, 2], SAMPLING, BASE, terms)
    first = asyncio.ensure_future(anext(chunks))
    while not pod.posted:
        await asyncio.sleep(0)
    (submit,) = pod.posted
    assert isinstance(submit, Submit)
    assert (submit.priority, submit.cache_salt, submit.tenant) == (3, "pepper", "")
    pod.gateway.streams.deliver(TokenOutput("r", [7], finish_reason="stop"))
    assert (await first).token_ids == (7,)
    await chunks.aclose()
    assert len(pod.posted) == 1, "what has ended is not aborted"


def test_the_probes_tell_how_far_the_start_has_come() -> None:
    pod = Pod(is_up=False)
    assert pod.gateway.health().detail == "Starting"
    pod.state.progress = ProgressReport(phase="downloading model", done_bytes=3, total_bytes=7)
    assert pod.gateway.health().detail == "downloading model: 3 of 7 bytes"
    pod.state.progress = ProgressReport(phase="starting engine")
    assert pod.gateway.health().detail == "starting engine"
    pod.state.failure = (Reason.SOURCE_NOT_FOUND, "there is no such bucket")
    assert pod.gateway.health().detail == "there is no such bucket"
