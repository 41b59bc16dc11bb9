"""Each invariant holds for a good history, and fails for one that is bad in its way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from graft_operator.resources.meta import ObjectKey
from graft_protocol.naming import LABEL_MANAGED_BY, LABEL_SERVICE
from tests.support.proof import invariants
from tests.support.proof.history import History, Json, Seen, Served, Write, short
from tests.support.proof.script import Call

CONTENT = "serving.graft.dev/content"
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64
POD = ObjectKey("Pod", "ns", "tiny-0")


def revision(digest: str, name: str = "shout") -> str:
    return f"ns/{name}@{short(digest)}"


def seen(version: int, kind: str, name: str, *, gone: bool = False, **fields: Any) -> Seen:
    """Return one version of an object; what happens at version v is heard of at second v."""
    metadata = {"uid": f"{kind}-{name}", "generation": 1, **fields.pop("metadata", {})}
    document = {"metadata": metadata, **fields}
    return Seen(
        version, ObjectKey(kind, "ns", name), metadata["uid"], document, float(version), gone
    )


def conditions(**true: bool) -> list[Json]:
    return [
        {"type": type_, "status": str(is_true), "observedGeneration": 1}
        for type_, is_true in true.items()
    ]


def child(version: int, kind: str, name: str, *, gone: bool = False, **fields: Any) -> Seen:
    labels = {LABEL_MANAGED_BY: "graft", LABEL_SERVICE: "tiny", **fields.pop("labels", {})}
    metadata = {
        "uid": fields.pop("uid", f"{kind}-{name}"),
        "labels": labels,
        "ownerReferences": [{"uid": fields.pop("owner", "InferenceService-tiny")}],
        **fields.pop("metadata", {}),
    }
    return seen(version, kind, name, gone=gone, metadata=metadata, **fields)


def service(version: int, *, gone: bool = False, ready: bool = True) -> Seen:
    status = {"observedGeneration": 1, "conditions": conditions(Ready=ready)}
    return seen(version, "InferenceService", "tiny", gone=gone, spec={}, status=status)


def adapter(version: int, uri: str = "one", current: str = "one", **fields: Any) -> Seen:
    digest = {"one": ONE, "two": TWO}[current]
    status = {
        "observedGeneration": 1,
        "conditions": conditions(Accepted=True, Ready=True),
        "servedName": "shout",
        "currentRevision": {"digest": digest, "uri": current},
        **fields.pop("status", {}),
    }
    name = fields.pop("name", "shout")
    spec = {"source": {"uri": uri}}
    return seen(version, "LoraAdapter", name, spec=spec, status=status, **fields)


def shard(version: int, *revisions: str, gone: bool = False) -> Seen:
    entries = [{"revision": one, "servedName": "shout", "aliases": []} for one in revisions]
    data = {"shard-0.json": json.dumps({"entries": entries})}
    labels = {CONTENT: "adapters"}
    return child(version, "ConfigMap", "tiny-adapters-00", labels=labels, data=data, gone=gone)


def deployment(version: int, image: str = "a", **metadata: Any) -> Seen:
    spec = {"template": {"image": image}}
    return child(version, "Deployment", "tiny", spec=spec, metadata=metadata)


def replica_set(version: int, name: str) -> Seen:
    return child(version, "ReplicaSet", name, owner="Deployment-tiny", spec={})


def pod(version: int, *, ready: bool = True) -> Seen:
    status = {"conditions": conditions(Ready=ready)}
    return child(version, "Pod", "tiny-0", spec={}, status=status)


def write(number: int, verb: str, version: int, **fields: Any) -> Write:
    call = Call(verb, fields.pop("plural", "configmaps"), "ns", "it")
    given: dict[str, Any] = {"uid": "u", "code": 200, "began": 1.0, **fields}
    return Write(number, call, version=version, **given)


FOREIGN: Json = {"annotations": {"example.com/owner": "a"}}
GOOD = History(
    seen=(
        seen(1, "InferenceService", "tiny", spec={}),
        shard(2),
        child(3, "ConfigMap", "tiny-runtime-a", labels={CONTENT: "runtime-config"}, data={}),
        deployment(4, **FOREIGN),
        replica_set(5, "tiny-1"),
        seen(6, "LoraAdapter", "shout", spec={"source": {"uri": "one"}}),
        shard(7, revision(ONE)),
        pod(8),
        service(9),
        adapter(10),
        adapter(11, uri="two"),
        shard(12, revision(TWO), revision(ONE)),
        adapter(13, uri="two", current="two"),
        shard(14, revision(TWO)),
    ),
    writes=(write(1, "apply", 7), write(2, "status", 10), write(3, "apply", 14)),
    served=(Served(POD, revision(ONE), 8.5, 14.5), Served(POD, revision(TWO), 12.5)),
    now=20.0,
)


def without(history: History, *versions: int) -> tuple[Seen, ...]:
    return tuple(one for one in history.seen if one.version not in versions)


def more(*some: Seen) -> Callable[[History], History]:
    return lambda good: good.with_seen(*some)


def wrote(*some: Write) -> Callable[[History], History]:
    return lambda good: replace(good, writes=(*good.writes, *some))


def served(*spans: Served) -> Callable[[History], History]:
    return lambda good: replace(good, served=spans)


GOING = {"metadata": {"deletionTimestamp": "now", "uid": "LoraAdapter-shout"}}
LATE = 200
BAD: dict[str, tuple[str, Callable[[History], History]]] = {
    "Ready though no pod has ever served": ("adapters_tell_the_truth", served()),
    "Ready before a pod serves": (
        "adapters_tell_the_truth",
        served(Served(POD, revision(ONE), 10.5, 15.0), Served(POD, revision(TWO), 11.0)),
    ),
    "Ready for another digest than is served": (
        "adapters_tell_the_truth",
        served(Served(POD, revision(ONE), 8.5)),
    ),
    "Ready long after serving ended": (
        "adapters_tell_the_truth",
        lambda good: replace(
            good,
            now=200.0,
            served=(Served(POD, revision(ONE), 8.5, 14.5), Served(POD, revision(TWO), 12.5, 20.0)),
        ),
    ),
    "a Ready service without a ready pod": (
        "services_tell_the_truth",
        lambda good: replace(good, seen=(*without(good, 8), pod(15, ready=False))),
    ),
    "a status of a spec to come": (
        "generations_are_observed",
        more(adapter(15, "two", "two", status={"observedGeneration": 2})),
    ),
    "a condition of a spec to come": (
        "generations_are_observed",
        more(
            adapter(
                15,
                "two",
                "two",
                status={
                    "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 2}]
                },
            )
        ),
    ),
    "a status that goes back": (
        "generations_are_observed",
        more(adapter(15, "two", "two", status={"observedGeneration": 0})),
    ),
    "an entry lost after a failed list": ("entries_outlive_failures", more(shard(15))),
    "an entry lost in a shard made again": (
        "entries_outlive_failures",
        more(shard(15, revision(TWO), gone=True), shard(16)),
    ),
    "another template": ("templates_stay", more(deployment(15, "b", **FOREIGN))),
    "pods made anew": ("pods_are_not_replaced", more(replica_set(15, "tiny-2"))),
    "a second configuration": (
        "one_of_each",
        more(child(15, "ConfigMap", "tiny-runtime-b", labels={CONTENT: "runtime-config"}, data={})),
    ),
    "a child without an owner": (
        "no_orphans",
        more(child(15, "Service", "tiny", owner="somebody")),
    ),
    "a child made for the dead": (
        "nothing_is_made_for_the_dead",
        more(service(15, gone=True), child(LATE, "Service", "tiny")),
    ),
    "a finalizer": (
        "no_finalizers",
        more(adapter(15, "two", "two", metadata={"finalizers": ["serving.graft.dev/kopf"]})),
    ),
    "a deletion that does not end": ("no_finalizers", more(adapter(15, "two", "two", **GOING))),
    "a foreign annotation lost": ("foreign_fields_stay", more(deployment(15))),
    "an old version that is current again": (
        "versions_go_forward",
        more(adapter(15, "two", "one")),
    ),
    "two adapters under one name in a shard": (
        "names_have_one_holder",
        more(shard(15, revision(TWO), revision(ONE, "other"))),
    ),
    "two adapters accepted under one name": (
        "names_have_one_holder",
        more(adapter(15, "two", "two", name="other")),
    ),
    "a gap between two versions": (
        "serving_goes_on",
        served(Served(POD, revision(ONE), 8.5, 12.0), Served(POD, revision(TWO), 12.5)),
    ),
    "serving that ends by itself": (
        "serving_goes_on",
        served(Served(POD, revision(ONE), 8.5, 14.5), Served(POD, revision(TWO), 12.5, 16.0)),
    ),
    "a status for whatever has the name": (
        "writes_name_their_object",
        wrote(write(4, "status", 15, uid="")),
    ),
    "a deletion of whatever has the name": (
        "writes_name_their_object",
        wrote(write(4, "delete", 0, uid="", code=404)),
    ),
    "a write that stores what is stored": (
        "writes_change_something",
        wrote(write(4, "apply", 14, began=30.0)),
    ),
    "a write twice": ("writes_change_something", wrote(write(4, "apply", 14))),
    "a deletion": ("deletes_only_the_unwanted", wrote(write(4, "delete", 0))),
}


def test_nothing_is_wrong_with_a_good_history() -> None:
    assert invariants.violations(GOOD) == []


@pytest.mark.parametrize("what", BAD)
def test_an_invariant_finds_what_it_is_about(what: str) -> None:
    name, spoil = BAD[what]
    found = {violation.invariant for violation in invariants.violations(spoil(GOOD))}
    assert name in found


def test_every_invariant_has_been_seen_to_fail() -> None:
    names = {invariant.__name__ for invariant in invariants.ALWAYS}
    assert names == {name for name, _ in BAD.values()}


def test_an_entry_may_leave_with_its_adapter() -> None:
    gone = seen(15, "LoraAdapter", "shout", gone=True, spec={"source": {"uri": "two"}})
    history = GOOD.with_seen(gone, shard(16))
    assert list(invariants.entries_outlive_failures(history)) == []


def test_an_entry_of_an_adapter_that_was_made_again_may_be_missing_for_a_while() -> None:
    gone = seen(15, "LoraAdapter", "shout", gone=True, spec={"source": {"uri": "two"}})
    again = seen(
        16, "LoraAdapter", "shout", metadata={"uid": "new"}, spec={"source": {"uri": "one"}}
    )
    history = GOOD.with_seen(gone, again, shard(17), shard(18, revision(ONE)))
    assert list(invariants.entries_outlive_failures(history)) == []


def test_shards_go_with_their_service() -> None:
    history = GOOD.with_seen(service(15, gone=True), shard(16, revision(TWO), gone=True))
    assert list(invariants.entries_outlive_failures(history)) == []
