"""The desired set: what is written for each adapter."""

from typing import Any

import pytest

from graft_operator.plan.accept import Names, Verdict
from graft_operator.plan.desired import adapter_entries, desired_shards, hash_of_set
from graft_protocol.desired import NUM_SHARDS, shard_index
from graft_protocol.reasons import Reason
from tests.support.objects import DIGEST_1, DIGEST_2, make_adapter, make_pod

NAMES = Names("shout", ("default/shout",))
CURRENT = {
    "id": "default/shout@111111111111",
    "digest": DIGEST_1,
    "uri": "s3://adapters/v1",
    "sourceHash": "of-v1",
}


def test_a_pinned_adapter_is_one_entry_that_is_served() -> None:
    (entry,) = adapter_entries(make_adapter(secret="keys", pinned=True, tier="Host"), NAMES, [])
    assert entry.revision == "default/shout@111111111111"
    assert entry.digest == DIGEST_1
    assert (entry.weight, entry.pinned, entry.tier) == (100, True, "Host")
    assert entry.credential == "default.keys"
    assert entry.resolver is None


def test_an_unpinned_adapter_is_resolved_by_one_pod() -> None:
    pods = [make_pod(name="tiny-0"), make_pod(name="tiny-1")]
    (entry,) = adapter_entries(make_adapter(digest=None), NAMES, pods)
    assert entry.digest is None
    assert entry.revision.startswith("default/shout@pending-")
    assert entry.resolver in {"tiny-0", "tiny-1"}
    (again,) = adapter_entries(make_adapter(digest=None), NAMES, list(reversed(pods)))
    assert again == entry


def test_a_pod_that_takes_requests_resolves_before_one_that_does_not() -> None:
    for ready in ("tiny-0", "tiny-1"):
        pods = [make_pod(name=name, ready=name == ready) for name in ("tiny-0", "tiny-1")]
        (entry,) = adapter_entries(make_adapter(digest=None), NAMES, pods)
        assert entry.resolver == ready


def test_an_update_is_the_new_version_and_the_old_one_as_standby_in_one_shard() -> None:
    adapter = make_adapter(
        uri="s3://adapters/v2", digest=DIGEST_2, status={"currentRevision": CURRENT}
    )
    new, old = adapter_entries(adapter, NAMES, [])
    assert (new.digest, new.weight, new.uri) == (DIGEST_2, 100, "s3://adapters/v2")
    assert (old.digest, old.weight, old.uri) == (DIGEST_1, 0, "s3://adapters/v1")
    assert old.served_name == new.served_name


def test_the_old_version_stays_while_the_new_one_has_no_digest_yet() -> None:
    adapter = make_adapter(uri="s3://adapters/v2", digest=None, status={"currentRevision": CURRENT})
    pending, old = adapter_entries(adapter, NAMES, [make_pod()])
    assert pending.digest is None
    assert old.digest == DIGEST_1


def test_a_digest_that_was_found_is_kept_as_long_as_the_source_is_the_same() -> None:
    pending = adapter_entries(make_adapter(digest=None), NAMES, [make_pod()])[0]
    known = {
        "id": "default/shout@222222222222",
        "digest": DIGEST_2,
        "uri": "s3://adapters/shout",
        "sourceHash": pending.revision.partition("@pending-")[2],
    }
    adapter = make_adapter(digest=None, status={"candidateRevision": known})
    (entry,) = adapter_entries(adapter, NAMES, [make_pod()])
    assert entry.digest == DIGEST_2
    moved = make_adapter(digest=None, uri="s3://other", status={"candidateRevision": known})
    assert adapter_entries(moved, NAMES, [make_pod()])[0].digest is None


@pytest.mark.parametrize("seconds", [None, 0, 300])
def test_every_version_of_an_adapter_drains_as_the_adapter_says(seconds: float | None) -> None:
    spec: dict[str, Any] = {} if seconds is None else {"drainTimeoutSeconds": seconds}
    status = {"currentRevision": CURRENT}
    adapter = make_adapter(uri="s3://adapters/v2", digest=DIGEST_2, status=status, **spec)
    entries = adapter_entries(adapter, NAMES, [])
    assert [entry.drain_timeout_seconds for entry in entries] == [seconds, seconds]


def test_a_suspended_adapter_is_in_no_shard() -> None:
    assert adapter_entries(make_adapter(suspend=True), NAMES, []) == []


def test_a_refused_adapter_is_in_no_shard_and_the_set_has_one_name() -> None:
    good, bad = make_adapter("good"), make_adapter("bad")
    verdicts = {
        good.key: Verdict(Reason.ACCEPTED, "", Names("good")),
        bad.key: Verdict(Reason.NAME_CONFLICT, "taken"),
    }
    shards = desired_shards([good, bad], verdicts, [])
    assert len(shards) == NUM_SHARDS
    assert [e.served_name for shard in shards for e in shard.entries] == ["good"]
    assert shards[shard_index("good")].entries
    assert hash_of_set(shards) == hash_of_set(desired_shards([bad, good], verdicts, []))
    assert hash_of_set(shards) != hash_of_set(desired_shards([], verdicts, []))
