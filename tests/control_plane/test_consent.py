"""Whose adapters a service takes, decided by labels of namespaces on a real API server."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from e2e.cluster.clusters import Cluster
from e2e.cluster.tools import Kubectl
from graft_operator.resources.selector import NamespaceSelector
from tests.control_plane.conftest import Json, Tenant, release, until
from tests.control_plane.manifests import adapter, keys, service
from tests.support.kube_manifests import ENDPOINT
from tests.support.loopback_node import LoopbackNode

LLM = "example.com/llm"
BY_LABEL = {"matchLabels": {LLM: "yes"}}
BY_EXPRESSION = {
    "matchExpressions": [
        {"key": LLM, "operator": "In", "values": ["yes", "later"]},
        {"key": "example.com/closed", "operator": "DoesNotExist"},
    ]
}
QUICK = 0.2


def accepted(team: Kubectl) -> tuple[str, str]:
    """Return what the adapter's condition Accepted says, and why."""
    status: Json = team.get("loraadapter/poet").get("status", {})
    found = {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", [])}
    return found.get("Accepted", ("", ""))


def attached(tenant: Tenant) -> Json:
    """Return an adapter for another namespace's service."""
    reference = {"name": "tiny", "namespace": tenant.namespace}
    return adapter("poet", inferenceServiceRef=reference)


@pytest.mark.parametrize("selector", [BY_LABEL, BY_EXPRESSION], ids=["label", "expression"])
def test_a_label_lets_a_namespace_in_and_its_loss_takes_it_out(
    cluster: Cluster, team: Kubectl, node: LoopbackNode, tmp_path: Path, selector: Json
) -> None:
    with release(cluster, tmp_path, tenants=(team.namespace,)) as tenant:
        poet = {**attached(tenant), "metadata": {"name": "poet", "namespace": team.namespace}}
        allowed = {"from": "Selector", "selector": selector}
        opened = {"allowedEndpoints": [ENDPOINT], "allowedNamespaces": allowed}
        with tenant.operator(tenant_namespaces=(team.namespace,), secret_seconds=QUICK):
            tenant.apply(keys(), service(adapters=opened))
            tenant.cluster.kubectl.apply(json.dumps(poet))
            until(lambda: accepted(team) == ("False", "RefNotPermitted"), "a refusal")

            label = ("label", "namespace", team.namespace)
            cluster.kubectl.run(*label, f"{LLM}=yes")
            until(lambda: accepted(team) == ("True", "Accepted"), "consent")

            cluster.kubectl.run(*label, f"{LLM}-")
            until(lambda: accepted(team) == ("False", "RefNotPermitted"), "its withdrawal")
    assert node.pods


@pytest.mark.parametrize(
    ("asked", "key", "operator", "values"),
    [
        (f"{LLM} in (yes,later)", LLM, "In", ["yes", "later"]),
        (f"{LLM} notin (yes,later)", LLM, "NotIn", ["yes", "later"]),
        (LLM, LLM, "Exists", []),
        (f"!{LLM}", LLM, "DoesNotExist", []),
    ],
    ids=["In", "NotIn", "Exists", "DoesNotExist"],
)
def test_an_expression_chooses_as_the_api_server_does(
    cluster: Cluster, asked: str, key: str, operator: str, values: list[str]
) -> None:
    mark = f"graft-cp-chosen-{secrets.token_hex(3)}"
    given: list[dict[str, str]] = [{}, {LLM: "yes"}, {LLM: "no"}, {LLM: ""}, {"other": "yes"}]
    names = [f"{mark}-{number}" for number in range(len(given))]
    for name, labels in zip(names, given, strict=True):
        metadata = {"name": name, "labels": {**labels, "mark": mark}}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        cluster.kubectl.apply(json.dumps(namespace))
    try:
        chosen = cluster.kubectl.run(
            "get", "namespaces", "--selector", f"mark={mark},{asked}", "--output", "name"
        )
        expression = {"key": key, "operator": operator, "values": values}
        selector = NamespaceSelector.model_validate({"matchExpressions": [expression]})
        ours = [
            f"namespace/{name}"
            for name, labels in zip(names, given, strict=True)
            if selector.matches(labels)
        ]
        assert chosen.split() == ours
    finally:
        cluster.kubectl.run("delete", "namespace", *names, "--wait=false")
