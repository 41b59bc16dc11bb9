"""The Deployment of the runtime pods, within Pod Security Standard `restricted`.

The template is versioned (`constants.TEMPLATE_REVISION`): what this file renders for a revision
must not change, or running pods would be replaced by an upgrade of the operator.
"""

from __future__ import annotations

import math
from typing import Any

from graft_operator.constants import ANNOTATION_CONFIG, TEMPLATE_REVISION
from graft_operator.render.common import child, child_name, selector_labels
from graft_operator.render.configmaps import (
    CONFIG_FILE,
    config_hash,
    config_map_name,
    runtime_config,
    shard_map_names,
)
from graft_operator.render.secrets import credential_secret_names, token_secret_name
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.naming import (
    ANNOTATION_TEMPLATE_REVISION,
    ENV_POD_NAME,
    HTTP_PORT,
    INTERNAL_PORT,
    PodPaths,
)

USER_ID = 10_001
START_SECONDS = 1800
"""Longest a pod may take to start: a large model from a far object store."""
LINGER_SECONDS = 5
"""How long a pod that is to end serves on: the nodes' proxies hear of it a moment later, and what
they still send would be refused."""
STOP_MARGIN_SECONDS = 10 + LINGER_SECONDS
PATHS = PodPaths()
Json = dict[str, Any]


def deployment(service: InferenceService, image: str) -> Manifest:
    """Return the Deployment.

    Args:
        service: What to serve.
        image: The runtime's image if the spec names none.
    """
    labels = selector_labels(service)
    annotations = {
        ANNOTATION_CONFIG: config_hash(service),
        ANNOTATION_TEMPLATE_REVISION: str(TEMPLATE_REVISION),
    }
    head = child(service, "apps/v1", "Deployment", child_name(service))
    spec = {
        "replicas": service.spec.replicas,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": START_SECONDS + 60,
        "selector": {"matchLabels": labels},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
        },
        "template": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": _pod_spec(service, image),
        },
    }
    return {**head, "spec": spec}


def _pod_spec(service: InferenceService, image: str) -> Json:
    drain = runtime_config(service).server.drain_timeout_seconds
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(drain) + STOP_MARGIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(service, image)],
        "volumes": [*_volumes(service), *_claim_volumes(service)],
    }


def _container(service: InferenceService, image: str) -> Json:
    own_name: Json = {
        "name": ENV_POD_NAME,
        "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
    }
    env = [{"name": item.name, "value": item.value} for item in service.spec.runtime.env]
    return {
        "name": "runtime",
        "image": service.spec.runtime.image or image,
        "command": ["graft-runtime", "serve"],
        "env": [own_name, *env],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "internal", "containerPort": INTERNAL_PORT, "protocol": "TCP"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": _probe("/startupz", period=2, failures=START_SECONDS // 2),
        "readinessProbe": _probe("/readyz", period=1, failures=2),
        "livenessProbe": _probe("/livez", period=10, failures=3),
        # The signal to stop follows the hook; the pod has left its Service by then.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LINGER_SECONDS)]}}},
        "volumeMounts": [*_mounts(), *_claim_mounts(service)],
    }


def _probe(path: str, *, period: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": "http", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _mounts() -> list[Json]:
    def read_only(name: str, path: object) -> Json:
        return {"name": name, "mountPath": str(path), "readOnly": True}

    return [
        read_only("config", PATHS.config_file.parent),
        read_only("adapters", PATHS.adapters_dir),
        read_only("credentials", PATHS.credentials_dir),
        read_only("internal", PATHS.token_file.parent),
        {"name": "cache", "mountPath": str(PATHS.cache_dir)},
        {"name": "run", "mountPath": str(PATHS.run_dir)},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - a volume of the pod's own
    ]


def _claim_mounts(service: InferenceService) -> list[Json]:
    return [
        {"name": name, "mountPath": str(PATHS.claims_dir / claim), "readOnly": True}
        for name, claim in _named_claims(service)
    ]


def _claim_volumes(service: InferenceService) -> list[Json]:
    return [
        {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        for name, claim in _named_claims(service)
    ]


def _named_claims(service: InferenceService) -> list[tuple[str, str]]:
    """Pair claims with volume names: a claim may be called what no volume can be."""
    return [(f"claim-{index}", claim) for index, claim in enumerate(service.claims)]


def quantity(num_bytes: int) -> str:
    """Return a size as Kubernetes itself writes it, so that what is stored equals what was sent."""
    for unit, factor in (("Ei", 2**60), ("Pi", 2**50), ("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20)):
        if num_bytes % factor == 0:
            return f"{num_bytes // factor}{unit}"
    return f"{num_bytes // 1024}Ki" if num_bytes % 1024 == 0 else str(num_bytes)


def _volumes(service: InferenceService) -> list[Json]:
    config_items = [{"key": CONFIG_FILE, "path": CONFIG_FILE}]
    shards = [{"configMap": {"name": name}} for name in shard_map_names(service)]
    credentials = [{"secret": {"name": name}} for name in credential_secret_names(service)]
    return [
        {
            "name": "config",
            "configMap": {"name": config_map_name(service), "items": config_items},
        },
        {"name": "adapters", "projected": {"sources": shards}},
        {"name": "credentials", "projected": {"sources": credentials, "defaultMode": 0o440}},
        {
            "name": "internal",
            "secret": {"secretName": token_secret_name(service), "defaultMode": 0o440},
        },
        {"name": "cache", "emptyDir": {"sizeLimit": quantity(service.spec.cache.max_bytes)}},
        {"name": "run", "emptyDir": {"sizeLimit": "16Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ]
