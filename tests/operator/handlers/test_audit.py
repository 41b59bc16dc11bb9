"""The audit beside the watches: what races with a list, what a watch owes, when it is dead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_operator.cluster.base import Change
from graft_operator.cluster.kubernetes import KubernetesCluster, Listing, version_of
from graft_operator.cluster.kubernetes_access import Access
from graft_operator.cluster.kubernetes_client import KubernetesClient
from graft_operator.cluster.kubernetes_kinds import Kind, kind_named
from graft_operator.errors import DeadWatchError
from graft_operator.handlers.audit import Stream, WatchAudit
from graft_operator.metrics import OperatorMetrics
from graft_operator.reconcile.cache import ObjectCache
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_operator.settings import OperatorSettings
from tests.support.kube_api import Fault, KubeApi, kube_api
from tests.support.kube_store import Json

SHOUT = ObjectKey("LoraAdapter", "default", "shout")
ADAPTERS = kind_named("LoraAdapter")


class InterruptedCluster(KubernetesCluster):
    """Lets something happen between a list's making and its arrival."""

    meanwhile: Callable[[], None] | None = None

    async def listing(self, kind: Kind, namespace: str | None) -> Listing:
        listing = await super().listing(kind, namespace)
        if self.meanwhile is not None and kind == ADAPTERS:
            self.meanwhile()
            self.meanwhile = None
        return listing


class Audited:
    """An audit over a fake API, with what it delivered."""

    def __init__(self, api: KubeApi, folder: Path, settings: OperatorSettings) -> None:
        access = Access(api.kubeconfig(folder), None)
        client = KubernetesClient(access, 5.0, 1, lambda _: None)
        self.api = api
        self.cluster = InterruptedCluster(client, settings)
        self.cache = ObjectCache()
        self.delivered: list[Change] = []
        metrics = OperatorMetrics()
        self.audit = WatchAudit(self.cluster, self.cache, self._take_in, metrics, settings)

    def _take_in(self, change: Change) -> None:
        if self.cache.observe(change):
            self.delivered.append(change)

    async def run_until(self, is_done: Callable[[], bool]) -> None:
        """Run the audit until something is so, or it gives up."""
        running = asyncio.create_task(self.audit.run())
        try:
            async with asyncio.timeout(10):
                while not is_done() and not running.done():
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        if not running.cancelled():
            running.result()


def lora(name: str = "shout") -> Json:
    return {"kind": "LoraAdapter", "metadata": {"name": name}, "spec": {}}


def seen(stored: Json) -> Manifest:
    return {**stored, "kind": "LoraAdapter"}


@pytest.fixture
async def audited(tmp_path: Path) -> AsyncIterator[Audited]:
    settings = OperatorSettings(page_size=2, audit_seconds=0.02, dead_watch_seconds=0.3)
    async with kube_api() as api:
        audited = Audited(api, tmp_path, settings)
        async with audited.cluster:
            yield audited


def lists(audited: Audited, plural: str = "pods") -> int:
    """Count complete rounds: pods are listed last."""
    return sum(call.verb == "list" and call.plural == plural for call in audited.api.calls)


async def test_everything_is_known_after_the_first_lists(audited: Audited) -> None:
    for name in ("a", "b", "c", "d", "e"):
        audited.api.create(lora(name))
    audited.api.faults.append(Fault("list", "loraadapters", 500, times=1, only_later_pages=True))
    await audited.audit.prime()
    assert len(audited.cache.keys("LoraAdapter")) == 5


async def test_what_is_deleted_while_a_list_is_on_its_way_stays_deleted(audited: Audited) -> None:
    stored = audited.api.create(lora())
    await audited.audit.prime()

    def delete() -> None:
        audited.api.delete("loraadapters", "shout")
        audited.audit.watched(Change("DELETED", seen(audited.api.store.events[-1].object)))

    audited.cluster.meanwhile = delete
    await audited.run_until(lambda: lists(audited) >= 3)
    assert audited.cache.get(SHOUT) is None
    assert [change.type for change in audited.delivered] == ["MODIFIED", "DELETED"]
    assert stored["metadata"]["uid"]


async def test_what_is_created_while_a_list_is_on_its_way_stays(audited: Audited) -> None:
    await audited.audit.prime()

    def create() -> None:
        audited.audit.watched(Change("ADDED", seen(audited.api.create(lora()))))

    audited.cluster.meanwhile = create
    await audited.run_until(lambda: lists(audited) >= 3)
    assert audited.cache.get(SHOUT) is not None
    assert [change.type for change in audited.delivered] == ["ADDED"]


async def test_what_vanished_unseen_is_delivered_as_deleted(audited: Audited) -> None:
    audited.api.create(lora())
    await audited.audit.prime()
    audited.api.delete("loraadapters", "shout")
    await audited.run_until(lambda: audited.cache.get(SHOUT) is None)
    assert audited.delivered[-1].type == "DELETED"


async def test_a_list_that_fails_on_its_last_page_removes_nothing(audited: Audited) -> None:
    for name in ("a", "b", "c"):
        audited.api.create(lora(name))
    await audited.audit.prime()
    audited.api.delete("loraadapters", "a")
    audited.api.create(lora("d"))
    audited.api.faults.append(Fault("list", "loraadapters", 500, only_later_pages=True))
    before = lists(audited)
    await audited.run_until(lambda: lists(audited) >= before + 3)
    names = sorted(key.name for key in audited.cache.keys("LoraAdapter"))
    assert names == ["a", "b", "c"]


async def test_a_watch_that_delivers_in_time_is_alive(audited: Audited) -> None:
    await audited.audit.prime()
    stored = audited.api.create(lora())
    await audited.run_until(lambda: audited.cache.get(SHOUT) is not None)
    audited.audit.watched(Change("ADDED", seen(stored)))
    end = asyncio.get_running_loop().time() + 0.6
    await audited.run_until(lambda: asyncio.get_running_loop().time() > end)


async def test_a_watch_that_never_delivers_is_dead(audited: Audited) -> None:
    await audited.audit.prime()
    audited.api.create(lora())
    with pytest.raises(DeadWatchError, match=r"loraadapters.*default/shout"):
        await audited.run_until(lambda: False)
    assert audited.cache.get(SHOUT) is not None


async def test_a_watch_that_misses_a_deletion_is_dead(audited: Audited) -> None:
    audited.audit.watched(Change("ADDED", seen(audited.api.create(lora()))))
    audited.api.delete("loraadapters", "shout")
    with pytest.raises(DeadWatchError, match=r"loraadapters.*default/shout"):
        await audited.run_until(lambda: False)


async def test_time_without_lists_is_not_held_against_a_watch(audited: Audited) -> None:
    await audited.audit.prime()
    audited.api.create(lora())
    await audited.run_until(lambda: audited.cache.get(SHOUT) is not None)
    audited.api.faults.append(Fault("list", "*", 503))
    end = asyncio.get_running_loop().time() + 0.6
    await audited.run_until(lambda: asyncio.get_running_loop().time() > end)


async def test_each_namespace_is_judged_by_its_own_watch(tmp_path: Path) -> None:
    async with kube_api() as api:
        settings = OperatorSettings(("a", "b"), audit_seconds=0.02, dead_watch_seconds=0.3)
        audited = Audited(api, tmp_path, settings)
        async with audited.cluster:
            await audited.audit.prime()
            api.create(lora(), "a")
            audited.audit.watched(Change("ADDED", seen(api.create(lora(), "b"))))
            with pytest.raises(DeadWatchError, match="loraadapters in a is dead"):
                await audited.run_until(lambda: False)


async def test_a_list_of_one_namespace_removes_nothing_of_another(tmp_path: Path) -> None:
    async with kube_api() as api:
        audited = Audited(api, tmp_path, OperatorSettings(("a", "b"), audit_seconds=0.02))
        async with audited.cluster:
            api.create(lora(), "b")
            await audited.audit.prime()
            await audited.run_until(lambda: lists(audited) >= 6)
        assert [change.type for change in audited.delivered] == ["MODIFIED"]


def close(api: KubeApi, namespace: str, *plurals: str) -> None:
    """Refuse every list in a namespace, or those of some kinds, as if its Role were gone."""
    for plural in plurals or ("*",):
        api.faults.append(Fault("list", plural, 403, namespace=namespace))


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Audited]:
    """Namespaces ``a``, ``b`` and the tenant's ``t``, each with an adapter; ``t`` is read last."""
    settings = OperatorSettings(("a", "b"), tenant_namespaces=("t",), audit_seconds=0.02)
    async with kube_api() as api:
        for namespace in ("a", "b", "t"):
            api.create({"kind": "Namespace", "metadata": {"name": namespace}})
        for namespace in ("b", "t"):
            api.create(lora(), namespace)
        audited = Audited(api, tmp_path, settings)
        async with audited.cluster:
            yield audited


def adapters_in(audited: Audited) -> set[str]:
    return {key.namespace for key in audited.cache.keys("LoraAdapter")}


async def waits_for_start(audited: Audited) -> None:
    """Have a start ask for the closed namespace twice, and see that it waits."""
    priming = asyncio.create_task(audited.audit.prime())
    try:
        async with asyncio.timeout(10):
            while sum(call.code == 403 and call.verb == "list" for call in audited.api.calls) < 2:
                assert not priming.done()
                await asyncio.sleep(0.01)
        assert not priming.done()
    finally:
        priming.cancel()
        await asyncio.gather(priming, return_exceptions=True)


async def test_a_namespace_that_does_not_exist_is_not_waited_for(
    three: Audited, caplog: pytest.LogCaptureFixture
) -> None:
    close(three.api, "a")
    three.api.delete("namespaces", "a", "")
    await three.audit.prime()
    assert adapters_in(three) == {"b", "t"}
    [told] = [record for record in caplog.messages if "does not exist" in record]
    assert told.startswith("namespace a ")


async def test_what_was_read_before_its_namespace_was_found_missing_is_gone(three: Audited) -> None:
    close(three.api, "b", "pods")
    three.api.delete("namespaces", "b", "")
    await three.audit.prime()
    assert adapters_in(three) == {"t"}
    assert [c.type for c in three.delivered if c.manifest["metadata"]["namespace"] == "b"] == [
        "MODIFIED",
        "DELETED",
    ]


async def test_a_namespace_that_comes_back_is_taken_up_again(three: Audited) -> None:
    close(three.api, "b")
    three.api.delete("namespaces", "b", "")
    await three.audit.prime()
    assert adapters_in(three) == {"t"}
    three.api.faults.clear()
    await three.run_until(lambda: adapters_in(three) == {"b", "t"})


async def test_a_namespace_that_exists_is_waited_for_and_holds_up_no_other_list(
    three: Audited,
) -> None:
    close(three.api, "a")
    await waits_for_start(three)
    assert adapters_in(three) == {"b", "t"}


@pytest.mark.parametrize("code", [401, 403, 500])
async def test_a_namespace_that_cannot_be_read_is_waited_for(three: Audited, code: int) -> None:
    close(three.api, "a")
    three.api.delete("namespaces", "a", "")
    three.api.faults.append(Fault("get", "namespaces", code))
    await waits_for_start(three)


KEYS = st.sampled_from([ObjectKey("LoraAdapter", "default", name) for name in "abc"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("owe"), KEYS, st.integers(1, 50)),
        st.tuples(st.just("event"), KEYS, st.integers(1, 50)),
        st.tuples(st.just("delete"), KEYS, st.integers(1, 50)),
    )
)


@given(STEPS)
def test_a_stream_owes_exactly_what_it_has_not_passed(
    steps: list[tuple[str, ObjectKey, int]],
) -> None:
    stream = Stream(ADAPTERS, None)
    for now, (step, key, version) in enumerate(steps):
        if step == "owe":
            stream.owe(key, version, float(now))
            assert key in stream.owed or version <= stream.seen
        else:
            metadata = {"name": key.name, "resourceVersion": str(version)}
            manifest = {"kind": key.kind, "metadata": metadata}
            stream.deliver(Change("DELETED" if step == "delete" else "MODIFIED", manifest))
            assert stream.seen >= version_of(manifest)
            assert step != "delete" or key not in stream.owed
        assert all(owed > stream.seen for owed, _ in stream.owed.values())
        oldest = stream.oldest(float(now))
        assert (oldest is None) == (not stream.owed)
        assert oldest is None or 0 <= oldest[1] <= now
