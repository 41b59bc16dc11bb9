"""An operator that comes after another: what it renders anew, and what it leaves alone."""

from dataclasses import replace
from typing import Any

from graft_operator.constants import TEMPLATE_NEWEST, TEMPLATE_OLDEST
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_operator.resources.pin import TemplatePin, read_pin
from graft_operator.settings import ControlSettings
from graft_protocol.naming import ANNOTATION_TEMPLATE_REVISION
from tests.operator.reconcile.test_service import SETTINGS, controlling, list_all, settled
from tests.support.local import service_document
from tests.support.store_cluster import StoreCluster

OLDER = replace(SETTINGS, template_revision=TEMPLATE_OLDEST, runtime_image="runtime:old")
NEWER = replace(SETTINGS, template_revision=TEMPLATE_NEWEST, runtime_image="runtime:new")
NEWEST = TemplatePin(NEWER.template_revision, NEWER.runtime_image)
KEY = ObjectKey("Deployment", "default", "tiny")


async def run(cluster: StoreCluster, settings: ControlSettings, **spec: Any) -> None:
    """Have an operator with these settings bring everything to rest."""
    cluster.store.apply(service_document(**spec))
    async with controlling(cluster, settings) as controller:
        list_all(cluster, controller)
        await settled(controller, cluster)


def deployment(cluster: StoreCluster) -> Manifest:
    stored = cluster.store.get(KEY)
    assert stored is not None
    return stored


def status(cluster: StoreCluster) -> Manifest:
    (service,) = cluster.store.list_objects("InferenceService")
    found: Manifest = service["status"]
    return found


async def test_a_newer_operator_replaces_no_pod_and_says_what_it_has() -> None:
    cluster = StoreCluster()
    await run(cluster, OLDER)
    before = deployment(cluster)
    await run(cluster, NEWER)
    assert deployment(cluster) == before
    assert status(cluster)["updateAvailable"] == NEWEST.id
    assert status(cluster)["templateRevision"] == TEMPLATE_OLDEST


async def test_a_changed_spec_is_followed_with_the_template_that_the_pods_have() -> None:
    cluster = StoreCluster()
    await run(cluster, OLDER)
    await run(cluster, NEWER, replicas=3, engine={"threads": 2})
    assert deployment(cluster)["spec"]["replicas"] == 3
    assert read_pin(deployment(cluster), "") == TemplatePin(TEMPLATE_OLDEST, "runtime:old")
    mounted = deployment(cluster)["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
    assert cluster.store.get(ObjectKey("ConfigMap", "default", mounted)) is not None


async def test_an_approved_update_is_taken_once_and_is_no_offer_any_more() -> None:
    cluster = StoreCluster()
    await run(cluster, OLDER)
    approval = {"runtimeUpgrade": {"approve": NEWEST.id}}
    await run(cluster, NEWER, rollout=approval)
    assert read_pin(deployment(cluster), "") == NEWEST
    assert "updateAvailable" not in status(cluster)
    later = replace(NEWER, runtime_image="runtime:later")
    await run(cluster, later, rollout=approval)
    assert read_pin(deployment(cluster), "") == NEWEST
    assert "updateAvailable" in status(cluster)


async def test_going_back_to_the_older_operator_replaces_no_pod() -> None:
    cluster = StoreCluster()
    await run(cluster, NEWER)
    before = deployment(cluster)
    await run(cluster, OLDER)
    assert deployment(cluster) == before


async def test_pods_of_a_template_from_the_future_are_left_alone() -> None:
    """As after a downgrade by more than the operator knows of."""
    cluster = StoreCluster()
    await run(cluster, NEWER)
    stored = deployment(cluster)
    template = stored["spec"]["template"]
    notes = {**template["metadata"]["annotations"], ANNOTATION_TEMPLATE_REVISION: "99"}
    metadata = {**template["metadata"], "annotations": notes}
    spec = {**stored["spec"], "template": {**template, "metadata": metadata}}
    cluster.store.apply({**stored, "spec": spec})
    before = deployment(cluster)
    await run(cluster, NEWER, engine={"threads": 2})
    assert deployment(cluster) == before
    (told,) = [c for c in status(cluster)["conditions"] if c["type"] == "UpToDate"]
    assert (told["status"], told["reason"]) == ("False", "TemplateUnknown")
