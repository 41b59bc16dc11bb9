"""Which nodes pods must have, or had better have, where one set of labels does not say it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from graft_operator.resources.fields import LabelKey, LabelValue
from graft_operator.resources.meta import Closed

VALUES_FIT_OPERATOR = (
    "In and NotIn go with values, Gt and Lt with one whole number, Exists and DoesNotExist with"
    " none"
)


class NodeExpression(Closed):
    """What a label of a node has to be."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.operator in ['In', 'NotIn']"
                    " ? has(self.values) && self.values.size() > 0"
                    " : self.operator in ['Gt', 'Lt']"
                    " ? has(self.values) && self.values.size() == 1"
                    " && self.values[0].matches('^[0-9]+$')"
                    " : !has(self.values) || self.values.size() == 0",
                    "message": VALUES_FIT_OPERATOR,
                }
            ]
        }
    )

    key: LabelKey
    """The label, for instance `nvidia.com/gpu.product`."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the label is compared with `values`."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = ()
    """What it is compared with."""

    @model_validator(mode="after")
    def _values_fit(self) -> NodeExpression:
        if self.operator in ("In", "NotIn"):
            fits = bool(self.values)
        elif self.operator in ("Gt", "Lt"):
            fits = len(self.values) == 1 and self.values[0].isdecimal()
        else:
            fits = not self.values
        if not fits:
            raise ValueError(VALUES_FIT_OPERATOR)
        return self


Expressions = Annotated[tuple[NodeExpression, ...], Field(min_length=1, max_length=16)]


class NodeTerm(Closed):
    """A kind of node."""

    match_expressions: Expressions
    """What holds of such a node, all of it."""


class NodePreference(Closed):
    """A kind of node that is better than others."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """How much better, beside other preferences."""
    match_expressions: Expressions
    """What holds of such a node, all of it."""


class NodeAffinity(Closed):
    """Which nodes pods must have, and which they had better have."""

    required: Annotated[tuple[NodeTerm, ...], Field(max_length=16)] = ()
    """Kinds of nodes: a pod's node has to be one of them. Empty admits every node."""
    preferred: Annotated[tuple[NodePreference, ...], Field(max_length=16)] = ()
    """Kinds of nodes that are taken first."""
