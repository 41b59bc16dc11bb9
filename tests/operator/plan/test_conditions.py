"""What is true of an adapter."""

from collections.abc import Sequence
from typing import Any

import pytest

from graft_operator.plan.accept import Names, Verdict
from graft_operator.plan.conditions import adapter_status, stamped
from graft_operator.plan.rollout import Versions, advance
from graft_operator.plan.views import PodView
from graft_operator.resources.meta import Condition, condition_of
from graft_operator.resources.status import AdapterStatus
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import NUM_SHARDS, Shard
from graft_protocol.reasons import AdapterState, Reason
from tests.support.objects import (
    DIGEST_1,
    DIGEST_2,
    make_adapter,
    make_pod,
    revision_report,
    status_report,
)

TAKEN = Verdict(Reason.ACCEPTED, "", Names("shout"))
V1, V2 = "default/shout@111111111111", "default/shout@222222222222"
SERVED: dict[str, Any] = {
    "servedName": "shout",
    "currentRevision": {"id": V1, "digest": DIGEST_1, "uri": "s3://x", "sourceHash": "h"},
}


def status_of(
    pods: Sequence[PodView], adapter: LoraAdapter | None = None, verdict: Verdict = TAKEN
) -> AdapterStatus:
    adapter = adapter or make_adapter(status={"servedName": "shout"})
    return adapter_status(adapter, verdict, advance(adapter, pods), pods, "")


def summary(status: AdapterStatus) -> dict[str, tuple[str, str]]:
    return {item.type: (item.status, item.reason) for item in status.conditions}


def test_ready_means_that_every_pod_that_takes_requests_serves_it() -> None:
    status = status_of([make_pod(revision_report(V1)), make_pod(revision_report(V1), name="b")])
    assert summary(status) == {
        "Accepted": ("True", "Accepted"),
        "Resolved": ("True", "Resolved"),
        "Loaded": ("True", "Available"),
        "RolloutProgressing": ("False", "Available"),
        "Ready": ("True", "Available"),
    }
    assert (status.ready_replicas, status.desired_replicas) == (2, 2)


def test_what_a_pod_would_have_the_owner_look_at_stands_beside_what_is_loaded() -> None:
    warned = revision_report(V1, warning="names another base model")
    status = status_of([make_pod(revision_report(V1)), make_pod(warned, name="b")])
    loaded = condition_of(status.conditions, "Loaded")
    assert loaded is not None
    assert (loaded.status, loaded.reason) == ("True", "Available")
    assert loaded.message.endswith("; names another base model")


def test_one_pod_without_it_makes_it_degraded() -> None:
    status = status_of([make_pod(revision_report(V1)), make_pod(name="b")])
    assert summary(status)["Ready"] == ("False", "Degraded")
    assert (status.ready_replicas, status.desired_replicas) == (1, 2)


def test_a_pod_that_takes_no_requests_counts_for_nothing() -> None:
    status = status_of([make_pod(revision_report(V1)), make_pod(name="b", ready=False)])
    assert summary(status)["Ready"] == ("True", "Available")
    alone = status_of([make_pod(revision_report(V1), ready=False)])
    assert summary(alone)["Ready"][0] == "False"


@pytest.mark.parametrize(
    "state", [AdapterState.PENDING, AdapterState.DOWNLOADING, AdapterState.LOADING]
)
def test_progress_is_the_reason_until_it_is_loaded(state: AdapterState) -> None:
    status = status_of([make_pod(revision_report(V1, state))])
    assert summary(status)["Loaded"] == ("False", state.value)
    assert summary(status)["Ready"] == ("False", state.value)


def test_a_failure_is_named_with_its_reason_its_count_and_an_example() -> None:
    failed = revision_report(V1, AdapterState.FAILED, Reason.RANK_TOO_LARGE, message="rank 128")
    status = status_of([make_pod(failed), make_pod(failed, name="b"), make_pod(name="c")])
    assert summary(status)["Ready"] == ("False", "RankTooLarge")
    (failure,) = status.failures
    assert (failure.reason, failure.pods, failure.example) == ("RankTooLarge", 2, "tiny-0")
    assert "rank 128" in str(condition_of(status.conditions, "Ready"))


def test_a_silent_pod_that_takes_requests_is_unreachable_and_not_ready() -> None:
    silent = PodView("b", ready=True, report=None)
    status = status_of([make_pod(revision_report(V1)), silent])
    assert summary(status)["Ready"] == ("False", "Degraded")
    assert summary(status)["Loaded"] == ("False", "RuntimeUnreachable")


def test_without_pods_it_is_pending() -> None:
    assert summary(status_of([]))["Ready"] == ("False", "Pending")


STEPPING = {"id": V2, "digest": DIGEST_2, "uri": "s3://x", "sourceHash": "h2"}
REJECTED = {"id": V2, "sourceHash": "h2", "reason": "RolledBack", "message": "9 of 9 failed"}


@pytest.mark.parametrize(
    ("recorded", "shares_before", "shares", "decided"),
    [
        ({}, (40, 60), (100, None), ("False", "Available", "")),
        (
            {"candidateRevision": STEPPING | {"weight": 40, "step": 1}},
            (90, 10),
            (60, 40),
            (
                "True",
                "Paused",
                f"{V2} gets 40 %, step 2 of 2; spec.rollout.promote takes it further",
            ),
        ),
        (
            {"rejectedRevision": REJECTED},
            (60, 40),
            (100, 0),
            ("False", "RolledBack", f"{V2}: 9 of 9 failed"),
        ),
    ],
)
def test_a_share_counts_once_every_pod_that_takes_requests_gives_it(
    recorded: dict[str, Any],
    shares_before: tuple[int, int | None],
    shares: tuple[int, int | None],
    decided: tuple[str, str, str],
) -> None:
    steps = {"steps": [{"weight": 10, "pauseSeconds": 1}, {"weight": 40}]}
    adapter = make_adapter(rollout=steps, status=SERVED | recorded)
    status = adapter.status
    versions = Versions(
        status.current_revision, status.candidate_revision, status.rejected_revision
    )

    def progress(*shares_of_pods: tuple[int, int | None]) -> tuple[str, str, str]:
        pods = [
            make_pod(
                *(
                    revision_report(id_, weight=share)
                    for id_, share in zip((V1, V2), shares_of_pod, strict=True)
                    if share is not None
                ),
                name=f"tiny-{index}",
            )
            for index, shares_of_pod in enumerate(shares_of_pods)
        ]
        found = condition_of(
            adapter_status(adapter, TAKEN, versions, pods, "").conditions, "RolloutProgressing"
        )
        assert found is not None
        return found.status, found.reason, found.message

    told = f"{decided[2]}; " if decided[2] else ""
    assert progress(shares, shares_before) == (
        "True",
        "Progressing",
        f"{told}in force on 1 of 2 ready pods",
    )
    assert progress(shares, shares) == decided


def test_pods_that_do_not_tell_their_shares_hold_nothing_up() -> None:
    adapter = make_adapter(status=SERVED)
    versions = Versions(adapter.status.current_revision, None)
    pods = [make_pod(revision_report(V1)), PodView("silent", ready=True, report=None)]
    status = adapter_status(adapter, TAKEN, versions, pods, "")
    assert summary(status)["RolloutProgressing"] == ("False", "Available")


def update(*reports: Any) -> AdapterStatus:
    adapter = make_adapter(digest=DIGEST_2, status=SERVED)
    return status_of([make_pod(*reports)], adapter)


def test_the_old_version_serves_while_the_new_one_loads() -> None:
    status = update(revision_report(V1), revision_report(V2, AdapterState.DOWNLOADING))
    assert summary(status)["Ready"] == ("True", "Available")
    assert summary(status)["Loaded"] == ("False", "Downloading")
    assert status.current_revision is not None
    assert status.current_revision.id == V1
    assert status.candidate_revision is not None
    assert status.candidate_revision.id == V2


def test_a_bad_new_version_leaves_the_old_one_serving_and_says_so() -> None:
    bad = revision_report(V2, AdapterState.FAILED, Reason.CHECKSUM_MISMATCH, message="no")
    status = update(revision_report(V1), bad)
    assert summary(status)["Ready"] == ("True", "Available")
    assert summary(status)["Loaded"] == ("False", "ChecksumMismatch")
    ready = condition_of(status.conditions, "Ready")
    assert ready is not None
    assert "ChecksumMismatch" in ready.message


def test_what_nothing_mends_by_itself_is_stalled() -> None:
    for reason, is_stalled in ((Reason.CHECKSUM_MISMATCH, True), (Reason.SOURCE_NOT_FOUND, False)):
        failed = revision_report(V1, AdapterState.FAILED, reason, message="no")
        found = condition_of(status_of([make_pod(failed)]).conditions, "Stalled")
        assert (found is not None) == is_stalled
        assert found is None or (found.status, found.reason) == ("True", reason)
    bad = revision_report(V2, AdapterState.FAILED, Reason.CHECKSUM_MISMATCH)
    beside = update(revision_report(V1), bad)
    assert summary(beside)["Stalled"] == ("True", "ChecksumMismatch")
    assert summary(beside)["Ready"] == ("True", "Available")
    for reason, is_stalled in ((Reason.INVALID_SPEC, True), (Reason.NAME_CONFLICT, False)):
        refused = status_of([], verdict=Verdict(reason, "no"))
        assert ("Stalled" in summary(refused)) == is_stalled


def test_the_new_version_becomes_current_when_it_serves() -> None:
    status = update(revision_report(V1), revision_report(V2, bytes=10, rank=4))
    assert status.candidate_revision is None
    assert status.current_revision is not None
    assert (status.current_revision.id, status.current_revision.rank) == (V2, 4)
    assert summary(status)["Loaded"] == ("True", "Available")


def test_a_refused_adapter_is_not_ready_for_the_same_reason() -> None:
    refused = Verdict(Reason.NAME_CONFLICT, "the name is held by another")
    status = status_of([make_pod(revision_report(V1))], verdict=refused)
    assert summary(status)["Accepted"] == ("False", "NameConflict")
    assert summary(status)["Ready"] == ("False", "NameConflict")
    assert status.served_name == ""


def test_a_suspended_adapter_remembers_its_revision() -> None:
    adapter = make_adapter(suspend=True, status=SERVED)
    status = status_of([make_pod(revision_report(V1))], adapter)
    assert summary(status)["Ready"] == ("False", "Suspended")
    assert status.current_revision is not None
    assert status.current_revision.digest == DIGEST_1


def test_a_new_name_counts_only_on_pods_that_have_read_it() -> None:
    adapter = make_adapter(servedName="loud", status=SERVED)
    verdict = Verdict(Reason.ACCEPTED, "", Names("loud"))
    shards = [Shard(index=i, hash="new") for i in range(NUM_SHARDS)]
    fresh = PodView("a", ready=True, report=status_report("a", [revision_report(V1)], shards))
    stale = make_pod(revision_report(V1), name="b")
    versions = advance(adapter, [fresh])
    ready = adapter_status(adapter, verdict, versions, [fresh], "new")
    assert summary(ready)["Ready"] == ("True", "Available")
    assert ready.served_name == "loud"
    behind = adapter_status(adapter, verdict, versions, [stale], "new")
    assert summary(behind)["Ready"][0] == "False"


def test_a_time_changes_only_with_the_status() -> None:
    old = Condition(type="Ready", status="True", reason="Available", last_transition_time="t0")
    same = Condition(type="Ready", status="True", reason="Degraded")
    (kept,) = stamped([same], [old], 7, "t1")
    assert (kept.last_transition_time, kept.reason, kept.observed_generation) == (
        "t0",
        "Degraded",
        7,
    )
    (turned,) = stamped([same.model_copy(update={"status": "False"})], [old], 7, "t1")
    assert turned.last_transition_time == "t1"
