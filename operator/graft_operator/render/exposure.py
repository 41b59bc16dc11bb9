"""What stands around the pods: identity, network policy, monitor, inference pool."""

from __future__ import annotations

from typing import Any

from graft_operator.render.common import child, child_name, selector_labels
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.naming import GRPC_PORT, HTTP_PORT, INTERNAL_PORT

OPERATOR_LABELS = {"app.kubernetes.io/name": "graft"}
NAMESPACE_NAME = "kubernetes.io/metadata.name"


def service_account(service: InferenceService) -> Manifest | None:
    """Return the ServiceAccount, if the spec asks for one of the service's own."""
    annotations = service.spec.runtime.service_account.annotations
    if annotations is None:
        return None
    head = child(service, "v1", "ServiceAccount", child_name(service), annotations=annotations)
    return {**head, "automountServiceAccountToken": False}


def service_account_name(service: InferenceService) -> str | None:
    """Return the name of the pods' ServiceAccount; None is the namespace's default one."""
    account = service.spec.runtime.service_account
    return account.name or (child_name(service) if account.annotations is not None else None)


def network_policy(service: InferenceService, operator_namespace: str) -> Manifest | None:
    """Return the NetworkPolicy, if the spec asks for one.

    Args:
        service: What to guard.
        operator_namespace: Where the operator runs; empty takes its pod from any namespace.
    """
    spec = service.spec.network_policy
    if not spec.enabled:
        return None
    head = child(service, "networking.k8s.io/v1", "NetworkPolicy", child_name(service))
    operator: dict[str, Any] = {
        "podSelector": {"matchLabels": OPERATOR_LABELS},
        "namespaceSelector": (
            {"matchLabels": {NAMESPACE_NAME: operator_namespace}} if operator_namespace else {}
        ),
    }
    public: dict[str, Any] = {
        "ports": [{"port": port, "protocol": "TCP"} for port in (HTTP_PORT, GRPC_PORT)]
    }
    if spec.from_ == "Same":
        own = {NAMESPACE_NAME: service.metadata.namespace}
        wanted = [own, *([dict(spec.namespace_labels)] if spec.namespace_labels else [])]
        public["from"] = [{"namespaceSelector": {"matchLabels": labels}} for labels in wanted]
    rules = [public, {"ports": [{"port": INTERNAL_PORT, "protocol": "TCP"}], "from": [operator]}]
    return {
        **head,
        "spec": {
            "podSelector": {"matchLabels": selector_labels(service)},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        },
    }


def pod_monitor(service: InferenceService) -> Manifest | None:
    """Return the PodMonitor, if the spec asks for one."""
    spec = service.spec.monitoring
    if not spec.enabled:
        return None
    head = child(service, "monitoring.coreos.com/v1", "PodMonitor", child_name(service))
    metadata = {**head["metadata"], "labels": {**spec.labels, **head["metadata"]["labels"]}}
    endpoint = {"port": "http", "path": "/metrics", "interval": f"{spec.interval_seconds}s"}
    return {
        **head,
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": selector_labels(service)},
            "podMetricsEndpoints": [endpoint],
        },
    }


def inference_pool(service: InferenceService) -> Manifest | None:
    """Return the InferencePool, if the spec asks for one."""
    spec = service.spec.inference_pool
    if spec is None:
        return None
    group = "inference.networking.k8s.io/v1"
    head = child(service, group, "InferencePool", child_name(service))
    picker = {"name": spec.endpoint_picker, "port": {"number": spec.endpoint_picker_port}}
    return {
        **head,
        "spec": {
            "selector": {"matchLabels": selector_labels(service)},
            "targetPorts": [{"number": HTTP_PORT}],
            "endpointPickerRef": picker,
        },
    }
