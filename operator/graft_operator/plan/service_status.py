"""What is true of an InferenceService: its status, made from its pods and its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graft_operator.constants import ENDPOINTS_MAX, MESSAGE_MAX
from graft_operator.plan.accept import Verdict
from graft_operator.plan.conditions import stalled
from graft_operator.plan.signature import unusable_keys
from graft_operator.plan.template import TemplateChoice
from graft_operator.plan.views import DeploymentView, PodView, taking_requests
from graft_operator.resources.meta import Condition, Status, condition_of
from graft_operator.resources.status import AdapterCounts, ResolvedModel, ServiceStatus
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.reasons import Reason


@dataclass(frozen=True)
class ServiceFacts:
    """What a service's status is made from."""

    service: InferenceService
    verdict: Verdict
    pods: Sequence[PodView]
    adapters: Sequence[LoraAdapter]
    """Those that are accepted."""
    set_hash: str
    template: TemplateChoice
    """What the pods are rendered with."""
    deployment: DeploymentView | None
    replicas: int
    """Pods that there are to be."""
    config_hash: str
    """The configuration they are to have; empty if this operator cannot render it."""
    url: str
    selector: str
    refusal: Verdict | None = None
    """Why the cluster does not take one of its children. What was there before goes on."""


def service_status(facts: ServiceFacts) -> ServiceStatus:
    """Return the service's whole status."""
    serving = taking_requests(facts.pods)
    return ServiceStatus(
        observed_generation=facts.service.metadata.generation,
        conditions=_conditions(facts, serving),
        url=facts.url,
        endpoints=tuple(pod.address for pod in serving if pod.address)[:ENDPOINTS_MAX],
        replicas=len(facts.pods),
        ready_replicas=len(serving),
        updated_replicas=sum(_is_updated(facts, pod) for pod in facts.pods),
        selector=facts.selector,
        template_revision=facts.template.pin.revision,
        update_available=facts.template.offer.id if facts.template.offer else None,
        resolved_model=_resolved_model(facts),
        adapters=_counts(facts),
    )


def unreadable_service_status(
    before: ServiceStatus, generation: int, verdict: Verdict
) -> ServiceStatus:
    """Return the status of a service whose spec cannot be read: what runs stays as it was told."""
    found = tuple(
        _condition(kind, status=False, reason=verdict.reason, message=verdict.message)
        for kind in ("Accepted", "Ready")
    )
    update = {"observed_generation": generation, "conditions": (*found, *stalled(found))}
    return before.model_copy(update=update)


def _is_updated(facts: ServiceFacts, pod: PodView) -> bool:
    pin = facts.template.pin
    image = facts.service.spec.runtime.image or pin.image
    return (pod.config_hash, pod.template_revision, pod.image) == (
        facts.config_hash,
        pin.revision,
        image,
    )


def _condition(type_: str, status: bool, reason: Reason, message: str = "") -> Condition:
    text: Status = "True" if status else "False"
    return Condition(type=type_, status=text, reason=reason, message=message[:MESSAGE_MAX])


def _conditions(facts: ServiceFacts, serving: Sequence[PodView]) -> tuple[Condition, ...]:
    if not facts.verdict.is_accepted:
        reason, message = facts.verdict.reason, facts.verdict.message
        kinds = ("Accepted", "Available", "Progressing", "AdaptersSynced", "UpToDate", "Ready")
        all_false = tuple(
            _condition(kind, status=False, reason=reason, message=message) for kind in kinds
        )
        return (*all_false, *stalled(all_false))
    available = _available(facts, serving)
    if not serving:
        available = _refused("Available", facts) or available
    found = (
        _refused("Accepted", facts) or _accepted(facts),
        _scheduled(facts),
        available,
        _refused("Progressing", facts) or _progressing(facts, serving),
        _synced(facts),
        _up_to_date(facts),
        available.model_copy(update={"type": "Ready"}),
    )
    return (*found, *stalled(found))


def _refused(type_: str, facts: ServiceFacts) -> Condition | None:
    """Return a condition that is False since the cluster does not take a child, if that is so."""
    if facts.refusal is None:
        return None
    reason, message = facts.refusal.reason, facts.refusal.message
    return _condition(type_, status=False, reason=reason, message=message)


def _accepted(facts: ServiceFacts) -> Condition:
    """Return whether all of the spec works: a key that does not keeps nobody out but adapters."""
    problem = unusable_keys(facts.service)
    if problem:
        return _condition("Accepted", status=False, reason=Reason.INVALID_SPEC, message=problem)
    return _condition("Accepted", status=True, reason=Reason.ACCEPTED)


def _scheduled(facts: ServiceFacts) -> Condition:
    if facts.deployment is not None and facts.deployment.refusal:
        return _condition(
            "PodsScheduled",
            status=False,
            reason=Reason.POD_REFUSED,
            message=facts.deployment.refusal,
        )
    waiting = [pod for pod in facts.pods if pod.unschedulable]
    if not waiting:
        return _condition("PodsScheduled", status=True, reason=Reason.AVAILABLE)
    message = f"{len(waiting)} of {len(facts.pods)} pods have no node; {_told_by(waiting[0])}"
    return _condition("PodsScheduled", status=False, reason=Reason.UNSCHEDULABLE, message=message)


def _told_by(pod: PodView) -> str:
    return f"{pod.name}: {pod.unschedulable}"


def _available(facts: ServiceFacts, serving: Sequence[PodView]) -> Condition:
    wanted = facts.replicas
    message = f"{len(serving)} of {wanted} pods take requests"
    if serving:
        reason = Reason.AVAILABLE if len(serving) >= wanted else Reason.DEGRADED
        return _condition("Available", status=True, reason=reason, message=message)
    for pod in facts.pods:
        if pod.report is not None and pod.has_failed:
            reason = pod.report.reason or Reason.INTERNAL_ERROR
            text = f"{pod.name}: {pod.report.message}"
            return _condition("Available", status=False, reason=reason, message=text)
    if facts.deployment is not None and facts.deployment.refusal and not facts.pods:
        return _condition(
            "Available",
            status=False,
            reason=Reason.POD_REFUSED,
            message=facts.deployment.refusal,
        )
    for pod in facts.pods:
        if pod.trouble:
            return _condition(
                "Available",
                status=False,
                reason=Reason.RUNTIME_UNREACHABLE,
                message=f"{pod.name}: {pod.trouble}",
            )
    waiting = [pod for pod in facts.pods if pod.unschedulable]
    if waiting:
        return _condition(
            "Available", status=False, reason=Reason.UNSCHEDULABLE, message=_told_by(waiting[0])
        )
    phases = sorted(
        {pod.report.progress.phase for pod in facts.pods if pod.report and pod.report.progress}
    )
    message = "; ".join([message, *phases])
    return _condition("Available", status=False, reason=Reason.PROGRESSING, message=message)


def _progressing(facts: ServiceFacts, serving: Sequence[PodView]) -> Condition:
    wanted = facts.replicas
    updated = sum(_is_updated(facts, pod) for pod in serving)
    message = f"{updated} of {wanted} pods are ready with the current configuration"
    if updated == wanted == len(facts.pods):
        return _condition("Progressing", status=False, reason=Reason.AVAILABLE, message=message)
    overdue = facts.deployment.overdue if facts.deployment else ""
    if overdue:
        return _condition(
            "Progressing",
            status=False,
            reason=Reason.PROGRESS_DEADLINE_EXCEEDED,
            message=f"{message}; {overdue}",
        )
    blocked = _blocked(facts)
    return _condition(
        "Progressing",
        status=True,
        reason=Reason.ROLLOUT_BLOCKED if blocked else Reason.PROGRESSING,
        message=f"{message}; {blocked}" if blocked else message,
    )


def _blocked(facts: ServiceFacts) -> str:
    """Return why the cluster does not start the next pod of a rollout."""
    if facts.deployment is not None and facts.deployment.refusal:
        return facts.deployment.refusal
    waiting = [pod for pod in facts.pods if pod.unschedulable and _is_updated(facts, pod)]
    return _told_by(waiting[0]) if waiting else ""


def _up_to_date(facts: ServiceFacts) -> Condition:
    pin, offer = facts.template
    if not facts.template.is_renderable:
        message = (
            f"the pods have template revision {pin.revision}, which this operator cannot render: "
            "changes of the spec that concern pods wait until an update is approved"
        )
        return _condition("UpToDate", status=False, reason=Reason.TEMPLATE_UNKNOWN, message=message)
    if offer is None:
        return _condition("UpToDate", status=True, reason=Reason.AVAILABLE)
    message = (
        f"template revision {pin.revision} -> {offer.revision}, default image {pin.image} -> "
        f"{offer.image}; spec.rollout.runtimeUpgrade.approve: {offer.id} takes it"
    )
    return _condition("UpToDate", status=False, reason=Reason.UPDATE_AVAILABLE, message=message)


def _synced(facts: ServiceFacts) -> Condition:
    count = _in_sync(facts)
    synced = count == len(facts.pods) and count > 0
    reason = Reason.AVAILABLE if synced else Reason.PROGRESSING
    message = f"{count} of {len(facts.pods)} pods have read the current set"
    return _condition("AdaptersSynced", status=synced, reason=reason, message=message)


def _in_sync(facts: ServiceFacts) -> int:
    reports = [pod.report for pod in facts.pods if pod.report is not None]
    return sum(report.set_hash == facts.set_hash for report in reports)


def _counts(facts: ServiceFacts) -> AdapterCounts:
    ready = [_is(adapter, "Ready", "True") for adapter in facts.adapters]
    failed = [bool(adapter.status.failures) for adapter in facts.adapters]
    return AdapterCounts(
        registered=len(facts.adapters),
        ready=sum(ready),
        failed=sum(failed),
        set_hash=facts.set_hash,
        pods_in_sync=_in_sync(facts),
    )


def _is(adapter: LoraAdapter, type_: str, status: Status) -> bool:
    condition = condition_of(adapter.status.conditions, type_)
    return condition is not None and condition.status == status


def _resolved_model(facts: ServiceFacts) -> ResolvedModel | None:
    for pod in facts.pods:
        if pod.report is not None and pod.report.model.digest is not None:
            model = pod.report.model
            return ResolvedModel(digest=model.digest, bytes=model.bytes)
    return facts.service.status.resolved_model
