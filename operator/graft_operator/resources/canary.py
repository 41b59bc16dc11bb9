"""How requests move from one version of an adapter to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from graft_operator.resources.meta import Closed

WEIGHTS_GROW = "weights of steps must grow"

Percent = Annotated[int, Field(ge=1, le=99)]


class CanaryStep(Closed):
    """A share of the requests that the new version gets for a while."""

    weight: Percent
    """Percent of the adapter's requests."""
    pause_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = None
    """How long this step lasts. Left out: until somebody promotes the version."""


class AdapterRollout(Closed):
    """How a new version takes over.

    Without steps it gets all requests as soon as it is loaded. With steps it is loaded everywhere
    first, without any request, and then gets its shares one after the other.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.steps) || (self.steps.map(s, s.weight).isSorted() && "
                    "self.steps.all(a, self.steps.exists_one(b, b.weight == a.weight)))",
                    "message": WEIGHTS_GROW,
                }
            ]
        }
    )

    steps: Annotated[tuple[CanaryStep, ...], Field(max_length=10)] = ()
    """The shares, growing. After the last one the new version gets everything."""
    promote: Annotated[str, Field(max_length=512)] | None = None
    """Give everything to the version of this id, copied from `status.candidateRevision.id`, as soon
    as it is loaded."""
    max_error_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the new version's requests that may fail by the server's fault. Beyond it, the
    version is taken out again, and `status.rejectedRevision` says why."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Requests that the new version must have had before that share means anything."""

    @model_validator(mode="after")
    def _grows(self) -> AdapterRollout:
        weights = [step.weight for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise ValueError(WEIGHTS_GROW)
        return self
