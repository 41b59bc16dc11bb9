"""Which namespaces are meant, by their labels, as a label selector of Kubernetes says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from graft_operator.resources.fields import LabelKey, LabelValue
from graft_operator.resources.meta import Closed

VALUES_WHEN_COMPARED = "In and NotIn go with values, Exists and DoesNotExist with none"
SELECTS_SOMETHING = "a selector needs matchLabels or matchExpressions; from: All admits everybody"


class NamespaceExpression(Closed):
    """What a label of a namespace has to be."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "(self.operator in ['In', 'NotIn'])"
                    " == (has(self.values) && self.values.size() > 0)",
                    "message": VALUES_WHEN_COMPARED,
                }
            ]
        }
    )

    key: LabelKey
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """`In`: there, with one of `values`. `NotIn`: with another value, or not there. `Exists`:
    there, whatever its value. `DoesNotExist`: not there."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = ()
    """What it is compared with."""

    @model_validator(mode="after")
    def _values_fit(self) -> NamespaceExpression:
        if (self.operator in ("In", "NotIn")) != bool(self.values):
            raise ValueError(VALUES_WHEN_COMPARED)
        return self

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it is true of these labels."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class NamespaceSelector(Closed):
    """Namespaces with certain labels."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "(has(self.matchLabels) && self.matchLabels.size() > 0)"
                    " || (has(self.matchExpressions) && self.matchExpressions.size() > 0)",
                    "message": SELECTS_SOMETHING,
                }
            ]
        }
    )

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """Labels that such a namespace has, all of them."""
    match_expressions: Annotated[tuple[NamespaceExpression, ...], Field(max_length=16)] = ()
    """What else holds of such a namespace, all of it."""

    @model_validator(mode="after")
    def _selects_something(self) -> NamespaceSelector:
        if not self.match_labels and not self.match_expressions:
            raise ValueError(SELECTS_SOMETHING)
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a namespace with these labels is one."""
        return self.match_labels.items() <= labels.items() and all(
            expression.holds(labels) for expression in self.match_expressions
        )
