"""The chart grants what the operator really asks of an API: nothing less, nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from graft_operator.cluster.kubernetes_kinds import WATCHED
from graft_operator.reconcile.children import KEPT_CONFIGS
from graft_operator.settings import OperatorSettings
from tests.support.kube_api import RESOURCES, KubeApi, kube_api
from tests.support.kube_manifests import ENDPOINT, adapter, is_ready, secret, service
from tests.support.kube_node import KubeNode, kube_node
from tests.support.kube_operator import condition, run_operator_thread, until
from tests.support.kube_store import Json
from tests.support.source_tree import ROOT

Permission = tuple[str, str, str]
"""Verb, API group, resource with its subresource."""

GROUPS = {
    plural: version.rpartition("/")[0] for version, kinds in RESOURCES.items() for plural in kinds
}
# Nothing asks for these directly; each has its reason.
INDIRECT = {
    # Admission asks for it where owner references that block deletion are controlled.
    ("update", "serving.graft.dev", "inferenceservices/finalizers"),
}
# The API records a watch when it ends.
SETTINGS = OperatorSettings(
    namespaces=("default", "team-b"),
    tenant_namespaces=("team-a",),
    audit_seconds=0.1,
    watch_seconds=1,
)
SURROUNDINGS: dict[str, Any] = {
    "runtime": {"serviceAccount": {"annotations": {"example.com/role": "reader"}}},
    "networkPolicy": {"enabled": True},
    "autoscaling": {"maxReplicas": 1, "targetRequests": 8},
    "monitoring": {"enabled": True},
    "inferencePool": {"endpointPicker": "picker"},
}
NO_SURROUNDINGS = {**dict.fromkeys(SURROUNDINGS), "disruptionBudget": {"enabled": False}}
DELETED = {
    "configmaps",
    "horizontalpodautoscalers",
    "inferencepools",
    "networkpolicies",
    "poddisruptionbudgets",
    "podmonitors",
    "serviceaccounts",
}
BY_LABEL = {
    "allowedEndpoints": [ENDPOINT],
    "allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}},
}


def granted(name: str) -> set[Permission]:
    rules = yaml.safe_load((ROOT / "charts/graft/rules" / f"{name}.yaml").read_text())
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def verbs(api: KubeApi, verb: str) -> set[str]:
    return {call.plural for call in api.calls if call.verb == verb}


def used(api: KubeApi, *namespaces: str) -> set[Permission]:
    found = set()
    for call in [call for call in api.calls if call.namespace in namespaces]:
        resource = "/".join(part for part in (call.plural, call.subresource) if part)
        found.add((call.verb, GROUPS[call.plural], resource))
        # An apply that may make the object needs the right to create it as well.
        if call.verb == "patch" and "force" in call.query and not call.subresource:
            found.add(("create", GROUPS[call.plural], resource))
    return found


def attached_from(namespace: str) -> tuple[Json, Json]:
    """Return a namespace that may attach, and its adapter ``poet``."""
    metadata = {"name": namespace, "labels": {"llm": "yes"}}
    team = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    poet = adapter("poet")
    poet["metadata"]["namespace"] = namespace
    poet["spec"]["inferenceServiceRef"]["namespace"] = "default"
    return team, poet


def is_served(api: KubeApi, namespace: str) -> bool:
    return condition(api.store.find("loraadapters", "poet", namespace), "Ready")[0] == "True"


def mounted_config(api: KubeApi) -> str:
    stored = api.store.find("deployments", "tiny")
    assert stored is not None
    return str(stored["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"])


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with kube_api() as running:
        yield running


@pytest.fixture
async def node(api: KubeApi) -> AsyncIterator[KubeNode]:
    async with kube_node(api) as running:
        yield running


async def tell_the_story(api: KubeApi, folder: Path) -> None:
    """Have an operator do everything it ever does."""
    own = (service(adapters=BY_LABEL, **SURROUNDINGS), adapter("shout"), secret())
    for manifest in (*own, *attached_from("team-a"), *attached_from("team-b")):
        api.create(manifest)
    async with run_operator_thread(api, folder, SETTINGS) as operator:
        await until(operator, lambda: is_ready(api, "shout"))
        await until(operator, lambda: is_served(api, "team-a") and is_served(api, "team-b"))
        # Old configurations are deleted once there are more than a rollback needs.
        for size in range(1, KEPT_CONFIGS + 4):
            before = mounted_config(api)
            api.change("inferenceservices", "tiny", {"spec": {"engine": {"maxRunning": size}}})
            await until(operator, lambda before=before: mounted_config(api) != before)  # type: ignore[misc]  # bound now
        api.change("inferenceservices", "tiny", {"spec": NO_SURROUNDINGS})
        await until(operator, lambda: verbs(api, "delete") >= DELETED)
        await until(operator, lambda: len(verbs(api, "watch")) == len(WATCHED))


async def test_the_chart_grants_exactly_what_the_operator_asks_for(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    await tell_the_story(api, tmp_path)
    assert used(api, "default", "team-b") | INDIRECT == granted("service-namespace")
    assert used(api, "team-a") == granted("tenant-namespace")
    assert used(api, "") == set()


def test_no_rule_has_a_wildcard() -> None:
    for path in (ROOT / "charts/graft/rules").glob("*.yaml"):
        assert not [part for permission in granted(path.stem) for part in permission if "*" in part]
