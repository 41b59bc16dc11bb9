"""Namespaces that are deleted while no operator looks, and that come back while one does."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cluster.clusters import Cluster
from e2e.cluster.tools import Kubectl
from e2e.release import CHART
from tests.control_plane.conftest import release, until
from tests.control_plane.manifests import adapter, keys, service
from tests.support.kube_manifests import ENDPOINT
from tests.support.loopback_node import LoopbackNode

NEVER = 3600.0
OPEN = {"allowedEndpoints": [ENDPOINT], "allowedNamespaces": {"from": "All"}}


def test_a_start_without_a_tenants_namespace_serves_the_others_and_takes_it_up_again(
    cluster: Cluster, team: Kubectl, node: LoopbackNode, tmp_path: Path
) -> None:
    with release(cluster, tmp_path, tenants=(team.namespace,)) as tenant:
        cluster.kubectl.run("delete", "namespace", team.namespace)
        # Without audits it is the watches that have to come back.
        with tenant.operator(tenant_namespaces=(team.namespace,), audit_seconds=NEVER):
            tenant.apply(keys(), service(adapters=OPEN), adapter("shout"))
            until(lambda: tenant.is_ready("loraadapter/shout"), "the others to be served")

            cluster.kubectl.run("create", "namespace", team.namespace)
            where = ("--namespace", tenant.operator_namespace)
            cluster.helm.run("upgrade", "graft", CHART, *where, "--reuse-values")
            reference = {"name": "tiny", "namespace": tenant.namespace}
            poet = adapter("poet", inferenceServiceRef=reference)
            team.apply(json.dumps(poet))
            until(lambda: is_accepted(team), "the namespace to be taken up again")
    assert node.pods


def is_accepted(team: Kubectl) -> bool:
    conditions = team.get("loraadapter/poet").get("status", {}).get("conditions", ())
    return any(one["type"] == "Accepted" for one in conditions)
