"""What a changed pod or report is news for."""

from typing import Any

from graft_operator.reconcile.news import (
    changed_revisions,
    changed_shards,
    is_same_pod,
    is_told_of_pod,
)
from graft_operator.resources.meta import Manifest
from graft_protocol.desired import Shard
from graft_protocol.reasons import AdapterState, Reason
from graft_protocol.status import LoadReport
from tests.support.objects import revision_report, status_report

LOUD, CALM = "team-a/loud@111111111111", "team-a/calm@222222222222"


def pod(**changes: Any) -> Manifest:
    """Return a pod; changes are of its annotations, its readiness or its restarts."""
    return {
        "metadata": {
            "name": "tiny-0",
            "uid": "u",
            "resourceVersion": str(id(changes)),
            "annotations": {"serving.graft.dev/desired": changes.get("nudge", "")},
        },
        "spec": {"containers": [{"image": "runtime"}]},
        "status": {
            "conditions": [{"type": "Ready", "status": changes.get("ready", "True")}],
            "containerStatuses": [{"restartCount": changes.get("restarts", 0)}],
        },
    }


def test_a_nudge_is_no_news_of_a_pod_but_readiness_and_restarts_are() -> None:
    assert is_same_pod(pod(), pod(nudge="s2/1"))
    assert not is_same_pod(pod(), pod(ready="False"))
    assert not is_same_pod(pod(), pod(restarts=1))
    assert not is_same_pod(None, pod())


def test_a_pod_that_begins_to_go_away_is_news() -> None:
    leaving = pod()
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not is_same_pod(pod(), leaving)


def test_load_is_no_news_of_a_pod() -> None:
    before = status_report()
    assert not is_told_of_pod(before, status_report(load=LoadReport(running=3)))
    assert is_told_of_pod(before, status_report(set_hash="s2"))


def test_of_revisions_only_those_that_differ_are_named_and_counters_apart() -> None:
    before = status_report(revisions=[revision_report(LOUD), revision_report(CALM)])
    counted = revision_report(LOUD).model_copy(update={"requests": 9, "active_requests": 1})
    now = status_report(revisions=[counted, revision_report(CALM)])
    assert [(r.revision, is_count) for r, is_count in changed_revisions(before, now)] == [
        (LOUD, True)
    ]
    failed = revision_report(LOUD).model_copy(
        update={"state": AdapterState.FAILED, "reason": Reason.CHECKSUM_MISMATCH, "errors": 1}
    )
    now = status_report(revisions=[failed])
    assert {(r.revision, is_count) for r, is_count in changed_revisions(before, now)} == {
        (LOUD, False),
        (CALM, False),
    }


def test_only_the_shards_that_were_read_anew_are_news() -> None:
    shards = [Shard(index=index, hash=f"h{index}") for index in range(3)]
    before = status_report(shards=shards)
    assert changed_shards(before, before) == set()
    assert changed_shards(status_report(), before) == {0, 1, 2}
    other = [*shards[:2], Shard(index=2, hash="new")]
    assert changed_shards(before, status_report(shards=other)) == {2}
