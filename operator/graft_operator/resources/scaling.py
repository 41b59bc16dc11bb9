"""How the number of pods follows the load."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from graft_operator.resources.fields import Count
from graft_operator.resources.meta import Closed

MIN_UP_TO_MAX = "minReplicas must not be greater than maxReplicas"
SOME_TARGET = "targetRequests or targetKvUsagePercent is required"

ReplicaCount = Annotated[int, Field(ge=1, le=1000)]


class AutoscalingSpec(Closed):
    """A HorizontalPodAutoscaler on requests and KV memory, not on CPU, which says little here.

    Its metrics, `graft_requests` and `graft_kv_cache_usage_percent`, come from Prometheus through
    the custom metrics API; docs/operations.md has the adapter's rules. Not in local mode.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.minReplicas <= self.maxReplicas",
                    "message": MIN_UP_TO_MAX,
                },
                {
                    "rule": "has(self.targetRequests) || has(self.targetKvUsagePercent)",
                    "message": SOME_TARGET,
                },
            ]
        }
    )

    min_replicas: ReplicaCount = 1
    """Fewest pods."""
    max_replicas: ReplicaCount
    """Most pods."""
    target_requests: Count | None = None
    """Requests, running and waiting together, that a pod should have on average."""
    target_kv_usage_percent: Annotated[int, Field(ge=1, le=100)] | None = None
    """Used share of the KV pool that a pod should have on average."""
    scale_down_seconds: Annotated[int, Field(ge=0, le=3600)] = 300
    """How long the load must have been lower before pods are taken away."""
    scale_up_seconds: Annotated[int, Field(ge=0, le=3600)] = 0
    """How long the load must have been higher before pods are added. By default the first look that
    finds it so is enough, since pods of a model take long to start."""

    @model_validator(mode="after")
    def _makes_sense(self) -> AutoscalingSpec:
        if self.min_replicas > self.max_replicas:
            raise ValueError(MIN_UP_TO_MAX)
        if self.target_requests is None and self.target_kv_usage_percent is None:
            raise ValueError(SOME_TARGET)
        return self
