"""A new version's way through its steps: which share it has now, and when that changes.

Pure: the time comes in as Kubernetes writes it. What has been decided is in the adapter's status.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from graft_operator.plan.views import PodView
from graft_operator.resources.canary import AdapterRollout, CanaryStep
from graft_operator.resources.status import Rejection, RevisionStatus
from graft_protocol.reasons import Reason

ALL = 100
"""Share of a version that has all requests."""


class Shift(NamedTuple):
    """Where a new version stands that every pod serves."""

    candidate: RevisionStatus | None
    """With its share; None once it is to have everything, or nothing any more."""
    rejection: Rejection | None = None
    """Why it is to have nothing any more."""


def shift(
    rollout: AdapterRollout, candidate: RevisionStatus, pods: Sequence[PodView], now: str
) -> Shift:
    """Move a loaded version on."""
    rejection = _rejection(rollout, candidate, pods)
    if rejection is not None:
        return Shift(None, rejection)
    if rollout.promote == candidate.id or not rollout.steps:
        return Shift(None)
    if candidate.step is None:
        return Shift(_at(rollout, candidate, 0, now))
    number = min(candidate.step, len(rollout.steps) - 1)
    if not _is_over(rollout.steps[number], candidate.step_since, now):
        # The step may have got another weight meanwhile.
        return Shift(_at(rollout, candidate, number, candidate.step_since or now))
    if number + 1 == len(rollout.steps):
        return Shift(None)
    return Shift(_at(rollout, candidate, number + 1, now))


def seconds_to_next_step(
    rollout: AdapterRollout, candidate: RevisionStatus | None, now: str
) -> float | None:
    """Return after how long a version's share changes by itself, if it does."""
    if candidate is None or candidate.step is None or not candidate.step_since:
        return None
    step = rollout.steps[candidate.step] if candidate.step < len(rollout.steps) else None
    if step is None or step.pause_seconds is None:
        return None
    return max(0.0, step.pause_seconds - seconds_between(candidate.step_since, now))


def seconds_between(since: str, now: str) -> float:
    """Return the time from one moment to another, as Kubernetes writes them."""
    return (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()


def _at(
    rollout: AdapterRollout, candidate: RevisionStatus, number: int, since: str
) -> RevisionStatus:
    update = {"weight": rollout.steps[number].weight, "step": number, "step_since": since}
    return candidate.model_copy(update=update)


def _is_over(step: CanaryStep, since: str | None, now: str) -> bool:
    if step.pause_seconds is None or not since:
        return False
    return seconds_between(since, now) >= step.pause_seconds


def _rejection(
    rollout: AdapterRollout, candidate: RevisionStatus, pods: Sequence[PodView]
) -> Rejection | None:
    reports = [report for pod in pods if (report := pod.revision(candidate.id)) is not None]
    requests = sum(report.requests for report in reports)
    errors = sum(report.errors for report in reports)
    if requests < rollout.min_requests or errors <= rollout.max_error_ratio * requests:
        return None
    return Rejection(
        id=candidate.id,
        source_hash=candidate.source_hash,
        reason=Reason.ROLLED_BACK,
        message=f"{errors} of {requests} requests failed",
    )
