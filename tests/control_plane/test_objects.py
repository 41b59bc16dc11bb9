"""Children on a real API: applied, repaired, shared with others, and gone with their owner."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from graft_operator.resources.meta import ObjectKey
from graft_protocol.naming import FIELD_MANAGER
from tests.control_plane.conftest import Tenant, until
from tests.control_plane.manifests import adapter, keys, service
from tests.support.kube_manifests import shard_name
from tests.support.loopback_node import LoopbackNode

SERVES = ("inferenceservice/tiny", "loraadapter/shout")


def serve(tenant: Tenant) -> None:
    tenant.apply(keys(), service(), adapter("shout"))
    for thing in SERVES:
        until(lambda thing=thing: tenant.is_ready(thing), f"{thing} Ready")  # type: ignore[misc]  # bound now


def environment(tenant: Tenant) -> list[str]:
    stored = tenant.find("deployment/tiny") or {}
    (container,) = stored["spec"]["template"]["spec"]["containers"]
    return [variable["name"] for variable in container.get("env", [])]


def test_manifests_become_pods_that_serve_and_kubectl_can_wait_for_it(served: Tenant) -> None:
    served.apply(keys(), service(), adapter("shout"))

    wait = ("wait", "--for=condition=Ready", "--timeout=60s", *SERVES)
    served.kubectl.run(*wait)

    status = served.kubectl.get("loraadapter/shout")["status"]
    assert status["observedGeneration"] == 1
    assert status["currentRevision"]["id"].startswith(f"{served.namespace}/shout@")
    rows = served.kubectl.run("get", "gis,lora").splitlines()
    header = next(row for row in rows if row.startswith("NAME") and "ADAPTERS" in row).split()
    assert header[0] == "NAME"
    assert next(row for row in rows if "/shout " in row).split()[1:4] == ["tiny", "shout", "True"]


def test_a_field_that_leaves_the_spec_leaves_the_child(served: Tenant) -> None:
    one, two = {"name": "ONE", "value": "1"}, {"name": "TWO", "value": "2"}
    served.apply(keys(), service(runtime={"env": [one, two]}))
    until(lambda: served.find("deployment/tiny"), "the Deployment")
    assert {"ONE", "TWO"} <= set(environment(served))

    served.apply(service(runtime={"env": [two]}))

    until(lambda: "ONE" not in environment(served), "ONE to go")
    assert "TWO" in environment(served)


def test_what_others_add_stays_and_what_they_change_is_put_right(served: Tenant) -> None:
    serve(served)
    kubectl = served.kubectl
    kubectl.run("annotate", "service/tiny", "example.com/owner=team-a")
    kubectl.run("label", "deployment/tiny", "example.com/cost=1")

    before = kubectl.get("service/tiny")["spec"]["ports"]
    ports = json.dumps([{"op": "replace", "path": "/spec/ports/0/port", "value": 81}])
    kubectl.run("patch", "service/tiny", "--type=json", "--patch", ports)
    kubectl.run("delete", "configmap", shard_name("shout"))

    until(lambda: kubectl.get("service/tiny")["spec"]["ports"][0]["port"] != 81, "the port")
    until(lambda: served.find("configmap", shard_name("shout")), "the shard")
    assert kubectl.get("service/tiny")["spec"]["ports"] == before
    assert update_owners(served, "service/tiny") == []
    assert kubectl.get("service/tiny")["metadata"]["annotations"]["example.com/owner"] == "team-a"
    assert kubectl.get("deployment/tiny")["metadata"]["labels"]["example.com/cost"] == "1"
    until(lambda: all(map(served.is_ready, SERVES)), "all to be Ready")


def test_a_changed_adapter_is_no_rollout(served: Tenant, node: LoopbackNode) -> None:
    serve(served)
    before = served.kubectl.get("deployment/tiny")["metadata"]["generation"]
    pods = own_pods(served, node)

    served.apply(adapter("shout", "s3://adapters/ok-2"))

    def has_changed() -> bool:
        current = served.kubectl.get("loraadapter/shout")["status"].get("currentRevision", {})
        return bool(current.get("uri") == "s3://adapters/ok-2")

    until(has_changed, "the new version")
    assert served.kubectl.get("deployment/tiny")["metadata"]["generation"] == before
    assert own_pods(served, node) == pods


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_children_go_with_the_service(served: Tenant, cascade: str) -> None:
    serve(served)
    # In the foreground, children go first, and whoever makes them anew keeps their owner for good.
    gone = ("inferenceservice/tiny", f"--cascade={cascade}", "--timeout=60s")
    served.kubectl.run("delete", *gone)
    children = ("deployments,services,configmaps,secrets", "-l", "serving.graft.dev/service=tiny")
    until(lambda: not served.kubectl.get(*children)["items"], "the children to go")
    stored = served.find("loraadapter/shout")
    assert stored is not None
    until(lambda: not served.is_ready("loraadapter/shout"), "the adapter to say so")


def test_an_object_that_is_made_again_under_its_name_starts_anew(served: Tenant) -> None:
    serve(served)
    old = served.kubectl.get("loraadapter/shout")
    served.kubectl.run("delete", "loraadapter/shout")
    served.apply(adapter("shout", "s3://adapters/ok-3"))
    until(lambda: served.is_ready("loraadapter/shout"), "the new one")
    new = served.kubectl.get("loraadapter/shout")
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["status"]["currentRevision"]["uri"] == "s3://adapters/ok-3"


def test_an_operator_that_comes_back_writes_nothing(tenant: Tenant, node: LoopbackNode) -> None:
    with tenant.operator():
        serve(tenant)
        until(lambda: is_settled(tenant), "all to be in sync")
    before = versions(tenant)
    with tenant.operator(audit_seconds=0.2) as operator:
        until(lambda: audits(operator.health_url) >= 3, "three audits")
    assert versions(tenant) == before
    assert len(own_pods(tenant, node)) == 1


def own_pods(tenant: Tenant, node: LoopbackNode) -> set[ObjectKey]:
    """Return the pods of the tenant's namespace; those of earlier tests may still be going."""
    return {key for key in node.pods if key.namespace == tenant.namespace}


def update_owners(tenant: Tenant, what: str) -> list[Any]:
    """Return where the operator owns fields that it would not give up when it stops applying."""
    stored = tenant.kubectl.get(what, "--show-managed-fields")
    return [
        entry
        for entry in stored["metadata"]["managedFields"]
        if entry["manager"] == FIELD_MANAGER and entry["operation"] == "Update"
    ]


def audits(health_url: str) -> int:
    """Return how often every Pod was listed."""
    try:
        text = httpx.get(f"{health_url}/metrics", timeout=5).text
    except httpx.HTTPError:  # not up yet
        return 0
    found = re.search(r'api_calls_total{code="200",kind="Pod",verb="list"} (\S+)', text)
    return int(float(found[1])) if found else 0


def is_settled(tenant: Tenant) -> bool:
    status = tenant.kubectl.get("inferenceservice/tiny")["status"]
    counts = status["adapters"]
    return bool(counts["ready"] == counts["registered"] == 1 and counts["podsInSync"] == 1)


def versions(tenant: Tenant) -> dict[str, str]:
    """Return the version of everything that an operator writes."""
    kinds = "gis,lora,deployments,services,configmaps,secrets,pods"
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in tenant.kubectl.get(kinds)["items"]
    }
