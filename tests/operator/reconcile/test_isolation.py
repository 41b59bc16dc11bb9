"""What one object asks for, or the cluster refuses one, is told there and harms nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from graft_operator.errors import (
    ClusterError,
    ForbiddenError,
    InvalidObjectError,
    NameTakenError,
    RefusedError,
)
from graft_operator.reconcile.controller import Controller
from graft_operator.resources.meta import Manifest
from tests.operator.reconcile.test_service import (
    DEADLINE_SECONDS,
    PINNED,
    SETTINGS,
    create,
    outcome,
    settled,
)
from tests.operator.reconcile.test_tenancy import entries
from tests.support.local import adapter_document, service_document
from tests.support.store_cluster import StoreCluster

VERSION = {"id": "default/odd@111111111111", "digest": "sha256:none", "uri": "s3://a/b"}
TOLD = ("False", "InvalidSpec")


@asynccontextmanager
async def observed(cluster: StoreCluster) -> AsyncIterator[tuple[Controller, list[str]]]:
    """Run a controller, and note how each reconcile ends."""
    ends: list[str] = []
    controller = Controller(
        cluster,
        SETTINGS,
        secret_ttl_seconds=3600,
        on_reconciled=lambda _key, end, _seconds: ends.append(end),
    )
    cluster.store.subscribe(controller.on_change)
    async with controller:
        yield controller, ends


def odd(name: str = "odd", *, status: Manifest | None = None, **spec: Any) -> Manifest:
    manifest = adapter_document(name, source={**PINNED, **spec.pop("source", {})}, **spec)
    return manifest if status is None else {**manifest, "status": status}


@pytest.mark.parametrize(
    ("manifest", "accepted"),
    [
        (odd("n" * 200), TOLD),
        (odd(expiresAt="2999-02-31T00:00:00Z"), TOLD),
        (odd(source={"credentialsSecretRef": {"name": "../../other/secrets/keys"}}), TOLD),
        (odd(access={"apiKeySecretRefs": [{"name": "../callers"}]}), TOLD),
        (
            odd(status={"currentRevision": {**VERSION, "sourceHash": "h"}}),
            ("True", "Accepted"),
        ),
    ],
    ids=["long name", "no such day", "path to a secret", "path to keys", "edited status"],
)
async def test_an_adapter_that_makes_no_sense_keeps_nobody_else_from_being_served(
    manifest: Manifest, accepted: tuple[str, str]
) -> None:
    cluster = StoreCluster()
    async with observed(cluster) as (controller, ends):
        create(cluster, [service_document(), manifest, adapter_document("good", source=PINNED)])
        await settled(controller, cluster)
    assert set(ends) == {"ok"}
    assert "good" in entries(cluster)
    shown = outcome(cluster)[f"LoraAdapter/{manifest['metadata']['name']}"]
    assert shown[2]["Accepted"][:2] == accepted


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidObjectError("apply Deployment: 422 priorityClassName is no name"), "InvalidSpec"),
        (ForbiddenError("apply Deployment: 403 exceeded quota"), "ChildRefused"),
        (RefusedError("apply Deployment: 400 denied by policy"), "ChildRefused"),
        (NameTakenError("Deployment default/tiny is not ours"), "ChildRefused"),
    ],
)
async def test_what_the_cluster_does_not_take_is_told_in_its_words_until_it_does(
    error: ClusterError, reason: str
) -> None:
    cluster = StoreCluster()
    cluster.refusals["Deployment"] = error

    def told() -> dict[str, Any]:
        conditions: dict[str, Any] = outcome(cluster)["InferenceService/tiny"][2]
        return conditions

    async with observed(cluster) as (controller, _):
        create(cluster, [service_document(), adapter_document("good", source=PINNED)])
        async with asyncio.timeout(DEADLINE_SECONDS):
            while "Accepted" not in told():
                await asyncio.sleep(0)
        assert told()["Accepted"] == ("False", reason, str(error))
        assert told()["Ready"] == ("False", reason, str(error))
        assert ("Stalled" in told()) == (reason == "InvalidSpec")
        assert "good" in entries(cluster)

        cluster.refusals.clear()
        await settled(controller, cluster)
    assert told()["Accepted"][:2] == ("True", "Accepted")
    assert "Stalled" not in told()


async def test_a_spec_that_cannot_be_read_leaves_what_is_known_of_the_versions() -> None:
    cluster = StoreCluster()
    known = {**VERSION, "digest": PINNED["digest"], "sourceHash": "h"}
    async with observed(cluster) as (controller, _):
        strange = odd(status={"currentRevision": known}, somethingNew=1)
        create(cluster, [service_document(somethingNew=1) | {"status": {"replicas": 3}}, strange])
        await settled(controller, cluster)
        before = list(cluster.writes)
        await settled(controller, cluster)
    assert cluster.writes == before
    (adapter,) = cluster.store.list_objects("LoraAdapter")
    assert adapter["status"]["currentRevision"]["digest"] == PINNED["digest"]
    (service,) = cluster.store.list_objects("InferenceService")
    assert service["status"]["replicas"] == 3
