"""The template of the runtime pods, within Pod Security Standard `restricted`.

It is versioned: what this file renders for one of the revisions that `constants` lists must not
change, or running pods would be replaced by an upgrade of the operator. What is new stands behind a
new revision, or behind a field of the spec that nobody can have set before.
"""

from __future__ import annotations

import math
from typing import Any

from graft_operator.constants import ANNOTATION_CONFIG
from graft_operator.render.common import selector_labels
from graft_operator.render.configmaps import (
    CONFIG_FILE,
    config_hash,
    config_map_name,
    runtime_config,
    shard_map_names,
)
from graft_operator.render.exposure import service_account_name
from graft_operator.render.secrets import credential_secret_names, token_secret_name
from graft_operator.resources.affinity import NodePreference, NodeTerm
from graft_operator.resources.pin import TemplatePin
from graft_operator.resources.placement import ResourcesSpec, SchedulingSpec
from graft_operator.resources.quantity import canonical_quantity, quantity
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.naming import (
    ANNOTATION_TEMPLATE_REVISION,
    ENV_POD_NAME,
    HTTP_PORT,
    INTERNAL_PORT,
    PodPaths,
)

TELLS_LAST_WORDS = 2
"""First revision whose crashed containers show the end of their log, and whose volumes are not
walked through at every start."""
SPREADS_OVER_NODES = 3
"""First revision whose pods avoid the node that another pod of theirs is on."""

USER_ID = 10_001
LINGER_SECONDS = 5
"""How long a pod that is to end serves on: the nodes' proxies hear of it a moment later, and what
they still send would be refused."""
STOP_MARGIN_SECONDS = 10 + LINGER_SECONDS
PATHS = PodPaths()
Json = dict[str, Any]


def pod_template(service: InferenceService, pin: TemplatePin) -> Json:
    """Return the template."""
    annotations = {
        ANNOTATION_CONFIG: config_hash(service, pin.revision),
        ANNOTATION_TEMPLATE_REVISION: str(pin.revision),
    }
    return {
        "metadata": {"labels": selector_labels(service), "annotations": annotations},
        "spec": _pod_spec(service, pin),
    }


def _pod_spec(service: InferenceService, pin: TemplatePin) -> Json:
    drain = runtime_config(service, pin.revision).server.drain_timeout_seconds
    security: Json = {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if pin.revision >= TELLS_LAST_WORDS:
        security["fsGroupChangePolicy"] = "OnRootMismatch"
    account = service_account_name(service)
    return {
        **({"serviceAccountName": account} if account else {}),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(drain) + STOP_MARGIN_SECONDS,
        "securityContext": security,
        "containers": [_container(service, pin)],
        "volumes": [*_volumes(service, pin), *_claim_volumes(service)],
        **_scheduling(service, pin),
    }


def _container(service: InferenceService, pin: TemplatePin) -> Json:
    own_name: Json = {
        "name": ENV_POD_NAME,
        "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
    }
    env = [{"name": item.name, "value": item.value} for item in service.spec.runtime.env]
    start = service.spec.rollout.startup_deadline_seconds
    container: Json = {
        "name": "runtime",
        "image": service.spec.runtime.image or pin.image,
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
        "startupProbe": _probe("/startupz", period=2, failures=start // 2),
        "readinessProbe": _probe("/readyz", period=1, failures=2),
        "livenessProbe": _probe("/livez", period=10, failures=3),
        # The signal to stop follows the hook; the pod has left its Service by then.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LINGER_SECONDS)]}}},
        "volumeMounts": [*_mounts(), *_claim_mounts(service)],
    }
    if pin.revision >= TELLS_LAST_WORDS:
        container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    resources = _resources(service.spec.resources)
    if resources:
        container["resources"] = resources
    return container


def _resources(spec: ResourcesSpec) -> Json:
    parts = {"requests": spec.requests, "limits": spec.limits}
    return {
        part: {name: canonical_quantity(value) for name, value in sorted(values.items())}
        for part, values in parts.items()
        if values
    }


def _scheduling(service: InferenceService, pin: TemplatePin) -> Json:
    spec = service.spec.scheduling
    names = {
        "priorityClassName": spec.priority_class_name,
        "runtimeClassName": spec.runtime_class_name,
        "schedulerName": spec.scheduler_name,
    }
    fields: Json = {field: name for field, name in names.items() if name is not None}
    if spec.node_selector:
        fields["nodeSelector"] = dict(sorted(spec.node_selector.items()))
    if spec.tolerations:
        fields["tolerations"] = [
            item.model_dump(by_alias=True, exclude_none=True) for item in spec.tolerations
        ]
    affinity = _node_affinity(spec)
    if affinity:
        fields["affinity"] = {"nodeAffinity": affinity}
    spread = _spread(service, spec, pin)
    return {**fields, "topologySpreadConstraints": spread} if spread else fields


def _node_affinity(spec: SchedulingSpec) -> Json:
    when = "DuringSchedulingIgnoredDuringExecution"
    wanted = spec.node_affinity
    affinity: Json = {}
    if wanted.required:
        terms = [{"matchExpressions": _expressions(item)} for item in wanted.required]
        affinity[f"required{when}"] = {"nodeSelectorTerms": terms}
    if wanted.preferred:
        affinity[f"preferred{when}"] = [
            {"weight": item.weight, "preference": {"matchExpressions": _expressions(item)}}
            for item in wanted.preferred
        ]
    return affinity


def _expressions(term: NodeTerm | NodePreference) -> list[Json]:
    return [
        {
            "key": item.key,
            "operator": item.operator,
            **({"values": list(item.values)} if item.values else {}),
        }
        for item in term.match_expressions
    ]


def _spread(service: InferenceService, spec: SchedulingSpec, pin: TemplatePin) -> list[Json]:
    constraints = [
        item.model_dump(by_alias=True, exclude_none=True)
        for item in spec.topology_spread_constraints
    ]
    if not constraints and pin.revision >= SPREADS_OVER_NODES:
        constraints = [
            {
                "topologyKey": "kubernetes.io/hostname",
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
            }
        ]
    selector = {"matchLabels": selector_labels(service)}
    return [{**item, "labelSelector": selector} for item in constraints]


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


def _volumes(service: InferenceService, pin: TemplatePin) -> list[Json]:
    config_items = [{"key": CONFIG_FILE, "path": CONFIG_FILE}]
    config_name = config_map_name(service, pin.revision)
    shards = [{"configMap": {"name": name}} for name in shard_map_names(service)]
    credentials = [{"secret": {"name": name}} for name in credential_secret_names(service)]
    return [
        {"name": "config", "configMap": {"name": config_name, "items": config_items}},
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
