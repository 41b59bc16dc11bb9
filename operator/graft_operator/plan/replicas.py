"""How many pods a Deployment is told to have, or that somebody else tells it."""

from __future__ import annotations

from graft_operator.plan.views import DeploymentView
from graft_operator.resources.v1alpha1 import InferenceService


def replicas_to_apply(service: InferenceService, stored: DeploymentView | None) -> int | None:
    """Return the number to write; None leaves the field to the autoscaler that has written it.

    As long as nobody else owns the field it is written with the number that is there: a field that
    its only owner leaves out falls back to 1, and the pods with it.
    """
    scaling = service.spec.autoscaling
    if scaling is None:
        return service.spec.replicas
    if stored is None:
        return min(max(service.spec.replicas, scaling.min_replicas), scaling.max_replicas)
    return None if stored.is_scaled_by_others else stored.replicas


def replicas_expected(service: InferenceService, stored: DeploymentView | None) -> int:
    """Return how many pods there are to be."""
    if service.spec.autoscaling is not None and stored is not None:
        return stored.replicas
    return replicas_to_apply(service, None) or 0
