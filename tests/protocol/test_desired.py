"""The desired set on the wire."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_protocol.desired import (
    NUM_SHARDS,
    AdapterEntry,
    MalformedShardError,
    RuntimeTooOldError,
    TenantLimits,
    build_shards,
    key_hash,
    parse_shard,
    set_hash,
    shard_index,
    shard_key,
)
from graft_protocol.revisions import parse_revision, pending_revision, pinned_revision

DIGEST = "sha256:" + "ab" * 32


def entry(name: str = "shout", **fields: object) -> AdapterEntry:
    values: dict[str, object] = {
        "revision": pinned_revision("team", name, DIGEST),
        "served_name": name,
        "uri": f"s3://bucket/{name}/",
        "digest": DIGEST,
    }
    return AdapterEntry.model_validate(values | fields)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=6), unique=True, max_size=40))
def test_every_entry_lies_in_the_shard_of_its_name_and_comes_back(names: list[str]) -> None:
    entries = {name: entry(name) for name in names}
    shards = [parse_shard(shard.to_json()) for shard in build_shards(entries.values())]
    assert len(shards) == NUM_SHARDS
    found = {one.served_name: shard.index for shard in shards for one in shard.entries}
    assert found == {name: shard_index(name) for name in names}


def test_the_order_of_entries_does_not_change_the_hashes() -> None:
    entries = [entry(f"a{number}") for number in range(20)]
    first = [shard.hash for shard in build_shards(entries)]
    second = [shard.hash for shard in build_shards(reversed(entries))]
    assert first == second
    assert set_hash(first) == set_hash(second)


def test_any_change_of_an_entry_changes_its_shard_and_the_set() -> None:
    before = build_shards([entry(), entry("other")])
    after = build_shards([entry(weight=0), entry("other")])
    changed = [a.index for a, b in zip(before, after, strict=True) if a.hash != b.hash]
    assert changed == [shard_index("shout")]
    assert set_hash(s.hash for s in before) != set_hash(s.hash for s in after)


def test_a_shard_that_was_tampered_with_is_refused() -> None:
    document = json.loads(build_shards([entry()])[shard_index("shout")].to_json())
    document["entries"][0]["uri"] = "s3://elsewhere/"
    with pytest.raises(MalformedShardError, match="hash"):
        parse_shard(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"minProtocol": "x"}', "null", '"shard"'])
def test_what_is_no_shard_is_malformed(text: str) -> None:
    with pytest.raises(MalformedShardError):
        parse_shard(text)


def test_a_shard_for_a_newer_runtime_is_not_interpreted() -> None:
    with pytest.raises(RuntimeTooOldError, match="protocol 99"):
        parse_shard('{"minProtocol": 99, "anything": "else"}')


def test_a_pending_revision_cannot_carry_a_digest_nor_a_pinned_one_lack_it() -> None:
    with pytest.raises(ValueError, match="pinned revision has a digest"):
        entry(digest=None)
    with pytest.raises(ValueError, match="pinned revision has a digest"):
        entry(revision=pending_revision("team", "shout", "0123"))
    assert entry(revision=pending_revision("team", "shout", "0123"), digest=None).digest is None


def test_revision_names_survive_dots_and_say_whether_they_are_pending() -> None:
    assert parse_revision(pinned_revision("a.b", "c.d", DIGEST)) == ("a.b", "c.d", "abababababab")
    assert parse_revision("a/b@pending-12").is_pending
    assert not parse_revision("a/b@abababababab").is_pending


@pytest.mark.parametrize("text", ["", "a", "a/b", "a@b", "/b@c", "a/@c", "a/b@"])
def test_other_texts_are_no_revision_names(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_revision(text)


def test_shard_keys_sort_by_index() -> None:
    keys = [shard_key(index) for index in range(NUM_SHARDS)]
    assert keys == sorted(keys)


def test_what_an_older_runtime_cannot_know_is_left_out_while_it_says_nothing() -> None:
    (shard,) = [one for one in build_shards([entry()]) if one.entries]
    assert shard.min_protocol == 1
    (document,) = json.loads(shard.to_json())["entries"]
    assert not document.keys() & {"access", "tenant", "chatTemplate", "drainTimeoutSeconds"}


@pytest.mark.parametrize(
    ("since", "later"),
    [
        (2, {"access": ()}),
        (2, {"access": (key_hash("a"),)}),
        (2, {"tenant": TenantLimits(weight=2)}),
        (3, {"chat_template": True}),
        (3, {"chat_template": True, "access": ()}),
        (4, {"drain_timeout_seconds": 0}),
        (4, {"drain_timeout_seconds": 5, "chat_template": True}),
    ],
)
def test_an_entry_that_an_older_runtime_would_misread_says_so(
    since: int, later: dict[str, object]
) -> None:
    shard = build_shards([entry("shout", **later)])[shard_index("shout")]
    assert shard.min_protocol == since
    assert parse_shard(shard.to_json()) == shard
