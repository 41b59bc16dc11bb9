"""What one namespace asks for never keeps what others have from being written."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from graft_operator.plan.accept import AcceptContext, Names, SecretFacts, Verdict, accept_adapters
from graft_operator.plan.desired import Grant, adapter_entries, desired_shards
from graft_operator.plan.room import CREDENTIALS_MAX, entry_bytes
from graft_operator.resources.api_keys import KEYS_MAX
from graft_operator.resources.credentials import CREDENTIAL_MAX, credential_index, credential_key
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import TenantLimits, build_shards, key_hash, shard_index
from graft_protocol.reasons import Reason
from tests.support.objects import DIGEST_2, make_adapter, make_pod, make_service

API_LIMIT = 2**20
OPEN = {"allowedNamespaces": {"from": "All"}}
HASHES = tuple(sorted(key_hash(str(number)) for number in range(KEYS_MAX)))
GUARDED = {"apiKeySecretRefs": [{"name": "callers"}]}
CURRENT = {
    "id": "default/shout@222222222222",
    "digest": DIGEST_2,
    "uri": "s3://adapters/" + "v" * 900,
    "sourceHash": "before",
    "credential": "default.keys",
}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"digest": None},
        {"secret": "k" * 253, "access": GUARDED},
        {"uri": 's3://adapters/"\\ü\U0001f600' + "x" * 900, "secret": "keys"},
        {"aliases": [f"{number:02d}" + "a" * 126 for number in range(16)]},
        {"chatTemplate": "Adapter", "drainTimeoutSeconds": 12345.678, "pinned": True},
        {"status": {"currentRevision": CURRENT}, "access": GUARDED},
    ],
)
def test_no_entry_is_larger_than_what_is_counted_for_it(facts: dict[str, Any]) -> None:
    adapter = make_adapter("n" * 200, "team-a", **facts)
    names = Names(adapter.qualified_name[:128], adapter.spec.aliases)
    limits = TenantLimits(max_concurrent_requests=2**31 - 1, weight=99.123456789)
    grant = Grant(HASHES if adapter.spec.access else None, limits)
    pods = [make_pod(name="p" * 80)]
    entries = adapter_entries(adapter, names, pods, grant)
    index = shard_index(names.served)
    empty, full = (build_shards(some)[index].to_json().encode() for some in ((), entries))
    counted = entry_bytes(adapter, names.every, len(grant.access or ()))
    assert len(full) - len(empty) <= counted


def created(number: int, **facts: Any) -> LoraAdapter:
    """Return an adapter of a namespace of its own, each younger than the one before."""
    when = f"2026-01-01T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}Z"
    return make_adapter("voice", f"team-{number}", created=when, **facts)


def refused(verdicts: dict[Any, Verdict]) -> set[Reason]:
    return {verdict.reason for verdict in verdicts.values() if not verdict.is_accepted}


def test_who_comes_last_waits_when_a_part_of_the_set_is_full() -> None:
    adapters = [created(number, access=GUARDED) for number in range(900)]
    counts = {(one.metadata.namespace, "callers"): KEYS_MAX for one in adapters}
    context = AcceptContext(key_counts=counts)
    verdicts = accept_adapters(make_service(adapters=OPEN), adapters, context)
    grants = {one.key: Grant(HASHES) for one in adapters}
    shards = desired_shards(adapters, verdicts, [], grants)
    assert max(len(shard.to_json().encode()) for shard in shards) < API_LIMIT
    assert refused(verdicts) == {Reason.QUOTA_EXCEEDED}
    by_shard: dict[int, list[bool]] = {}
    for one in adapters:
        verdict = verdicts[one.key]
        by_shard.setdefault(shard_index(one.qualified_name), []).append(verdict.is_accepted)
    assert all(taken == sorted(taken, reverse=True) for taken in by_shard.values())


def test_an_adapter_opens_to_no_more_keys_than_an_entry_may_hold() -> None:
    refs = [{"name": "some"}, {"name": "more"}]
    adapter = make_adapter(access={"apiKeySecretRefs": refs})
    for more, is_accepted in ((KEYS_MAX - 200, True), (KEYS_MAX - 199, False)):
        counts = {("default", "some"): 200, ("default", "more"): more}
        context = AcceptContext(key_counts=counts)
        (found,) = accept_adapters(make_service(), [adapter], context).values()
        assert found.is_accepted == is_accepted


def test_credentials_of_many_fill_no_secret_beyond_what_it_takes() -> None:
    adapters = [created(number, secret="keys") for number in range(300)]
    size = CREDENTIAL_MAX
    secrets = {(one.metadata.namespace, "keys"): SecretFacts(size=size) for one in adapters}
    verdicts = accept_adapters(make_service(adapters=OPEN), adapters, AcceptContext(secrets))
    filled: Counter[int] = Counter()
    for one in adapters:
        if verdicts[one.key].is_accepted:
            filled[credential_index(credential_key(one.metadata.namespace, "keys"))] += size
    assert refused(verdicts) == {Reason.QUOTA_EXCEEDED}
    assert CREDENTIALS_MAX - size < max(filled.values()) <= CREDENTIALS_MAX


def test_a_secret_that_many_share_counts_once() -> None:
    adapters = [make_adapter(f"voice-{number}", secret="keys") for number in range(100)]
    context = AcceptContext({("default", "keys"): SecretFacts(size=CREDENTIAL_MAX)})
    verdicts = accept_adapters(make_service(), adapters, context)
    assert refused(verdicts) == set()
