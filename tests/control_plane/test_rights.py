"""What the chart's account may do on a real API, and what it may not."""

from __future__ import annotations

from tests.control_plane.conftest import Tenant

NEVER = (
    ("get", "secrets", "kube-system"),
    ("list", "secrets", "default"),
    ("get", "configmaps", "kube-system"),
    ("create", "pods", ""),
    ("delete", "pods", ""),
    ("create", "rolebindings", ""),
    ("escalate", "roles", ""),
    ("impersonate", "users", ""),
    ("delete", "inferenceservices", ""),
    ("update", "loraadapters", ""),
    ("create", "clusterroles", ""),
    ("get", "nodes", ""),
)
"""Verb, resource, namespace; the served one where none is named."""


def may(tenant: Tenant, verb: str, resource: str, namespace: str) -> bool:
    kubectl = tenant.kubectl.within(namespace or tenant.namespace)
    return kubectl.succeeds("auth", "can-i", verb, resource, f"--as={tenant.account}")


def test_the_account_may_do_nothing_beyond_its_work(tenant: Tenant) -> None:
    allowed = [each for each in NEVER if may(tenant, *each)]
    assert allowed == []


def test_no_rule_is_a_wildcard(tenant: Tenant) -> None:
    listed = tenant.kubectl.run("auth", "can-i", "--list", f"--as={tenant.account}")
    assert "inferenceservices.serving.graft.dev" in listed
    ours = [line for line in listed.splitlines() if not line.startswith(" ")]
    assert [line for line in ours if "*" in line.partition("[")[0]] == []


def test_another_namespace_is_none_of_its_business(tenant: Tenant) -> None:
    listed = tenant.kubectl.within("default").run(
        "auth", "can-i", "--list", f"--as={tenant.account}"
    )
    assert "serving.graft.dev" not in listed
    assert "secrets" not in listed
