"""From specs and Secrets to what pods are told about callers and namespaces."""

import base64
from typing import Any

from graft_operator.resources.meta import Manifest
from graft_protocol.desired import AdapterEntry, TenantLimits, key_hash, parse_shard
from tests.operator.reconcile.test_service import PINNED, controlling, create, outcome, settled
from tests.support.local import adapter_document, secret_document, service_document
from tests.support.store_cluster import StoreCluster

KEY = "a-key-of-some-length"
GUARDED: dict[str, Any] = {"access": {"apiKeySecretRefs": [{"name": "callers"}]}}


def callers(**keys: str) -> Manifest:
    secret = secret_document("callers")
    secret["data"] = {
        name: base64.b64encode(value.encode()).decode() for name, value in keys.items()
    }
    secret.pop("stringData", None)
    return secret


def entries(cluster: StoreCluster) -> dict[str, AdapterEntry]:
    texts = [
        text
        for item in cluster.store.list_objects("ConfigMap")
        for name, text in item["data"].items()
        if name.startswith("shard-")
    ]
    return {entry.served_name: entry for text in texts for entry in parse_shard(text).entries}


async def test_keys_reach_pods_as_hashes_and_follow_the_secret() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        create(
            cluster,
            [
                service_document(),
                adapter_document("mine", source=PINNED, **GUARDED),
                adapter_document("open", source=PINNED),
                callers(one=KEY),
            ],
        )
        await settled(controller, cluster)
        found = entries(cluster)
        assert found["mine"].access == (key_hash(KEY),)
        assert found["open"].access is None
        assert KEY not in str(cluster.store.list_objects("ConfigMap"))
        other = "another-key-of-some-length"
        stored = next(
            item
            for item in cluster.store.list_objects("Secret")
            if item["metadata"]["name"] == "callers"
        )
        cluster.store.restore(stored | {"data": callers(two=other)["data"]})
        await settled(controller, cluster)
        assert entries(cluster)["mine"].access == (key_hash(other),)


async def test_an_adapter_whose_keys_are_gone_is_served_to_nobody() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        create(cluster, [service_document(), adapter_document("mine", source=PINNED, **GUARDED)])
        await settled(controller, cluster)
    assert "mine" not in entries(cluster)
    accepted = outcome(cluster)["LoraAdapter/mine"][2]["Accepted"]
    assert accepted[:2] == ("False", "SecretNotFound")


async def test_pods_are_told_what_a_namespace_may_have() -> None:
    tenants = [{"namespaces": ["default"], "maxConcurrentRequests": 3, "weight": 2}]
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        create(
            cluster,
            [
                service_document(adapters={"tenants": tenants}),
                adapter_document("mine", source=PINNED),
            ],
        )
        await settled(controller, cluster)
    assert entries(cluster)["mine"].tenant == TenantLimits(max_concurrent_requests=3, weight=2)
    configs = [
        item["data"]["runtime.yaml"]
        for item in cluster.store.list_objects("ConfigMap")
        if "runtime.yaml" in item["data"]
    ]
    assert not any("tenants" in text for text in configs), "a quota is no rollout"


async def test_an_expired_adapter_leaves_the_set_and_keeps_its_object() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        create(
            cluster,
            [
                service_document(),
                adapter_document("over", source=PINNED, expiresAt="2020-01-01T00:00:00Z"),
                adapter_document("fine", source=PINNED, expiresAt="2999-01-01T00:00:00Z"),
            ],
        )
        await settled(controller, cluster)
    assert set(entries(cluster)) == {"fine"}
    assert outcome(cluster)["LoraAdapter/over"][2]["Ready"][:2] == ("False", "Expired")


async def test_an_adapter_on_its_way_costs_no_event_and_a_refused_one_costs_one() -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        expired = adapter_document("over", source=PINNED, expiresAt="2020-01-01T00:00:00Z")
        create(cluster, [service_document(), adapter_document("mine", source=PINNED), expired])
        await settled(controller, cluster)
    assert [reason for name, reason in cluster.events if name == "mine"] == []
    assert [reason for name, reason in cluster.events if name == "over"] == ["Expired"]
