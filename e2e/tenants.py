"""A tenant: a namespace of its own, with a Secret and adapters for somebody else's service."""

from __future__ import annotations

from collections.abc import Sequence

from e2e.cluster.tools import Kubectl
from e2e.conftest import MakeNamespace
from e2e.stage import Stage, edited, manifest


def add_tenants(stage: Stage, make_namespace: MakeNamespace, *purposes: str) -> Sequence[Kubectl]:
    """Make namespaces, name them in the release, and put a Secret for the store into each."""
    tenants = [stage.kubectl.within(make_namespace(purpose)) for purpose in purposes]
    names = ",".join(tenant.namespace for tenant in tenants)
    stage.release.upgrade("--set", f"tenantNamespaces={{{names}}}")
    for tenant in tenants:
        stage.open_store(tenant)
    return tenants


def consent(stage: Stage, tenant: Kubectl) -> None:
    """Let the operator read the tenant's Secret: nothing else is asked of a tenant."""
    tenant.apply(manifest("consent", operator=stage.release.namespace))


def apply_adapter(stage: Stage, tenant: Kubectl, adapter: str) -> str:
    """Apply one of the example adapters in the tenant's namespace; return its served name."""
    service = {"name": "base", "namespace": stage.kubectl.namespace}
    published = stage.bucket.publish(adapter, adapter, "--namespace", tenant.namespace)
    tenant.apply(edited(published, spec={"inferenceServiceRef": service}))
    return f"{tenant.namespace}/{adapter}"
