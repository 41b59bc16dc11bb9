"""What a namespace may have is bounded, each by itself, and room that appears is used at once."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from e2e.client import Client
from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl
from e2e.conftest import MakeNamespace
from e2e.stage import Stage, condition, edited
from e2e.tenants import add_tenants, apply_adapter, consent
from e2e.voices import sounds_like

MEGABYTE = 1_000_000
STEPS = {"rollout": {"steps": [{"weight": 50}]}}


def test_one_adapter_too_many_waits_for_room_or_for_a_larger_quota(
    stage: Stage, make_namespace: MakeNamespace
) -> None:
    client, kubectl = stage.serve(allowed="All"), stage.kubectl
    (tenant,) = add_tenants(stage, make_namespace, "tenant")
    consent(stage, tenant)
    # For every namespace that no other entry names, each by itself.
    _limit(stage, {"maxAdapters": 2})
    for name in ("shout", "cheerful"):
        stage.add(name, name)
    before = stage.starts()

    kubectl.apply(stage.bucket.publish("poet", "poet"))
    message = _wait_until_refused(kubectl, "poet")
    assert f"namespace {kubectl.namespace} has its 2 adapters already" in message
    assert client.ask("poet").status == HTTPStatus.NOT_FOUND
    assert "QuotaExceeded" in kubectl.run("get", "lora/poet", "--no-headers").split()
    # Who is served stays, and another namespace has room of its own.
    assert sounds_like("shout", client.ask("shout").text)
    theirs = apply_adapter(stage, tenant, "poet")
    tenant.run("wait", "lora/poet", "--for=condition=Ready", "--timeout=60s")
    assert client.ask(theirs).is_ok

    kubectl.run("delete", "lora/cheerful", "--timeout=30s")
    stage.wait_ready("lora/poet")
    assert client.ask("poet").is_ok
    kubectl.apply(stage.bucket.publish("cheerful", "cheerful"))
    _wait_until_refused(kubectl, "cheerful")

    _limit(stage, {"namespaces": [kubectl.namespace], "maxAdapters": 3}, {"maxAdapters": 2})
    stage.wait_ready("lora/shout", "lora/cheerful", "lora/poet")
    assert client.ask("cheerful").is_ok
    assert stage.starts() == before


def test_bytes_count_as_soon_as_a_pod_has_found_them_out(stage: Stage) -> None:
    client, kubectl = stage.serve(), stage.kubectl
    _limit(stage, {"maxBytes": MEGABYTE})
    stage.add("shout", "shout")
    before = stage.starts()

    # Nobody knows how large this one is until a pod has fetched it.
    kubectl.apply(stage.bucket.publish("poet", "poet"))
    message = _wait_until_refused(kubectl, "poet")
    assert f"namespace {kubectl.namespace} would have " in message
    assert f" of {MEGABYTE} bytes" in message
    wait_until(lambda: _is_gone(client, "poet"), "the name to go", seconds=30)
    assert sounds_like("shout", client.ask("shout").text)

    # A smaller source has room; the large one has with a larger quota.
    kubectl.apply(stage.bucket.publish("cheerful", "poet"))
    stage.wait_ready("lora/poet")
    kubectl.apply(stage.bucket.publish("poet", "poet"))
    _wait_until_held_back(kubectl, "poet")
    # Pods had it before anybody knew how large it is, and asked it nothing.
    assert sounds_like("cheerful", client.ask("poet").text)
    _limit(stage, {"maxBytes": 10 * MEGABYTE})
    wait_until(lambda: _served_bytes(kubectl) > MEGABYTE, "the large one", seconds=60)
    stage.wait_ready("lora/shout", "lora/poet")
    assert client.ask("poet").is_ok

    # A new version for which there is no room leaves the one that serves where it is.
    _limit(stage, {"maxBytes": 2 * MEGABYTE})
    kubectl.apply(edited(stage.bucket.publish("poet", "shout"), spec=STEPS))
    _wait_until_held_back(kubectl, "shout")
    assert sounds_like("shout", client.ask("shout").text)
    stage.wait_ready("lora/shout", "lora/poet")
    assert stage.starts() == before


def _limit(stage: Stage, *tenants: dict[str, Any]) -> None:
    stage.change("gis/base", adapters={"tenants": list(tenants)})


def _served_bytes(kubectl: Kubectl) -> int:
    return sum(adapter["status"]["currentRevision"]["bytes"] for adapter in _adapters(kubectl))


def _wait_until_held_back(kubectl: Kubectl, name: str) -> None:
    """Wait until an update finds no room while the version before it serves."""
    held = "RolloutProgressing=False QuotaExceeded"
    wait_until(lambda: _progress(kubectl, name) == "QuotaExceeded", held, seconds=60)


def _wait_until_refused(kubectl: Kubectl, name: str) -> str:
    """Wait until an adapter finds no room; return what it says."""
    wait_until(
        lambda: condition(kubectl.get(f"lora/{name}"), "Accepted").get("reason") == "QuotaExceeded",
        "Accepted=False QuotaExceeded",
        seconds=60,
    )
    ready = condition(kubectl.get(f"lora/{name}"), "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "QuotaExceeded")
    return str(ready["message"])


def _adapters(kubectl: Kubectl) -> list[dict[str, Any]]:
    return list(kubectl.get("loraadapters")["items"])


def _progress(kubectl: Kubectl, name: str) -> str:
    return str(condition(kubectl.get(f"lora/{name}"), "RolloutProgressing").get("reason"))


def _is_gone(client: Client, name: str) -> bool:
    return client.ask(name).status == HTTPStatus.NOT_FOUND
