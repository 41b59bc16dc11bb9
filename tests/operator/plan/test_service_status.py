"""What is true of a service."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from graft_operator.plan.accept import Names, Verdict
from graft_operator.plan.service_status import ServiceFacts, service_status
from graft_operator.plan.template import TemplateChoice
from graft_operator.plan.views import DeploymentView, PodView
from graft_operator.resources.meta import condition_of
from graft_operator.resources.pin import TemplatePin
from graft_operator.resources.status import ServiceStatus
from graft_protocol.reasons import EngineState, Reason
from graft_protocol.status import ModelReport, ProgressReport
from tests.support.objects import make_adapter, make_pod, make_service, status_report
from tests.support.signing import public_pem

PIN = TemplatePin(1, "image")
NEWER = TemplatePin(2, "newer")
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def status_of(*pods: PodView, verdict: Verdict | None = None, **facts: Any) -> ServiceStatus:
    values: dict[str, Any] = {
        "service": make_service(replicas=2),
        "verdict": verdict or Verdict(Reason.ACCEPTED, "", Names("tiny")),
        "pods": pods,
        "adapters": (),
        "set_hash": "s",
        "template": TemplateChoice(PIN),
        "deployment": None,
        "replicas": 2,
        "config_hash": "c",
        "url": "http://127.0.0.1:1",
        "selector": "a=b",
    }
    return service_status(ServiceFacts(**{**values, **facts}))


def turn(status: ServiceStatus, type_: str) -> tuple[str, str]:
    found = condition_of(status.conditions, type_)
    assert found is not None
    return found.status, found.reason


def pod(
    name: str,
    *,
    ready: bool = True,
    config: str = "c",
    view: Mapping[str, Any] = MappingProxyType({}),
    **facts: Any,
) -> PodView:
    report = status_report(name, **{"set_hash": "s", **facts})
    made = {"config_hash": config, "template_revision": PIN.revision, "image": PIN.image}
    return PodView(name, ready, report, address=f"http://{name}", **{**made, **view})


def test_a_service_with_all_pods_is_ready_and_done() -> None:
    status = status_of(pod("a"), pod("b"))
    assert turn(status, "Ready") == ("True", "Available")
    assert turn(status, "Progressing") == ("False", "Available")
    assert turn(status, "AdaptersSynced") == ("True", "Available")
    assert status.endpoints == ("http://a", "http://b")
    assert (status.replicas, status.ready_replicas, status.updated_replicas) == (2, 2, 2)


def test_one_of_two_pods_serves_but_is_degraded() -> None:
    status = status_of(pod("a"), pod("b", ready=False))
    assert turn(status, "Ready") == ("True", "Degraded")
    assert turn(status, "Progressing") == ("True", "Progressing")


def test_a_pod_of_an_older_configuration_is_still_to_be_replaced() -> None:
    status = status_of(pod("a"), pod("b", config="old"))
    assert turn(status, "Progressing") == ("True", "Progressing")
    assert status.updated_replicas == 1


def test_a_model_that_cannot_be_loaded_is_the_reason() -> None:
    failed = pod(
        "a",
        ready=False,
        state=EngineState.FAILED,
        reason=Reason.SOURCE_NOT_FOUND,
        message="no such bucket",
    )
    status = status_of(failed)
    assert turn(status, "Ready") == ("False", "SourceNotFound")
    assert "no such bucket" in str(status.conditions)


def test_a_pod_that_does_not_run_is_the_reason() -> None:
    status = status_of(PodView("a", ready=False, report=None, trouble="CrashLoopBackOff: boom"))
    assert turn(status, "Ready") == ("False", "RuntimeUnreachable")
    assert "boom" in str(status.conditions)


def test_start_up_shows_what_is_being_done() -> None:
    starting = pod("a", ready=False, progress=ProgressReport(phase="downloading model"))
    assert "downloading model" in str(status_of(starting).conditions)


def test_a_pod_behind_the_set_is_not_in_sync() -> None:
    status = status_of(pod("a"), pod("b", set_hash="older"))
    assert turn(status, "AdaptersSynced") == ("False", "Progressing")
    assert status.adapters.pods_in_sync == 1


def test_a_refused_service_says_why_in_every_condition() -> None:
    status = status_of(verdict=Verdict(Reason.SECRET_NOT_FOUND, "Secret default/x"))
    assert {item.reason for item in status.conditions} == {"SecretNotFound"}


def test_what_the_cluster_does_not_take_is_told_beside_what_serves() -> None:
    for reason, is_stalled in ((Reason.INVALID_SPEC, True), (Reason.CHILD_REFUSED, False)):
        refusal = Verdict(reason, "no")
        status = status_of(pod("a"), pod("b"), refusal=refusal)
        assert turn(status, "Accepted") == ("False", reason)
        assert turn(status, "Progressing") == ("False", reason)
        assert turn(status, "Ready") == ("True", "Available")
        assert (condition_of(status.conditions, "Stalled") is not None) == is_stalled
        alone = status_of(refusal=refusal)
        assert turn(alone, "Ready") == ("False", reason)


def test_a_model_that_can_never_be_served_is_stalled() -> None:
    for reason, is_stalled in ((Reason.UNSUPPORTED_MODEL, True), (Reason.SOURCE_NOT_FOUND, False)):
        failed = pod("a", ready=False, state=EngineState.FAILED, reason=reason, message="no")
        found = condition_of(status_of(failed).conditions, "Stalled")
        assert (found is not None) == is_stalled


def test_adapters_are_counted_by_what_is_true_of_them() -> None:
    ready = [{"type": "Ready", "status": "True", "reason": "Available"}]
    failure = {"reason": "TooLarge", "message": "", "pods": 1, "example": "a"}
    adapters = (
        make_adapter("a", status={"conditions": ready}),
        make_adapter("b", status={"failures": [failure]}),
        make_adapter("c"),
    )
    counts = status_of(pod("a"), adapters=adapters).adapters
    assert (counts.registered, counts.ready, counts.failed) == (3, 1, 1)


def test_the_models_digest_is_kept_while_no_pod_answers() -> None:
    model = ModelReport(served_name="tiny", uri="s3://x", digest="sha256:1", bytes=5)
    report = status_report("a").model_copy(update={"model": model})
    resolved = status_of(PodView("a", ready=True, report=report)).resolved_model
    assert resolved is not None
    assert (resolved.digest, resolved.bytes) == ("sha256:1", 5)
    silent = make_service(replicas=2).model_copy(
        update={"status": ServiceStatus(resolved_model=resolved)}
    )
    assert status_of(make_pod(ready=False), service=silent).resolved_model == resolved


def test_more_gpus_than_there_are_show_what_the_scheduler_says() -> None:
    stuck = PodView("b", ready=False, report=None, unschedulable=NO_GPU)
    alone = status_of(stuck)
    assert turn(alone, "PodsScheduled") == ("False", "Unschedulable")
    assert turn(alone, "Ready") == ("False", "Unschedulable")
    for type_ in ("PodsScheduled", "Ready"):
        found = condition_of(alone.conditions, type_)
        assert found is not None
        assert NO_GPU in found.message
    beside = status_of(pod("a"), stuck)
    assert turn(beside, "PodsScheduled") == ("False", "Unschedulable")
    assert turn(beside, "Ready") == ("True", "Degraded")
    assert turn(status_of(pod("a"), pod("b")), "PodsScheduled") == ("True", "Available")


def test_an_update_is_offered_by_name() -> None:
    status = status_of(pod("a"), pod("b"), template=TemplateChoice(PIN, NEWER))
    assert status.update_available == NEWER.id
    assert status.template_revision == PIN.revision
    assert turn(status, "UpToDate") == ("False", "UpdateAvailable")
    assert turn(status, "Progressing") == ("False", "Available")
    assert turn(status_of(pod("a"), pod("b")), "UpToDate") == ("True", "Available")


def test_a_template_that_cannot_be_rendered_is_told() -> None:
    template = TemplateChoice(TemplatePin(99, "image"), PIN)
    status = status_of(pod("a"), template=template, config_hash="")
    assert turn(status, "UpToDate") == ("False", "TemplateUnknown")


def test_a_pod_with_another_image_or_template_is_still_to_be_replaced() -> None:
    for view in ({"image": "old"}, {"template_revision": 0}):
        status = status_of(pod("a"), pod("b", view=view))
        assert turn(status, "Progressing") == ("True", "Progressing")


def test_a_rollout_whose_next_pod_has_no_node_is_blocked_but_serves() -> None:
    made: dict[str, Any] = {
        "config_hash": "c",
        "template_revision": PIN.revision,
        "image": PIN.image,
    }
    stuck = PodView("b", ready=False, report=None, unschedulable=NO_GPU, **made)
    status = status_of(pod("a", config="old"), stuck)
    assert turn(status, "Progressing") == ("True", "RolloutBlocked")
    assert turn(status, "Ready") == ("True", "Degraded")


def test_a_pod_that_the_cluster_refuses_is_told_in_its_words() -> None:
    refused = DeploymentView(2, refusal='pods "a" is forbidden: exceeded quota')
    status = status_of(deployment=refused)
    for type_, shown in (("PodsScheduled", "PodRefused"), ("Ready", "PodRefused")):
        assert turn(status, type_) == ("False", shown)
    assert turn(status, "Progressing") == ("True", "RolloutBlocked")


def test_a_rollout_past_its_deadline_is_stalled_until_it_is_done() -> None:
    overdue = DeploymentView(2, overdue="has timed out progressing")
    status = status_of(pod("a"), pod("b", config="old"), deployment=overdue)
    assert turn(status, "Progressing") == ("False", "ProgressDeadlineExceeded")
    assert turn(status, "Stalled") == ("True", "ProgressDeadlineExceeded")
    done = status_of(pod("a"), pod("b"), deployment=overdue)
    assert turn(done, "Progressing") == ("False", "Available")
    assert condition_of(done.conditions, "Stalled") is None


def test_a_key_that_cannot_be_used_is_told_and_the_base_model_serves_on() -> None:
    keys = [public_pem(), public_pem("Ed25519")]
    service = make_service(replicas=2, adapters={"trustedKeys": keys})
    status = status_of(pod("a"), pod("b"), service=service)
    assert turn(status, "Accepted") == ("False", "InvalidSpec")
    assert turn(status, "Stalled") == ("True", "InvalidSpec")
    assert turn(status, "Ready") == ("True", "Available")
    told = condition_of(status.conditions, "Accepted")
    assert told is not None
    assert told.message.startswith("spec.adapters.trustedKeys[1] is Ed25519;")
