"""What is true of an adapter: its status, made from verdict, versions and the pods' reports.

`Ready=True` means that a request succeeds now. Times are set by `stamped`; there is no clock here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from graft_operator.constants import FAILURES_MAX, MESSAGE_MAX
from graft_operator.plan.accept import Verdict
from graft_operator.plan.canary import ALL
from graft_operator.plan.rollout import Versions, wanted_revision
from graft_operator.plan.views import PodView, taking_requests
from graft_operator.resources.meta import Condition, Status
from graft_operator.resources.status import AdapterStatus, Failure, RevisionStatus
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import shard_index
from graft_protocol.reasons import REASONS, AdapterState, Reason

_NO_ROOM = (Reason.QUOTA_EXCEEDED, Reason.RANK_TOO_LARGE)
_TELLING_STALLS = ("Accepted", "Available", "Loaded", "Progressing", "RolloutProgressing")
"""Conditions of both kinds that are False for good when their reason is one that nothing mends by
itself."""
_OVERDUE = (Reason.PROGRESS_DEADLINE_EXCEEDED,)
_IN_ORDER = (AdapterState.PENDING, AdapterState.DOWNLOADING, AdapterState.LOADING)


def adapter_status(
    adapter: LoraAdapter,
    verdict: Verdict,
    versions: Versions,
    pods: Sequence[PodView],
    shard_hash: str,
) -> AdapterStatus:
    """Return the adapter's whole status.

    Args:
        adapter: The adapter as it was read.
        verdict: Whether its service takes it.
        versions: Where its rollout stands.
        pods: All pods of its service.
        shard_hash: The shard that holds its entries, as it should be.
    """
    if verdict.names is None:
        return _idle(adapter, _after_refusal(adapter, verdict, versions), refusal(verdict))
    if adapter.spec.suspend:
        return _idle(adapter, versions, _suspension(verdict, versions))
    serving = taking_requests(pods)
    able = _able(adapter, verdict.names.served, versions, serving, shard_hash)
    failures = _failures(verdict.names.served, versions.wanted, pods)
    loaded = _held_back("Loaded", verdict, versions)
    loaded = loaded or _loaded(versions.wanted, serving, pods, failures)
    progress = _held_back("RolloutProgressing", verdict, versions)
    found = (
        _condition("Accepted", "True", Reason.ACCEPTED, verdict.message),
        _resolved(versions.wanted, pods, failures),
        loaded,
        progress or _progress(adapter, versions, serving),
        _ready(versions, len(able), len(serving), loaded),
    )
    return AdapterStatus(
        observed_generation=adapter.metadata.generation,
        conditions=(*found, *stalled(found)),
        # The name is shown as served only once some pod serves it.
        served_name=verdict.names.served if able else adapter.status.served_name,
        current_revision=versions.current,
        candidate_revision=versions.candidate,
        rejected_revision=versions.rejection,
        desired_replicas=len(serving),
        ready_replicas=len(able),
        failures=failures,
    )


def refusal(verdict: Verdict) -> tuple[Condition, ...]:
    """Return the conditions of an adapter that its service does not take."""
    found = (
        _condition("Accepted", "False", verdict.reason, verdict.message),
        _condition("Resolved", "Unknown", verdict.reason),
        _condition("Loaded", "False", verdict.reason),
        _condition("Ready", "False", verdict.reason, verdict.message),
    )
    return (*found, *stalled(found))


def stalled(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return the condition by which kstatus knows that waiting is in vain; it is there or not."""
    for condition in conditions:
        is_told_by = condition.type in _TELLING_STALLS and condition.status == "False"
        reason = Reason(condition.reason)
        if is_told_by and (reason in _OVERDUE or REASONS[reason].retry == "terminal"):
            return (condition.model_copy(update={"type": "Stalled", "status": "True"}),)
    return ()


def stamped(
    new: Iterable[Condition], old: Iterable[Condition], generation: int, now: str
) -> tuple[Condition, ...]:
    """Give conditions their generation, and the time at which their status last changed."""
    before = {condition.type: condition for condition in old}
    result = []
    for condition in new:
        previous = before.get(condition.type)
        same = previous is not None and previous.status == condition.status
        since = previous.last_transition_time if previous is not None and same else now
        update = {"observed_generation": generation, "last_transition_time": since or now}
        result.append(condition.model_copy(update=update))
    return tuple(result)


def _condition(type_: str, status: Status, reason: Reason, message: str = "") -> Condition:
    return Condition(type=type_, status=status, reason=reason, message=message[:MESSAGE_MAX])


def _idle(
    adapter: LoraAdapter, versions: Versions, conditions: tuple[Condition, ...]
) -> AdapterStatus:
    return AdapterStatus(
        observed_generation=adapter.metadata.generation,
        conditions=conditions,
        current_revision=_at_rest(versions.current),
        candidate_revision=_at_rest(versions.candidate),
        rejected_revision=adapter.status.rejected_revision,
    )


def _after_refusal(adapter: LoraAdapter, verdict: Verdict, versions: Versions) -> Versions:
    """Have a version for which there is no room wait for some, not stand by for the next one."""
    current = versions.current
    if verdict.reason not in _NO_ROOM or current is None:
        return versions
    is_wanted = current.source_hash == wanted_revision(adapter).source_hash
    return Versions(None, current if is_wanted else versions.candidate)


def _at_rest(revision: RevisionStatus | None) -> RevisionStatus | None:
    return revision.model_copy(update={"ready_replicas": 0}) if revision else None


def _suspension(verdict: Verdict, versions: Versions) -> tuple[Condition, ...]:
    known = versions.wanted is not None and versions.wanted.digest is not None
    resolved = (
        _condition("Resolved", "True", Reason.RESOLVED)
        if known
        else _condition("Resolved", "Unknown", Reason.SUSPENDED)
    )
    return (
        _condition("Accepted", "True", Reason.ACCEPTED, verdict.message),
        resolved,
        _condition("Loaded", "False", Reason.SUSPENDED),
        _condition("Ready", "False", Reason.SUSPENDED, "spec.suspend is set"),
    )


def _held_back(type_: str, verdict: Verdict, versions: Versions) -> Condition | None:
    """Return the condition of a version that may not come in, if there is one."""
    refused = versions.wanted
    if verdict.held_back is None or refused is None or versions.rejection is not None:
        return None
    reason, message = verdict.held_back
    return _condition(type_, "False", reason, f"{refused.id}: {message}")


def _progress(adapter: LoraAdapter, versions: Versions, serving: Sequence[PodView]) -> Condition:
    """Return how far a new version has come on its way to all requests.

    What has been decided counts once the pods do it: until then requests meet what was before.
    """
    decided = _decided_progress(adapter, versions)
    shares = _shares(versions)
    told = [pod for pod in serving if _has_shares(pod, shares)]
    if len(told) == len(serving):
        return decided
    text = f"in force on {len(told)} of {len(serving)} ready pods"
    message = f"{decided.message}; {text}" if decided.message else text
    return _condition("RolloutProgressing", "True", Reason.PROGRESSING, message)


def _decided_progress(adapter: LoraAdapter, versions: Versions) -> Condition:
    type_, rejection, candidate = "RolloutProgressing", versions.rejection, versions.candidate
    if rejection is not None:
        text = f"{rejection.id}: {rejection.message}"
        return _condition(type_, "False", Reason(rejection.reason), text)
    if candidate is None or versions.current is None:
        return _condition(type_, "False", Reason.AVAILABLE if versions.current else Reason.PENDING)
    steps, ready = adapter.spec.rollout.steps, candidate.ready_replicas
    if candidate.step is None:
        has_some = ready and not steps
        gets = f"all requests on {ready} ready pods so far" if has_some else "no requests yet"
        return _condition(type_, "True", Reason.LOADING, f"{candidate.id} gets {gets}")
    text = f"{candidate.id} gets {candidate.weight} %, step {candidate.step + 1} of {len(steps)}"
    waits = candidate.step < len(steps) and steps[candidate.step].pause_seconds is None
    if waits:
        text += "; spec.rollout.promote takes it further"
    return _condition(type_, "True", Reason.PAUSED if waits else Reason.PROGRESSING, text)


def _shares(versions: Versions) -> dict[str, int]:
    """Return what each version is to get of the requests, as far as that is decided."""
    current, candidate, rejection = versions
    if current is None or (candidate is not None and candidate.step is None):
        return {}
    share = (candidate.weight or 0) if candidate is not None else 0
    shares = {current.id: ALL - share}
    if candidate is not None:
        shares[candidate.id] = share
    if rejection is not None:
        shares[rejection.id] = 0
    return shares


def _has_shares(pod: PodView, shares: dict[str, int]) -> bool:
    """Whether a pod does so, as far as it can be asked: one from before does not tell."""
    reports = ((pod.revision(id_), share) for id_, share in shares.items())
    return all(report is None or report.weight in (None, share) for report, share in reports)


def _able(
    adapter: LoraAdapter,
    served: str,
    versions: Versions,
    serving: Sequence[PodView],
    shard_hash: str,
) -> list[PodView]:
    """Return the pods on which a request under the adapter's name succeeds."""
    ids = [one.id for one in (versions.current, versions.candidate) if one is not None]
    able = [pod for pod in serving if any(pod.serves(id_) for id_ in ids)]
    if adapter.status.served_name == served:
        return able
    # A new name means something only to pods that have read it.
    index = shard_index(served)
    return [pod for pod in able if pod.shard_hash(index) == shard_hash]


def _failures(
    served: str, wanted: RevisionStatus | None, pods: Sequence[PodView]
) -> tuple[Failure, ...]:
    pods_of: Counter[Reason] = Counter()
    first: dict[Reason, tuple[str, str]] = {}
    index = shard_index(served)
    for pod in pods:
        for reason, message in _failures_of(pod, index, wanted):
            pods_of[reason] += 1
            first.setdefault(reason, (message, pod.name))
    return tuple(
        Failure(
            reason=reason,
            message=first[reason][0][:MESSAGE_MAX],
            pods=count,
            example=first[reason][1],
        )
        for reason, count in pods_of.most_common(FAILURES_MAX)
    )


def _failures_of(
    pod: PodView, index: int, wanted: RevisionStatus | None
) -> list[tuple[Reason, str]]:
    if pod.report is None:
        return [(Reason.RUNTIME_UNREACHABLE, pod.trouble or "no answer")] if pod.ready else []
    found = []
    shard = pod.report.shards[index] if index < len(pod.report.shards) else None
    if shard is not None and shard.reason is not None:
        found.append((shard.reason, shard.message))
    report = pod.revision(wanted.id) if wanted else None
    if report is not None and report.state is AdapterState.FAILED:
        found.append((report.reason, report.message))
    return found


def _resolved(
    wanted: RevisionStatus | None, pods: Sequence[PodView], failures: Sequence[Failure]
) -> Condition:
    if wanted is not None and wanted.digest is not None:
        return _condition("Resolved", "True", Reason.RESOLVED, wanted.digest)
    if failures:
        return _condition("Resolved", "False", Reason(failures[0].reason), failures[0].message)
    return _condition("Resolved", "Unknown", _furthest(wanted, pods))


def _loaded(
    wanted: RevisionStatus | None,
    serving: Sequence[PodView],
    pods: Sequence[PodView],
    failures: Sequence[Failure],
) -> Condition:
    count = sum(pod.serves(wanted.id) for pod in serving) if wanted else 0
    share = f"{count} of {len(serving)} ready pods have {wanted.id if wanted else 'it'}"
    if wanted is not None and serving and count == len(serving):
        warning = _warning(wanted, serving)
        message = f"{share}; {warning}" if warning else share
        return _condition("Loaded", "True", Reason.AVAILABLE, message)
    if failures:
        return _condition(
            "Loaded", "False", Reason(failures[0].reason), f"{share}; {failures[0].message}"
        )
    if not pods:
        return _condition("Loaded", "False", Reason.PENDING, "the service has no pods yet")
    if not serving:
        return _condition(
            "Loaded", "False", _furthest(wanted, pods), "no pod of the service is ready yet"
        )
    return _condition("Loaded", "False", _furthest(wanted, pods), share)


def _warning(wanted: RevisionStatus, serving: Sequence[PodView]) -> str:
    """Return what a pod would have the owner look at; all of them read the same bytes."""
    reports = (pod.revision(wanted.id) for pod in serving)
    return next((report.warning for report in reports if report and report.warning), "")


def _furthest(wanted: RevisionStatus | None, pods: Sequence[PodView]) -> Reason:
    """Return the furthest step that any pod has come with a version."""
    reports = [pod.revision(wanted.id) for pod in pods] if wanted else []
    steps = [
        _IN_ORDER.index(report.state) for report in reports if report and report.state in _IN_ORDER
    ]
    return Reason(_IN_ORDER[max(steps, default=0)])


def _ready(versions: Versions, able: int, serving: int, loaded: Condition) -> Condition:
    if not serving or not able:
        return loaded.model_copy(update={"type": "Ready", "status": "False"})
    if able < serving:
        return _condition(
            "Ready", "False", Reason.DEGRADED, f"requests succeed on {able} of {serving} ready pods"
        )
    if loaded.status == "True" or versions.current is None or versions.candidate is None:
        return _condition("Ready", "True", Reason.AVAILABLE, f"on {able} of {serving} ready pods")
    message = f"{versions.current.id} serves; {versions.candidate.id}: {loaded.reason}"
    return _condition("Ready", "True", Reason.AVAILABLE, message)
