"""Who may use an adapter, and how much of a pod its namespace may have."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import pytest

from graft_protocol.config import ModelSettings, RuntimeConfig, ServiceIdentity
from graft_protocol.desired import AdapterEntry, TenantLimits, key_hash
from graft_protocol.revisions import RUNTIME_NAMESPACE, pinned_revision
from graft_runtime.adapters.manager import AdapterManager
from graft_runtime.adapters.revision import Phase
from graft_runtime.errors import ModelNotFoundError, OverloadedError, RequestError
from graft_runtime.ipc.messages import EngineReady, Sampling, Submit, ToEngine, TokenOutput
from graft_runtime.pod.gateway import Gateway
from graft_runtime.pod.state import PodState
from graft_runtime.server.backend import TokenChunk
from graft_runtime.server.caller import set_caller

KEY, OTHER = "a-key-of-some-length", "another-key-of-some-length"
DEADLINE_SECONDS = 20.0
DIGEST = "sha256:" + "ab" * 32


def entry(name: str, namespace: str = "team", **fields: Any) -> AdapterEntry:
    return AdapterEntry(
        revision=pinned_revision(namespace, name, DIGEST),
        served_name=name,
        uri=f"s3://bucket/{name}",
        digest=DIGEST,
        **fields,
    )


class Pod:
    """A gateway over adapters that serve, and what it has posted to the engine."""

    def __init__(self, entries: Iterable[AdapterEntry]) -> None:
        self.posted: list[ToEngine] = []
        self.running: list[asyncio.Future[TokenChunk]] = []
        manager = AdapterManager("pod", 1.0)
        manager.set_desired(entries, 0.0)
        for revision in manager.revisions():
            revision.phase = Phase.SERVING
        config = RuntimeConfig(
            service=ServiceIdentity(namespace="default", name="tiny"),
            model=ModelSettings(served_name="base", uri="file:///models/base"),
        )
        state = PodState(engine=EngineReady(64, 100, 16, 8, 8), has_text=True, synced=True)
        self.manager = manager
        self.state = state
        self.gateway = Gateway(config, state, manager, self.posted.append, "pod")

    def names(self) -> list[str]:
        return [model.name for model in self.gateway.models()]

    async def begin(self, name: str, request_id: str) -> AsyncGenerator[TokenChunk, None]:
        """Ask, and return as soon as the engine has been told."""
        target = self.gateway.resolve(name)
        chunks = self.gateway.generate(request_id, [1, 2], Sampling(max_tokens=2), target)
        before = len(self.posted)
        first = asyncio.ensure_future(anext(chunks))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(self.posted) == before and not first.done():
                await asyncio.sleep(0)
        if first.done():
            await first
        self.running.append(first)
        return chunks

    def hold(self, name: str, request_id: str) -> asyncio.Future[TokenChunk]:
        """Ask, while the engine cannot take a request."""
        target = self.gateway.resolve(name)
        chunks = self.gateway.generate(request_id, [1, 2], Sampling(max_tokens=2), target)
        return asyncio.ensure_future(anext(chunks))

    async def counted(self, number: int) -> None:
        """Wait until so many requests are in flight."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(self.gateway.streams) != number:
                await asyncio.sleep(0)

    def end(self, request_id: str, **fields: Any) -> None:
        self.gateway.streams.deliver(TokenOutput(request_id, [1], **fields))


def with_key(key: str | None, *, header: bytes = b"authorization") -> None:
    value = f"Bearer {key}" if header == b"authorization" else str(key)
    set_caller([] if key is None else [(header, value.encode())])


@pytest.fixture
def pod() -> Pod:
    return Pod([entry("open"), entry("mine", access=(key_hash(KEY),)), entry("shut", access=())])


@pytest.mark.parametrize("header", [b"authorization", b"x-api-key"])
def test_a_key_opens_what_it_is_for(pod: Pod, header: bytes) -> None:
    with_key(KEY, header=header)
    assert pod.gateway.resolve("mine").revision == pinned_revision("team", "mine", DIGEST)
    assert pod.names() == ["base", "mine", "open"]


@pytest.mark.parametrize("key", [None, OTHER, KEY[:-1], ""])
def test_without_the_key_an_adapter_looks_as_if_it_did_not_exist(pod: Pod, key: str | None) -> None:
    with_key(key)
    answers = []
    for name in ("mine", "shut", "none"):
        with pytest.raises(ModelNotFoundError) as caught:
            pod.gateway.resolve(name)
        answers.append((str(caught.value).replace(name, "?"), caught.value.status))
    assert len(set(answers)) == 1
    assert pod.names() == ["base", "open"]
    assert pod.gateway.resolve("open").revision is not None


def test_a_removed_key_is_refused_from_the_next_request_on(pod: Pod) -> None:
    with_key(KEY)
    pod.gateway.resolve("mine")
    pod.manager.set_desired([entry("mine", access=(key_hash(OTHER),))], 1.0)
    with pytest.raises(ModelNotFoundError):
        pod.gateway.resolve("mine")


async def test_a_namespace_has_no_more_requests_in_flight_than_it_may() -> None:
    limits = TenantLimits(max_concurrent_requests=2, weight=3)
    pod = Pod(
        [
            entry("a", tenant=limits),
            entry("b", tenant=limits),
            entry("c", "other"),
        ]
    )
    with_key(None)
    first = await pod.begin("a", "r0")
    for number, name in enumerate(("b", "c"), start=1):
        await pod.begin(name, f"r{number}")
    with pytest.raises(OverloadedError) as refusal:
        await pod.begin("a", "r9")
    assert refusal.value.limit == 2
    submits = [message for message in pod.posted if isinstance(message, Submit)]
    assert [(one.tenant, one.tenant_weight) for one in submits] == [
        ("team", 3),
        ("team", 3),
        ("other", 1),
    ]
    pod.end("r0", finish_reason="stop")
    await pod.running[0]
    await first.aclose()
    await pod.counted(2)
    await pod.begin("a", "r10")


async def test_what_is_held_for_a_namespace_counts_and_leaves_the_queue_to_others() -> None:
    pod = Pod([entry("a", tenant=TenantLimits(max_concurrent_requests=2)), entry("b", "other")])
    pod.state.engine = None  # it is being restarted
    with_key(None)
    held = [pod.hold(name, f"r{number}") for number, name in enumerate(("a", "a", "b"))]
    await pod.counted(3)
    with pytest.raises(OverloadedError):
        await pod.hold("a", "r9")
    held.append(pod.hold("b", "r10"))
    await pod.counted(4)
    held[0].cancel()
    await pod.counted(3)
    held.append(pod.hold("a", "r11"))
    await pod.counted(4)
    for one in held:
        one.cancel()
    await pod.counted(0)
    assert pod.gateway.streams.num_of_tenant("team") == 0
    assert pod.posted == []


async def test_a_held_request_counts_for_the_namespace_that_its_name_has_come_to() -> None:
    limits = TenantLimits(max_concurrent_requests=2)
    pod = Pod([entry("voice", RUNTIME_NAMESPACE), entry("own", tenant=limits)])
    pod.state.engine = None  # it is being restarted
    with_key(None)
    held = [pod.hold("voice", "r0"), pod.hold("voice", "r1"), pod.hold("own", "r2")]
    await pod.counted(3)
    streams = pod.gateway.streams
    assert (streams.num_of_tenant(RUNTIME_NAMESPACE), streams.num_of_tenant("team")) == (2, 1)

    pod.manager.set_desired([entry("voice", tenant=limits), entry("own", tenant=limits)], 1.0)
    for revision in pod.manager.revisions():
        revision.phase = Phase.SERVING
    pod.state.engine = EngineReady(64, 100, 16, 8, 8)
    pod.state.notify()

    await pod.counted(2)
    assert (streams.num_of_tenant(RUNTIME_NAMESPACE), streams.num_of_tenant("team")) == (0, 2)
    done, waiting = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    assert isinstance(refused.exception(), OverloadedError)
    for one in waiting:
        one.cancel()
    await pod.counted(0)
    assert streams.num_of_tenant("team") == 0


async def test_what_failed_by_the_servers_fault_is_counted_and_nothing_else() -> None:
    pod = Pod([entry("a"), entry("b")])
    with_key(None)
    ends: list[dict[str, Any]] = [
        {"finish_reason": "stop"},
        {"finish_reason": "error", "error": "NaN"},
        {"finish_reason": "error", "error": "too long", "is_impossible": True},
    ]
    for number, end in enumerate(ends):
        chunks = await pod.begin("a", f"r{number}")
        pod.end(f"r{number}", **end)
        await asyncio.wait([pod.running[-1]])
        with contextlib.suppress(RequestError):
            pod.running[-1].result()
        await chunks.aclose()
    reports = {report.revision: report for report in pod.gateway.status().revisions}
    a, b = (reports[pinned_revision("team", name, DIGEST)] for name in ("a", "b"))
    assert (a.requests, a.errors) == (3, 1)
    assert (b.requests, b.errors) == (0, 0)
