"""What the chart's account may do on a real API, and what it may not."""

from __future__ import annotations

import re

from tests.control_plane.conftest import Tenant

WATCHED = "list watch"
OWNED = f"{WATCHED} create patch"
OPTIONAL = "get create patch delete"
GRANTED = {
    "configmaps": f"{OWNED} delete",
    "deployments.apps": OWNED,
    "events": "create",
    "horizontalpodautoscalers.autoscaling": f"{OWNED} delete",
    "inferencepools.inference.networking.k8s.io": OPTIONAL,
    "inferenceservices.serving.graft.dev": WATCHED,
    "inferenceservices.serving.graft.dev/finalizers": "update",
    "inferenceservices.serving.graft.dev/status": "patch",
    "loraadapters.serving.graft.dev": WATCHED,
    "loraadapters.serving.graft.dev/status": "patch",
    "namespaces": "get",
    "networkpolicies.networking.k8s.io": f"{OWNED} delete",
    "poddisruptionbudgets.policy": f"{OWNED} delete",
    "podmonitors.monitoring.coreos.com": OPTIONAL,
    "pods": f"{WATCHED} patch",
    "secrets": f"get {OWNED}",
    "serviceaccounts": f"{OWNED} delete",
    "services": OWNED,
}
"""Everything that the account may do in a namespace that is served, and nothing else."""
STRANGER = "system:serviceaccount:default:stranger"
"""An account that nobody gave anything: what it may do, everybody may."""

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


def listed_rights(tenant: Tenant, account: str, namespace: str) -> set[tuple[str, str, str]]:
    """Return what may be done in a namespace: things or URLs, names, verbs."""
    kubectl = tenant.kubectl.within(namespace)
    _, *lines = kubectl.run("auth", "can-i", "--list", f"--as={account}").splitlines()
    rights = set()
    for line in lines:
        resources, *lists = re.split(r"\s+(?=\[)", line.rstrip())
        urls, names, verbs = (each.strip("[]") for each in lists)
        rights.add((resources or urls, names, verbs))
    return rights


def everywhere(tenant: Tenant) -> tuple[str, str, str]:
    """Return the one right that does not go with the namespace: to see whether it is there."""
    return "namespaces", tenant.namespace, "get"


def test_the_account_may_do_exactly_what_is_written_down(tenant: Tenant) -> None:
    everybody = listed_rights(tenant, STRANGER, tenant.namespace)
    granted = listed_rights(tenant, tenant.account, tenant.namespace) - everybody
    within = {(resource, "", verbs) for resource, verbs in GRANTED.items()}
    assert granted == within | {everywhere(tenant)}


def test_outside_the_served_namespaces_the_account_is_a_stranger(tenant: Tenant) -> None:
    for namespace in ("default", "kube-system", tenant.operator_namespace):
        rights = listed_rights(tenant, tenant.account, namespace)
        assert rights - {everywhere(tenant)} == listed_rights(tenant, STRANGER, namespace)


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
