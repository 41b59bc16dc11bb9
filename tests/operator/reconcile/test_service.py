"""The control loop over a store: what is written, in which order, and how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from graft_operator.reconcile.controller import Controller
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_operator.settings import ControlSettings
from graft_protocol.naming import LABEL_SERVICE
from tests.support.local import adapter_document, secret_document, service_document
from tests.support.objects import DIGEST_1
from tests.support.store_cluster import StoreCluster

DEADLINE_SECONDS = 10.0
SETTINGS = ControlSettings(backoff_first_seconds=0.001, backoff_max_seconds=0.01)
PINNED = {"digest": DIGEST_1}
KINDS = (
    "InferenceService",
    "LoraAdapter",
    "ConfigMap",
    "Secret",
    "Service",
    "Deployment",
    "PodDisruptionBudget",
)


def documents() -> list[Manifest]:
    secret = secret_document("keys", accessKeyId="id")
    secret["data"] = {"accessKeyId": "aWQ="}
    return [
        service_document(model={"uri": "s3://m/x", "credentialsSecretRef": {"name": "keys"}}),
        adapter_document("good", source=PINNED),
        adapter_document("clash", source=PINNED, servedName="good"),
        adapter_document("lost", source=PINNED | {"credentialsSecretRef": {"name": "none"}}),
        secret,
    ]


def create(cluster: StoreCluster, manifests: list[Manifest]) -> None:
    """Store objects with fixed identities, each a second older than the next."""
    for second, manifest in enumerate(manifests):
        identity = {
            "namespace": "default",
            "uid": f"uid-{second}",
            "generation": 1,
            "creationTimestamp": f"2026-01-01T00:00:{second:02d}Z",
        }
        cluster.store.restore(manifest | {"metadata": manifest["metadata"] | identity})


def list_all(cluster: StoreCluster, controller: Controller) -> None:
    """Show a new controller everything there is, as its first lists would."""
    for kind in KINDS:
        for item in cluster.store.list_objects(kind):
            controller.cache.put(item)
    controller.resync()


@asynccontextmanager
async def controlling(
    cluster: StoreCluster, settings: ControlSettings = SETTINGS
) -> AsyncIterator[Controller]:
    controller = Controller(cluster, settings, secret_ttl_seconds=3600)
    cluster.store.subscribe(controller.on_change)
    async with controller:
        yield controller


async def settled(controller: Controller, cluster: StoreCluster) -> None:
    """Wait until nothing is written any more, also after a full second look."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        before = -1
        while before != len(cluster.writes):
            before = len(cluster.writes)
            controller.resync()
            while not controller.queue.is_idle:
                await asyncio.sleep(0)
            await asyncio.sleep(2 * SETTINGS.backoff_max_seconds)


def outcome(cluster: StoreCluster) -> dict[str, Any]:
    """Return everything that is stored, but for identities, times and random tokens."""
    shown: dict[str, Any] = {}
    for kind in KINDS:
        for item in cluster.store.list_objects(kind):
            name = item["metadata"]["name"]
            conditions = (item.get("status") or {}).get("conditions", [])
            shown[f"{kind}/{name}"] = (
                item.get("spec"),
                None if name.endswith("-internal") else item.get("data"),
                {c["type"]: (c["status"], c["reason"], c["message"]) for c in conditions},
            )
    return shown


def telling(writes: list[str]) -> list[int]:
    """Return the first and the last write of each row of writes of one sort."""
    sorts = [name.split()[:2] for name in writes]
    return [
        number
        for number, sort in enumerate(sorts)
        if sorts[number - 1 : number] != [sort] or sorts[number + 1 : number + 2] != [sort]
    ]


async def run(cluster: StoreCluster) -> dict[str, Any]:
    async with controlling(cluster) as controller:
        create(cluster, documents())
        await settled(controller, cluster)
    return outcome(cluster)


async def test_everything_a_pod_mounts_is_written_before_the_deployment() -> None:
    cluster = StoreCluster()
    await run(cluster)
    kinds = [name.split()[1] for name in cluster.writes if name.startswith("apply")]
    assert kinds.count("ConfigMap") == 17
    assert kinds.count("Secret") == 9
    assert kinds[-2:] == ["Deployment", "PodDisruptionBudget"]


async def test_renewed_keys_are_mounted_at_once() -> None:
    cluster = StoreCluster()
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", "labels": {LABEL_SERVICE: "tiny"}},
        "spec": {"containers": []},
    }
    async with controlling(cluster) as controller:
        create(cluster, [*documents(), pod])
        await settled(controller, cluster)
        before = len(cluster.writes)
        keys = cluster.store.get(ObjectKey("Secret", "default", "keys"))
        assert keys is not None
        cluster.store.restore(keys | {"data": {"accessKeyId": "bmV3"}})
        await settled(controller, cluster)
    applied, nudged = cluster.writes[before:]
    assert applied.startswith("apply Secret tiny-credentials-")
    assert nudged.startswith(f"nudge {ObjectKey('Pod', 'default', 'pod')} ")


async def test_a_second_look_writes_nothing() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        create(cluster, documents())
        await settled(controller, cluster)
        before = list(cluster.writes)
        await settled(controller, cluster)
        assert cluster.writes == before
    assert len(cluster.writes) == len(set(cluster.writes)), "something was written twice"


async def test_a_new_operator_finds_nothing_to_do() -> None:
    cluster = StoreCluster()
    await run(cluster)
    before = list(cluster.writes)
    async with controlling(cluster) as controller:
        list_all(cluster, controller)
        await settled(controller, cluster)
    assert cluster.writes == before


async def test_each_adapter_is_told_its_own_verdict() -> None:
    shown = await run(StoreCluster())
    accepted = {
        name: shown[f"LoraAdapter/{name}"][2]["Accepted"][:2] for name in ("good", "clash", "lost")
    }
    assert accepted == {
        "good": ("True", "Accepted"),
        "clash": ("False", "NameConflict"),
        "lost": ("False", "SecretNotFound"),
    }


@pytest.mark.parametrize("fails_after", [False, True], ids=["before", "after"])
async def test_a_failure_at_any_write_is_repaired(fails_after: bool) -> None:
    whole = StoreCluster()
    expected = await run(whole)
    for number in telling(whole.writes):
        cluster = StoreCluster()
        cluster.fail_at, cluster.fails_after = number, fails_after
        assert await run(cluster) == expected, f"after a failure at {whole.writes[number]}"


@pytest.mark.parametrize("fails_after", [False, True], ids=["before", "after"])
async def test_an_operator_that_dies_at_any_write_is_continued_by_the_next(
    fails_after: bool,
) -> None:
    whole = StoreCluster()
    expected = await run(whole)
    for number in telling(whole.writes):
        cluster = StoreCluster()
        create(cluster, documents())
        cluster.fail_at, cluster.fails_after = number, fails_after
        for _ in range(2):
            async with controlling(cluster) as controller:
                list_all(cluster, controller)
                async with asyncio.timeout(DEADLINE_SECONDS):
                    while len(cluster.writes) <= number and not controller.queue.is_idle:
                        await asyncio.sleep(0)
        async with controlling(cluster) as controller:
            list_all(cluster, controller)
            await settled(controller, cluster)
        assert outcome(cluster) == expected, f"after a death at {whole.writes[number]}"


async def test_what_someone_else_changed_in_a_child_is_put_back() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        cluster.store.apply(service_document())
        await settled(controller, cluster)
        key = ObjectKey("Deployment", "default", "tiny")
        good = cluster.store.get(key)
        assert good is not None
        cluster.store.apply({**good, "spec": {**good["spec"], "replicas": 7}})
        await settled(controller, cluster)
        assert cluster.store.get(key)["spec"]["replicas"] == 1  # type: ignore[index]  # it exists


async def test_what_others_add_to_a_child_is_left_alone() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        cluster.store.apply(service_document())
        await settled(controller, cluster)
        key = ObjectKey("Service", "default", "tiny")
        stored = cluster.store.get(key)
        assert stored is not None
        cluster.store.apply({**stored, "spec": {**stored["spec"], "clusterIP": "10.0.0.1"}})
        before = list(cluster.writes)
        await settled(controller, cluster)
        assert cluster.writes == before


async def test_a_service_that_cannot_be_accepted_starts_nothing_and_stops_nothing() -> None:
    cluster = StoreCluster()
    missing = {"uri": "s3://m/x", "credentialsSecretRef": {"name": "none"}}
    async with controlling(cluster) as controller:
        cluster.store.apply(service_document(model=missing))
        await settled(controller, cluster)
        assert cluster.store.list_objects("Deployment") == []
        cluster.store.apply(service_document())
        await settled(controller, cluster)
        cluster.store.apply(service_document(model=missing))
        await settled(controller, cluster)
        assert len(cluster.store.list_objects("Deployment")) == 1


async def test_a_spec_that_cannot_be_read_is_told_and_leaves_its_pods() -> None:
    """As after a downgrade of the operator: the cluster holds a field that it does not know."""
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        cluster.store.apply(service_document())
        cluster.store.apply(adapter_document("shout", source=PINNED))
        await settled(controller, cluster)
        cluster.store.apply(service_document(somethingNew={"a": 1}))
        cluster.store.apply(adapter_document("shout", source=PINNED, somethingNew=1))
        await settled(controller, cluster)
        assert len(cluster.store.list_objects("Deployment")) == 1
        shown = outcome(cluster)
        for name in ("InferenceService/tiny", "LoraAdapter/shout"):
            assert shown[name][2]["Accepted"][:2] == ("False", "InvalidSpec")
            assert "somethingNew" in shown[name][2]["Accepted"][2]


async def test_old_configurations_are_removed_but_for_the_newest_few() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        for threads in range(1, 8):
            cluster.store.apply(service_document(engine={"threads": threads}))
            await settled(controller, cluster)
    names = [item["metadata"]["name"] for item in cluster.store.list_objects("ConfigMap")]
    assert len([name for name in names if "-runtime-" in name]) == 4
