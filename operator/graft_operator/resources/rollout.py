"""How pods are replaced when their template changes, and when a newer operator may change it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from graft_operator.resources.meta import Closed

SOME_PROGRESS = "maxSurge and maxUnavailable cannot both be 0"
DEADLINE_AFTER_START = "progressDeadlineSeconds must be greater than startupDeadlineSeconds"
START_SECONDS = 1800
"""Longest a pod may take to start unless the spec says otherwise: a large model from afar."""

PodCount = Annotated[int, Field(ge=0, le=1000)]
Deadline = Annotated[int, Field(ge=10, le=86_400)]


class RuntimeUpgrade(Closed):
    """When pods get the newer template, default image and configuration of a newer operator."""

    policy: Literal["Manual", "Auto"] = "Manual"
    """`Manual`: running pods keep theirs, whatever operator comes; `status.updateAvailable` names
    what there is. `Auto`: the pods are replaced as soon as the operator has something newer."""
    approve: Annotated[str, Field(max_length=64)] | None = None
    """With `Manual`: the update that may be taken, copied from `status.updateAvailable`. It stands
    for that one only; the next one waits again."""


class RolloutSpec(Closed):
    """How pods are replaced. By default one after the other, so that no spare GPU is needed."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!(has(self.maxSurge) && self.maxSurge == 0 && "
                    "has(self.maxUnavailable) && self.maxUnavailable == 0)",
                    "message": SOME_PROGRESS,
                },
                {
                    "rule": "!has(self.progressDeadlineSeconds) || "
                    "self.progressDeadlineSeconds > self.startupDeadlineSeconds",
                    "message": DEADLINE_AFTER_START,
                },
            ]
        }
    )

    max_surge: PodCount = 0
    """Pods that may exist beyond `replicas` while pods are replaced. Each needs room, and a GPU
    where pods have one."""
    max_unavailable: PodCount = 1
    """Pods that may be missing while pods are replaced."""
    startup_deadline_seconds: Deadline = START_SECONDS
    """How long a container may take to fetch and load the model before it is started again."""
    progress_deadline_seconds: Deadline | None = None
    """How long a rollout may be without progress before the condition Progressing says
    ProgressDeadlineExceeded. Defaults to a minute more than the start may take."""
    runtime_upgrade: RuntimeUpgrade = RuntimeUpgrade()
    """When pods change because the operator did."""

    @model_validator(mode="after")
    def _can_progress(self) -> RolloutSpec:
        if self.max_surge == 0 and self.max_unavailable == 0:
            raise ValueError(SOME_PROGRESS)
        deadline = self.progress_deadline_seconds
        if deadline is not None and deadline <= self.startup_deadline_seconds:
            raise ValueError(DEADLINE_AFTER_START)
        return self
