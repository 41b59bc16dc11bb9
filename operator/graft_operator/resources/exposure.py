"""What stands around the pods: who reaches them, who they are, who watches them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from graft_operator.resources.fields import LabelKey, LabelValue, ObjectName
from graft_operator.resources.meta import Closed

NAME_OR_ANNOTATIONS = "a named ServiceAccount is not ours to annotate"

Annotation = Annotated[str, Field(max_length=1024)]


class ServiceAccountSpec(Closed):
    """The identity of the pods, by which a cloud may open its object store.

    Without a name and without annotations the namespace's default ServiceAccount is used.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!(has(self.name) && has(self.annotations))",
                    "message": NAME_OR_ANNOTATIONS,
                }
            ]
        }
    )

    name: ObjectName | None = None
    """A ServiceAccount that exists in the namespace."""
    annotations: Annotated[dict[LabelKey, Annotation], Field(max_length=16)] | None = None
    """Have a ServiceAccount made for this service, with these annotations: a cloud's binding to one
    of its own identities, for instance."""

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> ServiceAccountSpec:
        if self.name is not None and self.annotations is not None:
            raise ValueError(NAME_OR_ANNOTATIONS)
        return self


class DisruptionBudgetSpec(Closed):
    """How many pods a node's drain or another voluntary disruption may take at a time."""

    enabled: bool = True
    """Make a PodDisruptionBudget."""
    max_unavailable: Annotated[int, Field(ge=0, le=1000)] = 1
    """Pods that may be missing; 0 makes the drain of a node wait for a person."""


class NetworkPolicySpec(Closed):
    """Who may open connections to the pods. Needs a network that enforces NetworkPolicies."""

    enabled: bool = False
    """Make a NetworkPolicy: the internal port is for the operator alone."""
    from_: Annotated[Literal["Same", "All"], Field(alias="from")] = "All"
    """From where clients and Prometheus may come: the service's own namespace, or anywhere."""
    namespace_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """Namespaces with these labels may come in as well when `from` is `Same`."""


class MonitoringSpec(Closed):
    """How Prometheus finds the pods."""

    enabled: bool = False
    """Make a PodMonitor, where the Prometheus operator's CRDs are installed."""
    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """Pause between two scrapes."""
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """Labels of the PodMonitor, by which a Prometheus chooses what it scrapes."""


class InferencePoolSpec(Closed):
    """An InferencePool of the Gateway API's inference extension, where its CRDs are installed."""

    endpoint_picker: ObjectName
    """Service of the endpoint picker, in the same namespace."""
    endpoint_picker_port: Annotated[int, Field(ge=1, le=65535)] = 9002
    """Its port."""
