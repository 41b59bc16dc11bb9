"""Tells news from noise: whom a changed pod or report concerns. Pure.

With many pods and adapters most changes say nothing new: a nudge touches every pod, and every
request moves a counter. What concerns nobody must cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from graft_operator.reconcile.world import incarnation_of, pod_view
from graft_operator.resources.meta import Manifest
from graft_protocol.status import RevisionReport, RuntimeStatus

_of_pod = attrgetter(
    "protocol",
    "version",
    "state",
    "reason",
    "message",
    "ready",
    "engine_restarts",
    "loader_restarts",
    "model",
    "progress",
    "set_hash",
    "shards",
)
_of_revision = attrgetter(
    "state", "reason", "message", "digest", "origin", "bytes", "rank", "target_modules", "weight"
)
_counters = attrgetter("requests", "errors")


def is_same_pod(before: Manifest | None, now: Manifest) -> bool:
    """Whether nothing changed about a pod that any status or decision is made from."""
    return before is not None and _essence(before) == _essence(now)


def _essence(pod: Manifest) -> tuple[object, ...]:
    is_leaving = bool(pod["metadata"].get("deletionTimestamp"))
    return incarnation_of(pod), is_leaving, pod_view(pod, None)


def is_told_of_pod(before: RuntimeStatus, now: RuntimeStatus) -> bool:
    """Whether a report says something else of the pod itself, its load aside."""
    return bool(_of_pod(before) != _of_pod(now))


def changed_shards(before: RuntimeStatus, now: RuntimeStatus) -> set[int]:
    """Return the shards of which a pod has another content in force, or another complaint."""
    longest = max(len(before.shards), len(now.shards))
    pairs = zip(_padded(before, longest), _padded(now, longest), strict=True)
    return {index for index, (old, new) in enumerate(pairs) if old != new}


def _padded(status: RuntimeStatus, length: int) -> list[tuple[str, str]]:
    shards = [(shard.hash, str(shard.reason or "")) for shard in status.shards]
    return shards + [("", "")] * (length - len(shards))


def changed_revisions(
    before: RuntimeStatus, now: RuntimeStatus
) -> Iterator[tuple[RevisionReport, bool]]:
    """Yield what is reported anew, or no more, and whether nothing but its counters changed."""
    old = {report.revision: report for report in before.revisions}
    for report in now.revisions:
        known = old.pop(report.revision, None)
        if known is report:
            continue
        if known is None or _of_revision(known) != _of_revision(report):
            yield report, False
        elif _counters(known) != _counters(report):
            yield report, True
    for report in old.values():
        yield report, False
