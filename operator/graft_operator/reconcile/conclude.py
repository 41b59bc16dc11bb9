"""The last step of both reconciles: write a status if it changed, and tell people of a turn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graft_operator.plan.conditions import stamped
from graft_operator.reconcile.world import World
from graft_operator.resources.meta import Condition, Manifest, key_of, uid_of
from graft_operator.resources.status import AdapterStatus, ServiceStatus
from graft_protocol.reasons import REASONS, Reason

_TOLD = ("Accepted", "Ready", "Stalled")
"""Conditions whose turns for the worse and back are worth an event."""
_SUMMARIES = ("Accepted", "Ready")
"""Conditions that were told when they turned: what stalls for their reason is no news."""
_STEPS = (Reason.PENDING, Reason.DOWNLOADING, Reason.LOADING, Reason.DEGRADED)
"""Reasons of what has never been Ready and is on its way there."""
_TOLD_REASONS = {
    "PodsScheduled": (Reason.UNSCHEDULABLE, Reason.POD_REFUSED),
    "RolloutProgressing": (Reason.PAUSED, Reason.ROLLED_BACK),
}
"""Reasons of other conditions that are worth one, too. The rest would multiply the events of a
thousand adapters that come up: each of these gets one, once it is Ready."""


async def write_status(
    world: World,
    manifest: Manifest,
    old: AdapterStatus | ServiceStatus,
    new: AdapterStatus | ServiceStatus,
) -> bool:
    """Write a status unless it says what is written already; tell whether it was written.

    Raises:
        ClusterError: It could not be written; the reconcile is tried again.
    """
    generation = int(manifest["metadata"].get("generation", 0))
    conditions = stamped(new.conditions, old.conditions, generation, world.now())
    document = _json(new.model_copy(update={"conditions": conditions}))
    if document == manifest.get("status"):
        return False
    known = world.cache.get(key_of(manifest))
    newest = known if known is not None and uid_of(known) == uid_of(manifest) else manifest
    stored = await world.cluster.patch_status(newest, document)
    world.cache.put(stored)
    if int(stored["metadata"].get("generation", 0)) != generation:
        # The spec changed meanwhile. The watch will bring nothing newer than this answer, so
        # nobody else would look at the object again.
        world.enqueue(key_of(manifest))
    for condition in _turned(conditions, old.conditions):
        reason = Reason(condition.reason)
        is_good = condition.status == "True" and condition.type != "Stalled"
        is_bad = REASONS[reason].retry != "none" and not is_good
        await world.cluster.record_event(
            stored,
            "Warning" if is_bad else "Normal",
            condition.reason,
            f"{condition.type}={condition.status}: {condition.message}".rstrip(": "),
        )
    return True


def _json(status: AdapterStatus | ServiceStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _turned(new: Iterable[Condition], old: Iterable[Condition]) -> list[Condition]:
    """Return the conditions about which a person wants to hear."""
    conditions, before = tuple(new), {item.type: item for item in old}
    refusals = {item.reason for item in conditions if _is_bad(item) and item.type == "Accepted"}
    told = [
        item
        for item in conditions
        if _is_turn(item, before.get(item.type))
        # A refusal is told once, not again for what follows from it.
        and not (item.type == "Ready" and item.reason in refusals)
    ]
    said = {item.reason for item in told if item.type != "Stalled"}
    said |= {item.reason for item in conditions if _is_bad(item) and item.type in _SUMMARIES}
    return [item for item in told if item.type != "Stalled" or item.reason not in said]


def _is_turn(item: Condition, before: Condition | None) -> bool:
    if before is not None and (before.status, before.reason) == (item.status, item.reason):
        return False
    if item.type not in _TOLD:
        return item.reason in _TOLD_REASONS.get(item.type, ())
    was_good = before is not None and not _is_bad(before)
    if item.type == "Ready":
        return not was_good if not _is_bad(item) else was_good or item.reason not in _STEPS
    return _is_bad(item) or (before is not None and not was_good)


def _is_bad(item: Condition) -> bool:
    return (item.status == "True") == (item.type == "Stalled")
