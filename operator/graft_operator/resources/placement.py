"""What a pod needs of its node: devices, memory, and where it may run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from graft_operator.resources.affinity import NodeAffinity
from graft_operator.resources.fields import (
    Count,
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
    each_once,
)
from graft_operator.resources.meta import Closed

DEVICES_IN_LIMITS = "a device such as nvidia.com/gpu belongs into limits alone"
DURATION_NEEDS_NO_EXECUTE = "tolerationSeconds goes with effect NoExecute"
EXISTS_HAS_NO_VALUE = "operator Exists goes without a value"
KEYLESS_EXISTS = "without a key only operator Exists has a meaning"

Quantities = Annotated[dict[LabelKey, Quantity], Field(max_length=16)]


class ResourcesSpec(Closed):
    """What the runtime container reserves and may use, as in a container's `resources`.

    Local mode runs on one machine and takes no notice.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.requests) || self.requests.all(k, !k.contains('/'))",
                    "message": DEVICES_IN_LIMITS,
                }
            ]
        }
    )

    requests: Quantities = Field(default_factory=dict)
    """Reserved on the node, for instance `cpu: 8, memory: 64Gi`. A pod waits until a node has as
    much to spare."""
    limits: Quantities = Field(default_factory=dict)
    """Upper bounds, and devices: `nvidia.com/gpu: 1`. Where a node with that many is missing, the
    condition PodsScheduled repeats what the scheduler says."""

    @model_validator(mode="after")
    def _devices_are_limits(self) -> ResourcesSpec:
        if any("/" in name for name in self.requests):
            raise ValueError(DEVICES_IN_LIMITS)
        return self


class Toleration(Closed):
    """A taint of nodes that does not keep the pods away."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.value) || !has(self.operator) || self.operator == 'Equal'",
                    "message": EXISTS_HAS_NO_VALUE,
                },
                {
                    "rule": "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                    "message": KEYLESS_EXISTS,
                },
                {
                    "rule": "!has(self.tolerationSeconds) || "
                    "(has(self.effect) && self.effect == 'NoExecute')",
                    "message": DURATION_NEEDS_NO_EXECUTE,
                },
            ]
        }
    )

    key: LabelKey | None = None
    """Key of the taint. Left out, with operator Exists, it is every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether the value counts."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; left out it is every effect."""
    toleration_seconds: Count | None = None
    """How long a pod stays on a node that gets the taint. Left out: for good."""

    @model_validator(mode="after")
    def _means_something(self) -> Toleration:
        if self.value is not None and self.operator == "Exists":
            raise ValueError(EXISTS_HAS_NO_VALUE)
        if self.key is None and self.operator != "Exists":
            raise ValueError(KEYLESS_EXISTS)
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError(DURATION_NEEDS_NO_EXECUTE)
        return self


class SpreadConstraint(Closed):
    """How evenly a service's pods are spread over the values of a node label."""

    topology_key: LabelKey
    """The node label, for instance `topology.kubernetes.io/zone`."""
    max_skew: Annotated[int, Field(ge=1, le=1000)] = 1
    """Largest difference between the values with the most and the fewest pods."""
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    """What happens to a pod that cannot be placed so."""


class SchedulingSpec(Closed):
    """Where pods may run. Local mode runs on one machine and takes no notice."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Labels that a node must have."""
    node_affinity: NodeAffinity = NodeAffinity()
    """Choices of nodes that labels alone cannot express, such as one of several GPU models."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that do not keep the pods away."""
    topology_spread_constraints: Annotated[
        tuple[SpreadConstraint, ...],
        Field(
            max_length=8,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["topologyKey", "whenUnsatisfiable"],
            },
        ),
        AfterValidator(each_once("topology_key", "when_unsatisfiable")),
    ] = ()
    """How the pods are spread. Left out, they are spread over nodes where that is possible."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pods, for instance `nvidia`."""
    scheduler_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Scheduler that places them."""
