"""Adapters that live apart from their service: seen, served, and nobody else's word changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from graft_operator.errors import OperatorError
from graft_operator.settings import OperatorSettings
from tests.support.kube_api import KubeApi
from tests.support.kube_manifests import adapter, revisions, secret, service, serving
from tests.support.kube_node import KubeNode
from tests.support.kube_operator import condition, run_operator_thread, until
from tests.support.kube_store import Json

SETTINGS = OperatorSettings(
    namespaces=("default",), tenant_namespaces=("team-a",), audit_seconds=0.1
)
CONSENT = {"allowedEndpoints": ["http://127.0.0.1:9555"], "allowedNamespaces": {"from": "All"}}
SOMEBODY_ELSES = {
    "type": "Ready",
    "status": "True",
    "reason": "Available",
    "message": "",
    "lastTransitionTime": "2030-01-01T00:00:00Z",
}


def tenants(name: str, service_namespace: str = "default") -> Json:
    manifest = adapter(name)
    manifest["metadata"]["namespace"] = "team-a"
    manifest["spec"]["inferenceServiceRef"] = {"name": "tiny", "namespace": service_namespace}
    return manifest


def accepted(api: KubeApi, name: str) -> tuple[str, str]:
    return condition(api.store.find("loraadapters", name, "team-a"), "Accepted")


def served(api: KubeApi, name: str) -> bool:
    stored = api.store.find("loraadapters", name, "team-a")
    return condition(stored, "Ready")[0] == "True"


async def test_an_adapter_of_a_tenant_is_served_under_its_full_name(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(adapters=CONSENT), adapter("shout"), tenants("poet"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await until(operator, lambda: served(api, "poet"))
        assert len(revisions(api, "team-a/poet")) == 1
        api.create(tenants("pirate"))
        await until(operator, lambda: served(api, "pirate"))

        api.delete("loraadapters", "poet", "team-a")
        await until(operator, lambda: revisions(api, "team-a/poet") == [])


async def test_a_tenant_needs_the_services_consent(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), tenants("poet"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await serving(api, operator, "shout")
        await until(operator, lambda: accepted(api, "poet") == ("False", "RefNotPermitted"))


async def test_only_adapters_are_looked_at_in_a_tenants_namespace(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(adapters=CONSENT), tenants("poet"), secret(), service("team-a")):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await until(operator, lambda: served(api, "poet"))
        # The Event that tells of it is the last thing that is written.
        await until(operator, lambda: bool(api.store.select("events", "team-a")))
    assert api.store.select("configmaps", "team-a") == []
    there = {call.plural for call in api.calls if call.namespace == "team-a"}
    assert there == {"loraadapters", "events"}


async def test_of_a_service_elsewhere_another_operator_has_the_last_word(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    theirs = tenants("theirs", "elsewhere")
    theirs["status"] = {"conditions": [SOMEBODY_ELSES]}
    for manifest in (service(adapters=CONSENT), theirs, tenants("nobodys", "elsewhere"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await until(operator, lambda: accepted(api, "nobodys") == ("False", "TargetNotFound"))
        api.create(tenants("poet"))
        await until(operator, lambda: served(api, "poet"))
        stored = api.store.find("loraadapters", "theirs", "team-a")
        assert stored is not None
        assert stored["status"]["conditions"] == [SOMEBODY_ELSES]


async def test_a_secret_that_appears_or_changes_is_seen_without_any_event(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, secret_seconds=0.2)
    api.create(service())

    def reason() -> str:
        return condition(api.store.find("inferenceservices", "tiny"), "Accepted")[1]

    def values() -> set[str]:
        stored = api.store.select("secrets")
        return {text for each in stored for text in (each.get("data") or {}).values()}

    async with run_operator_thread(api, tmp_path, settings) as operator:
        await until(operator, lambda: reason() == "SecretNotFound")
        api.create(secret())
        await until(operator, lambda: reason() == "Accepted")
        before = values()
        api.change("secrets", "keys", {"data": {"secretAccessKey": "bmV3"}})
        # The new value, and the copy that pods mount.
        await until(operator, lambda: len(values() - before) == 2)


async def test_a_watch_of_tenants_that_breaks_ends_the_operator(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(adapters=CONSENT), tenants("poet"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await until(operator, lambda: served(api, "poet"))
        api.stream_errors["loraadapters"] = 500
        assert isinstance(await operator.ended(), OperatorError)
