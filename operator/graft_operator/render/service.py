"""The Service in front of the pods."""

from __future__ import annotations

from graft_operator.render.common import child, child_name, selector_labels
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.naming import GRPC_PORT, HTTP_PORT


def service_manifest(service: InferenceService) -> Manifest:
    """Return the Service; only pods that are ready stand behind it."""
    head = child(service, "v1", "Service", child_name(service))
    spec = {
        "selector": selector_labels(service),
        "ports": [
            {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
            # By number: pods of earlier template revisions name no such port, and all listen on it.
            {
                "name": "grpc",
                "port": GRPC_PORT,
                "targetPort": GRPC_PORT,
                "protocol": "TCP",
                "appProtocol": "kubernetes.io/h2c",
            },
        ],
    }
    return {**head, "spec": spec}
