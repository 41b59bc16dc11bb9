"""What lets the number of pods change: autoscaler and disruption budget."""

from __future__ import annotations

from typing import Any

from graft_operator.render.common import child, child_name, selector_labels
from graft_operator.resources.meta import Manifest
from graft_operator.resources.quantity import canonical_quantity
from graft_operator.resources.scaling import AutoscalingSpec
from graft_operator.resources.v1alpha1 import InferenceService

REQUESTS_METRIC = "graft_requests"
KV_METRIC = "graft_kv_cache_usage_percent"


def autoscaler(service: InferenceService) -> Manifest | None:
    """Return the HorizontalPodAutoscaler, if the spec asks for one."""
    scaling = service.spec.autoscaling
    if scaling is None:
        return None
    head = child(service, "autoscaling/v2", "HorizontalPodAutoscaler", child_name(service))
    spec: dict[str, Any] = {
        "scaleTargetRef": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": child_name(service),
        },
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": _metrics(scaling),
        "behavior": _behavior(scaling),
    }
    return {**head, "spec": spec}


def _behavior(scaling: AutoscalingSpec) -> dict[str, Any]:
    """Return what keeps the number of pods from following every ripple of the gauges."""
    behavior = {"scaleDown": {"stabilizationWindowSeconds": scaling.scale_down_seconds}}
    if scaling.scale_up_seconds:
        behavior["scaleUp"] = {"stabilizationWindowSeconds": scaling.scale_up_seconds}
    return behavior


def _metrics(scaling: AutoscalingSpec) -> list[dict[str, Any]]:
    targets = {
        REQUESTS_METRIC: scaling.target_requests,
        KV_METRIC: scaling.target_kv_usage_percent,
    }
    return [
        {
            "type": "Pods",
            "pods": {
                "metric": {"name": name},
                "target": {"type": "AverageValue", "averageValue": canonical_quantity(value)},
            },
        }
        for name, value in targets.items()
        if value is not None
    ]


def disruption_budget(service: InferenceService) -> Manifest | None:
    """Return the PodDisruptionBudget, unless the spec wants none."""
    budget = service.spec.disruption_budget
    if not budget.enabled:
        return None
    head = child(service, "policy/v1", "PodDisruptionBudget", child_name(service))
    spec = {
        "maxUnavailable": budget.max_unavailable,
        "selector": {"matchLabels": selector_labels(service)},
        # A pod that does not serve is nobody's loss, and must not hold up the drain of a node.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return {**head, "spec": spec}
