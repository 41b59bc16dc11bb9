"""A tenant's adapters live in a namespace of its own, and everybody involved has to agree."""

from __future__ import annotations

from http import HTTPStatus

from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl
from e2e.conftest import MakeNamespace
from e2e.stage import Stage, condition
from e2e.tenants import add_tenants, apply_adapter, consent
from e2e.voices import sounds_like


def test_a_tenants_adapter_is_served_once_the_tenant_consents(
    stage: Stage, make_namespace: MakeNamespace
) -> None:
    client = stage.serve(allowed="All")
    (tenant,) = add_tenants(stage, make_namespace, "tenant")

    name = apply_adapter(stage, tenant, "shout")
    _wait_for(tenant, "SecretNotFound")
    assert client.ask(name).status == HTTPStatus.NOT_FOUND

    # Nothing but this Role is asked of a tenant, and it opens one Secret.
    consent(stage, tenant)
    tenant.run("wait", "lora/shout", "--for=condition=Ready", "--timeout=90s")
    assert sounds_like("shout", client.ask(name).text)
    # Its short name belongs to the service's own namespace.
    assert client.ask("shout").status == HTTPStatus.NOT_FOUND
    operator = f"system:serviceaccount:{stage.release.namespace}:graft"
    assert not tenant.succeeds("auth", "can-i", "list", "secrets", "--as", operator)

    tenant.run("delete", "rolebinding", "graft-reads-object-store")
    _wait_for(tenant, "SecretNotFound")
    wait_until(
        lambda: client.ask(name).status == HTTPStatus.NOT_FOUND, "the name to go", seconds=30
    )
    assert client.ask("base").is_ok


def test_a_service_that_admits_nobody_from_elsewhere_says_so(
    stage: Stage, make_namespace: MakeNamespace
) -> None:
    client = stage.serve(allowed="Same")
    (tenant,) = add_tenants(stage, make_namespace, "tenant")
    consent(stage, tenant)

    name = apply_adapter(stage, tenant, "shout")
    _wait_for(tenant, "RefNotPermitted")
    before = stage.starts()
    stage.apply(allowed="All")

    tenant.run("wait", "lora/shout", "--for=condition=Ready", "--timeout=60s")
    assert sounds_like("shout", client.ask(name).text)
    assert stage.starts() == before


def _wait_for(tenant: Kubectl, reason: str) -> None:
    wait_until(
        lambda: condition(tenant.get("lora/shout"), "Accepted").get("reason") == reason,
        f"Accepted=False {reason}",
        seconds=90,
    )
