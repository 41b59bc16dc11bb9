"""Every field of both kinds is taken to its extremes and back: nothing fails, and nothing stays."""

from __future__ import annotations

from typing import Any

import pytest

from graft_operator.errors import InvalidManifestError
from graft_operator.resources.admission import admit
from graft_operator.resources.crdgen import crd
from graft_operator.resources.meta import Manifest
from tests.operator.reconcile.test_isolation import observed
from tests.operator.reconcile.test_service import KINDS, PINNED, outcome, settled
from tests.operator.reconcile.test_tenancy import entries
from tests.support.kube_schema import problems
from tests.support.local import adapter_document, service_document
from tests.support.mutations import Mutation, mutations
from tests.support.store_cluster import StoreCluster

ON_REQUEST = ("ServiceAccount", "NetworkPolicy", "HorizontalPodAutoscaler")
OF_OTHERS = ("PodMonitor", "InferencePool")
BASE = {
    "InferenceService": service_document(),
    "LoraAdapter": adapter_document("odd", source=PINNED),
}


def picture(cluster: StoreCluster) -> dict[str, Any]:
    """Return what there is, but for configurations that are kept for a rollback."""
    names = {kind: cluster.store.list_objects(kind) for kind in (*ON_REQUEST, *OF_OTHERS)}
    made = {kind: [item["metadata"]["name"] for item in items] for kind, items in names.items()}
    shown = {name: value for name, value in outcome(cluster).items() if "-runtime-" not in name}
    return {**shown, **made}


def children(cluster: StoreCluster) -> list[Manifest]:
    own = ("InferenceService", "LoraAdapter")
    kinds = [kind for kind in (*KINDS, *ON_REQUEST) if kind not in own]
    items = [item for kind in kinds for item in cluster.store.list_objects(kind)]
    return [{key: item[key] for key in item if key != "status"} for item in items]


def is_admitted(manifest: Manifest) -> bool:
    try:
        admit(manifest, None)
    except InvalidManifestError:
        return False
    return True


def all_mutations(kind: str) -> list[Mutation]:
    version = crd(kind)["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return list(mutations(spec, ("spec",)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", BASE)
async def test_a_field_at_its_extremes_harms_nobody_and_leaves_nothing_behind(kind: str) -> None:
    cluster = StoreCluster()
    name = f"{kind}/{BASE[kind]['metadata']['name']}"
    counts = {True: 0, False: 0}
    async with observed(cluster) as (controller, ends):
        for manifest in (*BASE.values(), adapter_document("good", source=PINNED)):
            cluster.store.apply(manifest)
        await settled(controller, cluster)
        start = picture(cluster)
        for mutation in all_mutations(kind):
            changed = mutation.of(BASE[kind])
            counts[is_admitted(changed)] += 1
            cluster.store.apply(changed)
            await settled(controller, cluster)
            assert set(ends) == {"ok"}, mutation
            if not is_admitted(changed):
                accepted = picture(cluster)[name][2]["Accepted"]
                assert accepted[:2] == ("False", "InvalidSpec"), mutation
            assert [text for item in children(cluster) for text in problems(item)] == [], mutation
            if kind == "LoraAdapter":
                assert "good" in entries(cluster), mutation

            cluster.store.apply(BASE[kind])
            await settled(controller, cluster)
            assert picture(cluster) == start, mutation
    # Both sorts were there in numbers: what is taken, and what is refused.
    assert min(counts.values()) > 20, counts
