"""Whose adapters a service takes, decided by labels of namespaces on a real API server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.clusters import Cluster
from e2e.cluster.tools import Kubectl
from tests.control_plane.conftest import Json, Tenant, release, until
from tests.control_plane.manifests import adapter, keys, service
from tests.support.kube_manifests import ENDPOINT
from tests.support.loopback_node import LoopbackNode

BY_LABEL = {"from": "Selector", "selector": {"matchLabels": {"example.com/llm": "yes"}}}
QUICK = 0.2


@pytest.fixture
def team(cluster: Cluster) -> Iterator[Kubectl]:
    """A namespace of a tenant."""
    name = f"graft-cp-team-{secrets.token_hex(3)}"
    cluster.kubectl.run("create", "namespace", name)
    yield cluster.kubectl.within(name)
    cluster.kubectl.run("delete", "namespace", name, "--wait=false")


def accepted(team: Kubectl) -> tuple[str, str]:
    """Return what the adapter's condition Accepted says, and why."""
    status: Json = team.get("loraadapter/poet").get("status", {})
    found = {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", [])}
    return found.get("Accepted", ("", ""))


def attached(tenant: Tenant) -> Json:
    """Return an adapter for another namespace's service."""
    reference = {"name": "tiny", "namespace": tenant.namespace}
    return adapter("poet", inferenceServiceRef=reference)


def test_a_label_lets_a_namespace_in_and_its_loss_takes_it_out(
    cluster: Cluster, team: Kubectl, node: LoopbackNode, tmp_path: Path
) -> None:
    with release(cluster, tmp_path, tenants=(team.namespace,)) as tenant:
        poet = {**attached(tenant), "metadata": {"name": "poet", "namespace": team.namespace}}
        opened = {"allowedEndpoints": [ENDPOINT], "allowedNamespaces": BY_LABEL}
        with tenant.operator(tenant_namespaces=(team.namespace,), secret_seconds=QUICK):
            tenant.apply(keys(), service(adapters=opened))
            tenant.cluster.kubectl.apply(json.dumps(poet))
            until(lambda: accepted(team) == ("False", "RefNotPermitted"), "a refusal")

            label = ("label", "namespace", team.namespace)
            cluster.kubectl.run(*label, "example.com/llm=yes")
            until(lambda: accepted(team) == ("True", "Accepted"), "consent")

            cluster.kubectl.run(*label, "example.com/llm-")
            until(lambda: accepted(team) == ("False", "RefNotPermitted"), "its withdrawal")
    assert node.pods
