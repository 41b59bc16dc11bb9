"""Children of kinds that a cluster may lack: nothing tells when others change them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from graft_operator.resources.meta import Manifest, ObjectKey
from tests.operator.reconcile.test_service import DEADLINE_SECONDS, SETTINGS, controlling, list_all
from tests.support.local import service_document
from tests.support.store_cluster import StoreCluster

MONITOR = ObjectKey("PodMonitor", "default", "tiny")
OFTEN = replace(SETTINGS, optional_seconds=0.01)


async def monitor(cluster: StoreCluster, interval: str) -> Manifest:
    """Return the PodMonitor once it has an interval."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            stored = cluster.store.get(MONITOR)
            if (
                stored is not None
                and stored["spec"]["podMetricsEndpoints"][0]["interval"] == interval
            ):
                return stored
            await asyncio.sleep(0)


async def test_what_others_write_into_a_child_that_is_not_watched_is_taken_back() -> None:
    cluster = StoreCluster()
    cluster.store.apply(service_document(monitoring={"enabled": True}))
    async with controlling(cluster, OFTEN) as controller:
        list_all(cluster, controller)
        stored = await monitor(cluster, "15s")
        (endpoint,) = stored["spec"]["podMetricsEndpoints"]
        spec = {**stored["spec"], "podMetricsEndpoints": [{**endpoint, "interval": "1s"}]}
        cluster.store.apply({**stored, "spec": spec})
        await monitor(cluster, "15s")
