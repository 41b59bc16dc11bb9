"""The Deployment of the runtime pods: how many, and how they are replaced."""

from __future__ import annotations

from typing import Any

from graft_operator.constants import ANNOTATION_DEFAULT_IMAGE
from graft_operator.render.common import child, child_name, selector_labels
from graft_operator.render.pod_template import pod_template
from graft_operator.resources.meta import Manifest
from graft_operator.resources.pin import TemplatePin
from graft_operator.resources.v1alpha1 import InferenceService

START_MARGIN_SECONDS = 60
"""By how much a rollout's default deadline exceeds that of a pod's start."""


def deployment(service: InferenceService, pin: TemplatePin, replicas: int | None) -> Manifest:
    """Return the Deployment.

    Args:
        service: What to serve.
        pin: The template's revision, and the runtime's image if the spec names none.
        replicas: Number of pods; None says nothing about it.
    """
    annotations = {ANNOTATION_DEFAULT_IMAGE: pin.image}
    head = child(service, "apps/v1", "Deployment", child_name(service), annotations=annotations)
    rollout = service.spec.rollout
    deadline = rollout.progress_deadline_seconds
    spec: dict[str, Any] = {
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": deadline
        or rollout.startup_deadline_seconds + START_MARGIN_SECONDS,
        "selector": {"matchLabels": selector_labels(service)},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {
                "maxSurge": rollout.max_surge,
                "maxUnavailable": rollout.max_unavailable,
            },
        },
        "template": pod_template(service, pin),
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {**head, "spec": spec}
