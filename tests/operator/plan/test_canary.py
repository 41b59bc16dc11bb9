"""A new version gets its share step by step, is promoted, or is taken out again."""

from typing import Any

from graft_operator.plan.accept import Names
from graft_operator.plan.canary import seconds_to_next_step
from graft_operator.plan.desired import adapter_entries
from graft_operator.plan.rollout import Versions, advance, wanted_revision
from graft_operator.plan.views import PodView
from graft_operator.resources.status import RevisionStatus
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.revisions import pinned_revision
from tests.support.objects import DIGEST_1, DIGEST_2, make_adapter, make_pod, revision_report

OLD = pinned_revision("default", "shout", DIGEST_1)
NEW = pinned_revision("default", "shout", DIGEST_2)
STEPS = [{"weight": 10, "pauseSeconds": 60}, {"weight": 50}]
NAMES = Names("shout")


def at(seconds: int) -> str:
    return f"2026-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}Z"


def updated(versions: Versions | None = None, **rollout: Any) -> LoraAdapter:
    """Return an adapter whose spec asks for NEW, with OLD serving, as far as it has come."""
    old = make_adapter(digest=DIGEST_1)
    current = wanted_revision(old)
    recorded = versions or Versions(current, None)
    status = {
        name: one.model_dump(mode="json", by_alias=True)
        for name, one in (
            ("currentRevision", recorded.current),
            ("candidateRevision", recorded.candidate),
            ("rejectedRevision", recorded.rejection),
        )
        if one is not None
    }
    return make_adapter(digest=DIGEST_2, status=status, rollout={"steps": STEPS, **rollout})


def pods(*, requests: int = 0, errors: int = 0, loaded: bool = True) -> list[PodView]:
    reports = [revision_report(OLD)]
    if loaded:
        reports.append(revision_report(NEW, requests=requests, errors=errors))
    return [make_pod(*reports)]


def shares(adapter: LoraAdapter) -> dict[str, int]:
    return {entry.revision: entry.weight for entry in adapter_entries(adapter, NAMES, pods())}


def candidate(versions: Versions) -> RevisionStatus:
    assert versions.candidate is not None
    return versions.candidate


def test_a_new_version_gets_nothing_before_every_pod_has_it() -> None:
    adapter = updated()
    versions = advance(adapter, pods(loaded=False), at(0))
    assert candidate(versions).step is None
    assert shares(updated(versions)) == {NEW: 0, OLD: 100}


def test_it_goes_through_its_steps_as_time_passes_and_waits_where_none_is_given() -> None:
    first = advance(updated(), pods(), at(0))
    assert (candidate(first).weight, candidate(first).step) == (10, 0)
    assert shares(updated(first)) == {NEW: 10, OLD: 90}
    adapter = updated(first)
    assert seconds_to_next_step(adapter.spec.rollout, first.candidate, at(20)) == 40
    assert advance(adapter, pods(), at(59)) == first
    second = advance(adapter, pods(), at(60))
    assert shares(updated(second)) == {NEW: 50, OLD: 50}
    adapter = updated(second)
    assert seconds_to_next_step(adapter.spec.rollout, second.candidate, at(99)) is None
    assert advance(adapter, pods(), at(3000)) == second


def test_the_last_step_ends_in_everything() -> None:
    steps = [{"weight": 50, "pauseSeconds": 10}]
    first = advance(updated(steps=steps), pods(), at(0))
    done = advance(updated(first, steps=steps), pods(), at(10))
    assert done.current is not None
    assert (done.current.id, done.candidate, done.current.weight) == (NEW, None, None)


def test_a_person_promotes_the_version_by_its_id_and_no_other() -> None:
    first = advance(updated(), pods(), at(0))
    other = updated(first, promote=OLD)
    assert advance(other, pods(), at(1)) == first
    promoted = updated(first, promote=NEW)
    assert shares(promoted) == {NEW: 100, OLD: 0}
    found = advance(promoted, pods(), at(1))
    assert found.current is not None
    assert found.current.id == NEW


def test_a_version_that_fails_too_often_is_taken_out_and_stays_out() -> None:
    first = advance(updated(), pods(), at(0))
    assert advance(updated(first), pods(requests=19, errors=19), at(1)) == first
    assert advance(updated(first), pods(requests=100, errors=5), at(1)) == first
    back = advance(updated(first), pods(requests=100, errors=6), at(1))
    assert back.candidate is None
    assert back.rejection is not None
    assert back.rejection.message == "6 of 100 requests failed"
    rejected = updated(back)
    assert shares(rejected) == {OLD: 100}
    again = advance(rejected, pods(), at(1000))
    assert (again.candidate, again.rejection) == (None, back.rejection)


def test_a_changed_source_is_tried_after_a_rejected_one() -> None:
    first = advance(updated(), pods(), at(0))
    back = advance(updated(first), pods(requests=100, errors=50), at(1))
    third = "sha256:" + "3" * 64
    status = updated(back).status.model_dump(mode="json", by_alias=True, exclude_none=True)
    adapter = make_adapter(digest=third, status=status, rollout={"steps": STEPS})
    versions = advance(adapter, pods(), at(2))
    assert candidate(versions).digest == third
    assert versions.rejection is None


def test_a_version_that_cannot_be_loaded_never_gets_a_request() -> None:
    versions = advance(updated(), pods(loaded=False), at(0))
    for later in (60, 600):
        versions = advance(updated(versions), pods(loaded=False), at(later))
    assert shares(updated(versions)) == {NEW: 0, OLD: 100}


def test_the_first_version_needs_no_steps() -> None:
    adapter = make_adapter(digest=DIGEST_2, rollout={"steps": STEPS})
    assert [e.weight for e in adapter_entries(adapter, NAMES, pods())] == [100]
    found = advance(adapter, pods(), at(0))
    assert found.current is not None
    assert found.current.id == NEW


def test_without_steps_the_new_version_takes_over_as_soon_as_it_is_loaded() -> None:
    adapter = updated(steps=[])
    assert shares(adapter) == {NEW: 100, OLD: 0}
    found = advance(adapter, pods(), at(0))
    assert found.current is not None
    assert found.current.id == NEW
