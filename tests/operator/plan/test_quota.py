"""What a namespace may have, who waits for room, and who comes in when there is some."""

from typing import Any

import pytest

from graft_operator.plan.accept import (
    AcceptContext,
    Names,
    Verdict,
    accept_adapters,
    measured,
)
from graft_operator.plan.conditions import adapter_status, stamped
from graft_operator.plan.desired import adapter_entries, desired_shards
from graft_operator.plan.quota import Facts, tenant_limits, tenant_spec
from graft_operator.plan.rollout import (
    Versions,
    advance,
    wanted_revision,
)
from graft_operator.resources.status import AdapterStatus
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import TenantLimits
from tests.support.objects import (
    DIGEST_1,
    DIGEST_2,
    NOW,
    make_adapter,
    make_pod,
    make_service,
    revision_report,
)

ALL = {"allowedNamespaces": {"from": "All"}}


def adapter(
    name: str, created: int, namespace: str = "team-a", *, size: int | None = None, **spec: Any
) -> LoraAdapter:
    revision = {
        "id": f"{namespace}/{name}@{'1' * 12}",
        "digest": DIGEST_1,
        "uri": "s3://a/b",
        "sourceHash": "x",
        "bytes": size,
    }
    status = {"currentRevision": revision} if size is not None else {}
    time = f"2026-01-01T00:00:{created:02d}Z"
    return make_adapter(name, namespace, created=time, status=status, **spec)


def verdicts(
    tenants: list[Any],
    *adapters: LoraAdapter,
    context: AcceptContext | None = None,
    **spec: Any,
) -> dict[str, Verdict]:
    service = make_service(adapters={**ALL, "tenants": tenants, **spec})
    found = accept_adapters(service, adapters, context or AcceptContext())
    return {key.name: verdict for key, verdict in found.items()}


def reasons(*args: Any, **kwargs: Any) -> dict[str, str]:
    return {name: str(verdict.reason) for name, verdict in verdicts(*args, **kwargs).items()}


def test_the_oldest_adapters_have_the_room_and_the_next_comes_in_when_one_goes() -> None:
    tenants = [{"maxAdapters": 2}]
    first, second, third = (adapter(name, at) for at, name in enumerate(("a", "b", "c")))
    found = reasons(tenants, third, first, second)
    assert found == {"a": "Accepted", "b": "Accepted", "c": "QuotaExceeded"}
    assert reasons(tenants, third, second) == {"b": "Accepted", "c": "Accepted"}


def test_who_is_served_keeps_its_room_before_who_is_older() -> None:
    older, served = adapter("old", 1), adapter("served", 2)
    context = AcceptContext(holders={"team-a/served": "team-a/served"})
    found = reasons([{"maxAdapters": 1}], older, served, context=context)
    assert found == {"old": "QuotaExceeded", "served": "Accepted"}


def test_each_namespace_has_its_own_room() -> None:
    tenants = [{"namespaces": ["team-a"], "maxAdapters": 0}, {"maxAdapters": 1}]
    found = reasons(
        tenants,
        adapter("a", 1),
        adapter("b", 2, "team-b"),
        adapter("c", 3, "team-b"),
        adapter("d", 4, "team-c"),
    )
    assert found == {
        "a": "QuotaExceeded",
        "b": "Accepted",
        "c": "QuotaExceeded",
        "d": "Accepted",
    }


def test_bytes_count_as_soon_as_they_are_known() -> None:
    tenants = [{"maxBytes": 100}]
    found = verdicts(tenants, adapter("a", 1, size=60), adapter("b", 2, size=50), adapter("c", 3))
    assert {name: str(one.reason) for name, one in found.items()} == {
        "a": "Accepted",
        "b": "QuotaExceeded",
        "c": "Accepted",
    }
    assert "110 of 100 bytes" in found["b"].message


def served(adapter: LoraAdapter, **facts: Any) -> LoraAdapter:
    """Return it as a pod has found it."""
    current = wanted_revision(adapter).model_copy(update=facts)
    return adapter.model_copy(update={"status": AdapterStatus(current_revision=current)})


def status_after(adapter: LoraAdapter, verdict: Verdict) -> dict[str, Any]:
    """Return the status that a verdict leaves, as it is stored."""
    recorded = adapter.status
    versions = Versions(recorded.current_revision, recorded.candidate_revision)
    status = adapter_status(adapter, verdict, versions, (), "")
    conditions = stamped(status.conditions, (), 1, NOW)
    stored = status.model_copy(update={"conditions": conditions})
    return stored.model_dump(mode="json", by_alias=True, exclude_none=True)


@pytest.mark.parametrize(
    ("tenants", "facts", "reason"),
    [
        ([{"maxBytes": 100}], {"bytes": 200}, "QuotaExceeded"),
        ([{"maxRank": 16}], {"rank": 32}, "RankTooLarge"),
    ],
)
def test_who_was_too_large_comes_in_with_another_source_or_a_larger_quota(
    tenants: list[Any], facts: dict[str, Any], reason: str
) -> None:
    large = served(make_adapter("a", "team-a"), **facts)
    refused = verdicts(tenants, large)["a"]
    assert refused.reason == reason
    status = status_after(large, refused)

    assert reasons(tenants, make_adapter("a", "team-a", status=status)) == {"a": reason}
    assert reasons([], make_adapter("a", "team-a", status=status)) == {"a": "Accepted"}
    other = make_adapter("a", "team-a", uri="s3://adapters/small", digest=DIGEST_2, status=status)
    assert reasons(tenants, other) == {"a": "Accepted"}
    # The one that was too large does not stand by for its successor.
    (entry,) = adapter_entries(other, Names("team-a/a"), ())
    assert entry.uri == "s3://adapters/small"


def test_a_version_that_serves_takes_room_until_its_successor_does() -> None:
    status = adapter("a", 1, size=200).status.model_dump(mode="json", by_alias=True)
    other = make_adapter("a", "team-a", uri="s3://adapters/small", digest=DIGEST_2, status=status)
    assert reasons([{"maxBytes": 100}], other) == {"a": "QuotaExceeded"}


def updated(old: int, new: int | None, name: str = "a") -> LoraAdapter:
    """Return an adapter of which one version serves and another one has been looked at."""
    before = served(make_adapter(name, "team-a"), bytes=old).status
    now = make_adapter(name, "team-a", uri="s3://adapters/next", digest=DIGEST_2)
    candidate = wanted_revision(now).model_copy(update={"bytes": new})
    status = before.model_copy(update={"candidate_revision": candidate})
    return now.model_copy(update={"status": status})


def test_a_new_version_without_room_leaves_the_old_one_serving_until_there_is_some() -> None:
    adapter = updated(60, 200)
    current, candidate = adapter.status.current_revision, adapter.status.candidate_revision
    assert current is not None
    assert candidate is not None
    pods = [make_pod(revision_report(current.id))]

    verdict = verdicts([{"maxBytes": 100}], adapter)["a"]
    assert verdict.is_accepted
    assert verdict.held_back is not None
    (entry,) = adapter_entries(adapter, Names("team-a/a"), pods, held_back=True)
    assert (entry.revision, entry.weight) == (current.id, 100)
    versions = advance(adapter, pods, held_back=True)
    status = adapter_status(adapter, verdict, versions, pods, "")
    told = {one.type: (one.status, one.reason) for one in status.conditions}
    assert told["Accepted"] == ("True", "Accepted")
    assert told["Loaded"] == told["RolloutProgressing"] == ("False", "QuotaExceeded")
    assert told["Ready"] == ("True", "Available")
    assert status.candidate_revision == candidate

    assert verdicts([{"maxBytes": 200}], adapter)["a"].held_back is None
    entries = adapter_entries(adapter, Names("team-a/a"), pods)
    assert {entry.revision for entry in entries} == {current.id, candidate.id}


@pytest.mark.parametrize(("size", "held"), [(100, False), (101, True)])
def test_an_update_is_measured_before_it_serves_also_where_both_are_told_at_once(
    size: int, held: bool
) -> None:
    # When the verdict was made, nobody knew how large the update is.
    adapter = updated(60, None)
    current, wanted = adapter.status.current_revision, wanted_revision(adapter)
    assert current is not None
    verdict = verdicts([{"maxBytes": 100}], adapter)["a"]
    assert verdict.held_back is None
    loaded = [revision_report(one.id, bytes=n) for one, n in ((current, 60), (wanted, size))]
    pods = [make_pod(*loaded)]

    verdict = measured(verdict, adapter, pods)
    versions = advance(adapter, pods, held_back=verdict.held_back is not None)
    assert (verdict.held_back is not None) is held
    assert versions.current is not None
    assert versions.current.id == (current.id if held else wanted.id)
    if held:
        # As it is found by the next verdict, which knows.
        status = adapter.status.model_copy(update={"candidate_revision": versions.candidate})
        known = adapter.model_copy(update={"status": status})
        assert verdicts([{"maxBytes": 100}], known)["a"].held_back == verdict.held_back


@pytest.mark.parametrize(
    ("tenants", "facts", "share"),
    [
        ([{"maxBytes": 100}], {}, 0),
        ([{"maxBytes": 100}], {"bytes": 80}, 100),
        ([{"maxAdapters": 1, "maxRank": 16}], {}, 100),
        ([], {}, 100),
    ],
)
def test_a_new_version_gets_no_request_before_it_is_measured_where_bytes_are_bounded(
    tenants: list[Any], facts: dict[str, Any], share: int
) -> None:
    adapter = updated(60, None)
    current, candidate = adapter.status.current_revision, adapter.status.candidate_revision
    assert current is not None
    assert candidate is not None
    found = {"candidate_revision": candidate.model_copy(update=facts)}
    adapter = adapter.model_copy(update={"status": adapter.status.model_copy(update=found)})
    for promote in (None, candidate.id):
        rollout = adapter.spec.rollout.model_copy(update={"promote": promote})
        spec = adapter.spec.model_copy(update={"rollout": rollout})
        asked = adapter.model_copy(update={"spec": spec})
        shards = desired_shards([asked], {asked.key: verdicts(tenants, asked)["a"]}, ())
        shares = {entry.revision: entry.weight for shard in shards for entry in shard.entries}
        assert shares == {candidate.id: share, current.id: 100 - share}


def test_how_far_a_version_without_steps_has_come_is_told_by_the_pods_that_have_it() -> None:
    adapter = updated(60, 80)
    current, wanted = adapter.status.current_revision, wanted_revision(adapter)
    assert current is not None
    loaded = [revision_report(one.id) for one in (current, wanted)]
    pods = [make_pod(loaded[0]), make_pod(*loaded, name="tiny-1")]
    told_of = {1: "no requests yet", 2: "all requests on 1 ready pods so far"}
    for count, said in told_of.items():
        some = pods[:count]
        verdict = verdicts([], adapter)["a"]
        status = adapter_status(adapter, verdict, advance(adapter, some), some, "")
        (told,) = (one for one in status.conditions if one.type == "RolloutProgressing")
        assert (told.status, told.message) == ("True", f"{wanted.id} gets {said}")


def test_a_first_version_is_loaded_and_served_whatever_is_not_known_of_it() -> None:
    first = make_adapter("a", "team-a")
    shards = desired_shards([first], {first.key: verdicts([{"maxBytes": 100}], first)["a"]}, ())
    assert [entry.weight for shard in shards for entry in shard.entries] == [100]


def test_what_updates_add_counts_once_for_themselves_and_for_all_others() -> None:
    two = (updated(30, 50, name="a"), updated(30, None, name="b"))
    found = verdicts([{"maxBytes": 100, "maxRank": 16}], *two)
    ceilings = {name: one.ceiling for name, one in found.items()}
    assert ceilings["a"] is not None
    assert ceilings["b"] is not None
    assert [ceilings["a"].refusal(Facts(size)) is None for size in (70, 71)] == [True, False]
    assert [ceilings["b"].refusal(Facts(size)) is None for size in (50, 51)] == [True, False]
    assert ceilings["b"].refusal(Facts(rank=99)) is not None


def test_an_update_that_has_no_room_takes_none_from_anybody() -> None:
    for size, held in ((40, True), (0, False)):
        found = verdicts([{"maxBytes": 100}], updated(60, 100), adapter("b", 1, size=size))
        assert (found["a"].held_back is not None) == held
        assert found["a"].is_accepted
        # Also who comes after it keeps what is served.
        assert found["b"].is_accepted
    two = (updated(30, 60, name="a"), updated(30, 60, name="b"))
    found = verdicts([{"maxBytes": 100}], *two)
    assert [found[name].held_back is None for name in ("a", "b")] == [True, False]


def test_a_serving_version_above_a_lowered_quota_makes_room_for_a_smaller_one_at_once() -> None:
    tenants = [{"maxBytes": 100}]
    lowered = updated(200, 60)
    refused = verdicts(tenants, lowered)["a"]
    assert refused.reason == "QuotaExceeded"
    status = status_after(lowered, refused)
    assert "currentRevision" not in status
    spec = {"uri": "s3://adapters/next", "digest": DIGEST_2, "status": status}
    assert reasons(tenants, make_adapter("a", "team-a", **spec)) == {"a": "Accepted"}


@pytest.mark.parametrize(
    ("tenants", "max_rank", "expected"),
    [
        ([], None, "Accepted"),
        ([], 16, "RankTooLarge"),
        ([{"maxRank": 16}], None, "RankTooLarge"),
        ([{"maxRank": 16}], 64, "RankTooLarge"),
        ([{"maxRank": 64}], 32, "Accepted"),
    ],
)
def test_a_declared_rank_is_refused_before_anything_is_fetched(
    tenants: list[Any], max_rank: int | None, expected: str
) -> None:
    declared = adapter("a", 1, declared={"rank": 32})
    limits = {} if max_rank is None else {"maxRank": max_rank}
    assert reasons(tenants, declared, **limits) == {"a": expected}


def test_a_refused_adapter_uses_nothing_up() -> None:
    tenants = [{"maxAdapters": 1, "maxRank": 16}]
    found = reasons(tenants, adapter("big", 1, declared={"rank": 32}), adapter("small", 2))
    assert found == {"big": "RankTooLarge", "small": "Accepted"}


def test_an_adapter_expires_at_its_moment() -> None:
    one = adapter("a", 1, expiresAt="2030-01-01T00:00:00Z")
    for now, expected in (
        ("2029-12-31T23:59:59Z", "Accepted"),
        ("2030-01-01T00:00:00Z", "Expired"),
        ("2031-01-01T00:00:00Z", "Expired"),
    ):
        assert reasons([], one, context=AcceptContext(now=now)) == {"a": expected}


def test_an_adapter_whose_keys_cannot_be_read_is_open_to_nobody() -> None:
    guarded = adapter("a", 1, access={"apiKeySecretRefs": [{"name": "callers"}]})
    context = AcceptContext(key_problems={("team-a", "callers"): "does not exist"})
    assert reasons([], guarded, context=context) == {"a": "SecretNotFound"}
    context = AcceptContext(key_problems={("team-a", "callers"): ""})
    assert reasons([], guarded, context=context) == {"a": "Accepted"}


def test_an_entry_that_names_a_namespace_wins_over_one_for_all() -> None:
    service = make_service(
        adapters={"tenants": [{"weight": 2}, {"namespaces": ["a"], "maxConcurrentRequests": 3}]}
    )
    assert tenant_limits(service, "a") == TenantLimits(max_concurrent_requests=3)
    assert tenant_limits(service, "b") == TenantLimits(weight=2)
    assert tenant_limits(make_service(), "a") is None
    assert tenant_spec(make_service(), "a") is None
