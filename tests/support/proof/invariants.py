"""What must hold at every point of a history, however the operator was treated.

Each function takes a whole history and returns what is wrong with it; nothing is wrong with a good
one. Pure: `tests/oracle` proves of each that it can fail.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE, LABEL_CONTENT
from graft_operator.render.configmaps import CONTENT_CONFIG, CONTENT_SHARD
from graft_operator.resources.meta import owner_uids
from graft_protocol.naming import LABEL_MANAGED_BY, LABEL_SERVICE
from graft_protocol.revisions import parse_revision
from tests.support.proof.history import (
    History,
    Json,
    Seen,
    Served,
    Shelf,
    is_true,
    label,
    replay,
    short,
    status_of,
)

STALE_SECONDS: Final = 20.0
"""How long a status may go on saying that something serves that has ended: what a pod that stopped
answering is given (5 s), and a machine that is busy with other things."""
LATE_SECONDS: Final = 5.0
"""How long after an owner's end a child may still be made by someone who has not heard of it."""
HEARING_SECONDS: Final = 1.0
"""How much later than the operator the oracle may hear of something."""
OURS: Final = (KIND_SERVICE, KIND_ADAPTER)
K8S_FINALIZERS: Final = frozenset({"foregroundDeletion", "orphan"})


class Violation(NamedTuple):
    """Something that must not have happened."""

    invariant: str
    where: str
    what: str


Invariant = Callable[[History], Iterator[Violation]]


def adapters_tell_the_truth(history: History) -> Iterator[Violation]:
    """Ready=True on a LoraAdapter: a pod serves the digest that the status names."""
    for versions in history.lives(KIND_ADAPTER).values():
        for one, until in _intervals(versions, history.now):
            if one.is_going or not is_true(one.object, "Ready"):
                continue
            digest = (status_of(one.object).get("currentRevision") or {}).get("digest", "")
            mark = f"{one.key.namespace}/{one.key.name}@"
            spans = [s for s in history.served if s.revision.startswith(mark)]
            same = [s for s in spans if digest and short(digest) in s.revision]
            if not any(s.began <= one.at and s.ended >= one.at - STALE_SECONDS for s in same):
                yield _of(adapters_tell_the_truth, one, f"Ready, and no pod serves {digest!r}")
            elif (gap := _longest_gap(spans, one.at, until)) > STALE_SECONDS:
                yield _of(adapters_tell_the_truth, one, f"Ready, and unserved for {gap:.0f} s")


def services_tell_the_truth(history: History) -> Iterator[Violation]:
    """Ready=True on an InferenceService: one of its pods was ready a moment ago."""
    last_ready: dict[tuple[str, str], float] = {}
    for one, shelf in replay(history.seen):
        for pod in shelf.of("Pod"):
            if is_true(pod.object, "Ready"):
                last_ready[pod.key.namespace, label(pod.object, LABEL_SERVICE)] = one.at
        if one.key.kind != KIND_SERVICE or one.is_going or not is_true(one.object, "Ready"):
            continue
        when = last_ready.get((one.key.namespace, one.key.name))
        if when is None or one.at - when > STALE_SECONDS:
            yield _of(services_tell_the_truth, one, "Ready, and no pod is")


def generations_are_observed(history: History) -> Iterator[Violation]:
    """No status speaks of a spec that is not there yet, or goes back to an older one."""
    for versions in history.lives(*OURS).values():
        last = 0
        for one in versions:
            status = status_of(one.object)
            observed = int(status.get("observedGeneration", 0))
            told = [int(c.get("observedGeneration", 0)) for c in status.get("conditions", ())]
            if max((observed, *told)) > one.generation:
                yield _of(generations_are_observed, one, f"ahead of {one.generation}")
            if observed < last:
                yield _of(generations_are_observed, one, f"back from {last} to {observed}")
            last = max(last, observed)


def entries_outlive_failures(history: History) -> Iterator[Violation]:
    """An adapter leaves the desired set only when it is gone, suspended, or refused for a reason.

    So a list that failed, or came in part, removes nothing.
    """
    entered: dict[tuple[str, str], dict[str, str]] = {}
    for one, shelf in replay(history.seen):
        if not _is_shard(one):
            continue
        alive = {
            f"{a.key.namespace}/{a.key.name}": a.uid
            for a in shelf.of(KIND_ADAPTER)
            if not a.is_going and not _is_out(a)
        }
        before = entered.get((one.key.namespace, one.key.name), {})
        if one.is_gone:
            # With its service it goes for good; else it has to come back as it was.
            if not {s.uid for s in shelf.of(KIND_SERVICE)} & owner_uids(one.object):
                entered.pop((one.key.namespace, one.key.name), None)
            continue
        now = {name: alive.get(name, "") for name in _names(one)}
        for name in before.keys() - now.keys():
            if before[name] and before[name] == alive.get(name):
                yield _of(entries_outlive_failures, one, f"{name} lives and lost its entry")
        # Whose entry it is, is known from the first version on that has it.
        kept = {name: before.get(name) or uid for name, uid in now.items()}
        entered[one.key.namespace, one.key.name] = kept


def templates_stay(history: History) -> Iterator[Violation]:
    """A Deployment's pod template is what it was made with: no pod is ever restarted."""
    for versions in history.lives("Deployment").values():
        first = versions[0]
        for one in versions:
            if one.object["spec"]["template"] != first.object["spec"]["template"]:
                yield _of(templates_stay, one, "another pod template")


def pods_are_not_replaced(history: History) -> Iterator[Violation]:
    """A Deployment has one ReplicaSet in all its life."""
    for versions in history.lives("Deployment").values():
        (uid,) = {one.uid for one in versions}
        sets = {one.uid for one in history.of("ReplicaSet") if uid in owner_uids(one.object)}
        if len(sets) > 1:
            yield _of(pods_are_not_replaced, versions[-1], f"{len(sets)} ReplicaSets")


def one_of_each(history: History) -> Iterator[Violation]:
    """A service never has two children for one part."""
    told: set[tuple[str, ...]] = set()
    born: set[str] = set()
    for one, shelf in replay(history.seen):
        if not _is_child(one) or one.uid in born:
            continue
        born.add(one.uid)
        parts = Counter(_part(child) for child in shelf.of(one.key.kind) if _is_child(child))
        for part, count in parts.items():
            if count > 1 and part not in told:
                told.add(part)
                yield _of(one_of_each, one, f"{count} children for {' '.join(part)}")


def no_orphans(history: History) -> Iterator[Violation]:
    """At the end every child has an owner that is there."""
    shelf = _end(history)
    owners = {one.uid for one in shelf.of(KIND_SERVICE)}
    for one in shelf.objects.values():
        if _is_child(one) and not owners & owner_uids(one.object):
            yield _of(no_orphans, one, "its owner is gone")


def nothing_is_made_for_the_dead(history: History) -> Iterator[Violation]:
    """No child is made for an owner that went some time ago."""
    ended: dict[str, float] = {}
    born: set[str] = set()
    for one in history.seen:
        if one.key.kind == KIND_SERVICE and one.is_going:
            ended.setdefault(one.uid, one.at)
        if not _is_child(one) or one.uid in born:
            continue
        born.add(one.uid)
        times = [ended[uid] for uid in owner_uids(one.object) if uid in ended]
        if any(one.at - time > LATE_SECONDS for time in times):
            yield _of(nothing_is_made_for_the_dead, one, "made after its owner's end")


def no_finalizers(history: History) -> Iterator[Violation]:
    """Nothing of ours holds up a deletion."""
    for one in history.seen:
        if one.key.kind not in OURS and not _is_child(one):
            continue
        found = set(one.object["metadata"].get("finalizers") or ()) - K8S_FINALIZERS
        if found:
            yield _of(no_finalizers, one, f"finalizers {sorted(found)}")
    for one in _end(history).objects.values():
        if one.key.kind in OURS and one.is_going:
            yield _of(no_finalizers, one, "does not come to its end")


def foreign_fields_stay(history: History) -> Iterator[Violation]:
    """What others annotate or label stays. Theirs begins with ``example.com/`` in these tests."""
    for versions in history.lives(*{one.key.kind for one in history.seen} - {"Event"}).values():
        known: dict[str, str] = {}
        for one in versions:
            now = {} if one.is_gone else _foreign(one.object)
            lost = () if one.is_gone else known.keys() - now.keys()
            for name in lost:
                yield _of(foreign_fields_stay, one, f"lost {name}")
            known = now


def versions_go_forward(history: History) -> Iterator[Violation]:
    """The version that a status calls current moves in the order in which the spec named them."""
    for versions in history.lives(KIND_ADAPTER).values():
        named: list[str] = []
        at = 0
        for one in versions:
            uri = one.object["spec"]["source"]["uri"]
            if not named or named[-1] != uri:
                named.append(uri)
            current = (status_of(one.object).get("currentRevision") or {}).get("uri")
            if current is None:
                continue
            ahead = next((i for i in range(at, len(named)) if named[i] == current), None)
            if ahead is None:
                yield _of(versions_go_forward, one, f"{current} is current again")
            else:
                at = ahead


def names_have_one_holder(history: History) -> Iterator[Violation]:
    """A served name belongs to one adapter, in every shard and in all statuses together."""
    for one, shelf in replay(history.seen):
        if _is_shard(one) and not one.is_gone:
            holders: dict[str, set[str]] = {}
            for entry in _entries(one):
                for name in (entry["servedName"], *entry.get("aliases", ())):
                    holders.setdefault(name, set()).add(entry["revision"].partition("@")[0])
            for name, who in holders.items():
                if len(who) > 1:
                    yield _of(names_have_one_holder, one, f"{name} is of {sorted(who)}")
        if one.key.kind == KIND_ADAPTER and not one.is_going:
            accepted = [
                status_of(adapter.object).get("servedName", "")
                for adapter in shelf.of(KIND_ADAPTER)
                if not adapter.is_going and is_true(adapter.object, "Accepted")
            ]
            for name, count in Counter(accepted).items():
                if name and count > 1:
                    yield _of(names_have_one_holder, one, f"{count} adapters have {name}")


def serving_goes_on(history: History) -> Iterator[Violation]:
    """From the first time that a pod can serve an adapter, some pod can, until it is deleted."""
    for versions in history.lives(KIND_ADAPTER).values():
        last = versions[-1]
        ends = [one.at for one in versions if one.is_going or _is_out(one)]
        until = min(ends, default=history.now) - HEARING_SECONDS
        mark = f"{last.key.namespace}/{last.key.name}@"
        since = versions[0].at
        spans = [s for s in history.served if s.revision.startswith(mark) and s.began >= since]
        if not spans:
            continue
        gap = _longest_gap(spans, min(s.began for s in spans), until)
        if gap > 0:
            yield _of(serving_goes_on, last, f"no pod could serve it for {gap:.2f} s")


def writes_name_their_object(history: History) -> Iterator[Violation]:
    """A status and a deletion carry the uid of the object that the operator has read."""
    for write in history.writes:
        if write.call.verb in ("status", "delete") and not write.uid:
            yield Violation("writes_name_their_object", str(write.call), "carries no uid")


def writes_change_something(history: History) -> Iterator[Violation]:
    """No write leaves everything as it was, which is how a write loop looks from outside."""
    heard = {one.version: one.at for one in history.seen}
    done: dict[int, int] = {}
    for write in history.writes:
        if not write.is_done or not write.version or write.call.verb == "delete":
            continue
        is_old = heard.get(write.version, write.began) < write.began
        if write.version in done or is_old:
            yield Violation(
                "writes_change_something", f"{write.number}: {write.call}", "changed nothing"
            )
        done[write.version] = write.number


def deletes_only_the_unwanted(history: History) -> Iterator[Violation]:
    """The operator deletes nothing by itself: what these specs ask for, they ask for always."""
    for write in history.writes:
        if write.call.verb == "delete" and write.is_done:
            yield Violation("deletes_only_the_unwanted", str(write.call), "deleted")


ALWAYS: Final[tuple[Invariant, ...]] = (
    adapters_tell_the_truth,
    services_tell_the_truth,
    generations_are_observed,
    entries_outlive_failures,
    templates_stay,
    pods_are_not_replaced,
    one_of_each,
    no_orphans,
    nothing_is_made_for_the_dead,
    no_finalizers,
    foreign_fields_stay,
    versions_go_forward,
    names_have_one_holder,
    serving_goes_on,
    writes_name_their_object,
    writes_change_something,
    deletes_only_the_unwanted,
)


def violations(history: History, invariants: Iterable[Invariant] = ALWAYS) -> list[Violation]:
    """Return everything that is wrong with a history."""
    return [found for invariant in invariants for found in invariant(history)]


def _of(invariant: Invariant, one: Seen, what: str) -> Violation:
    return Violation(invariant.__name__, f"{one.key} at {one.version}", what)


def _intervals(versions: list[Seen], now: float) -> Iterator[tuple[Seen, float]]:
    ends = [*(one.at for one in versions[1:]), now]
    return zip(versions, ends, strict=True)


def _longest_gap(spans: Iterable[Served], since: float, until: float) -> float:
    """Return the longest time within bounds in which no span runs."""
    gap, covered = 0.0, since
    for span in sorted(spans, key=lambda span: span.began):
        if span.ended < covered:
            continue
        gap = max(gap, min(span.began, until) - covered)
        covered = max(covered, span.ended)
        if covered >= until:
            return gap
    return max(gap, until - covered)


def _end(history: History) -> Shelf:
    shelf = Shelf()
    for one in history.seen:
        shelf.take_in(one)
    return shelf


def _is_child(one: Seen) -> bool:
    return label(one.object, LABEL_MANAGED_BY) == "graft" and one.key.kind not in (
        "Pod",
        "ReplicaSet",
    )


def _part(child: Seen) -> tuple[str, ...]:
    """Return what a child is for; those that differ by number are parts of their own."""
    manifest = child.object
    content = label(manifest, LABEL_CONTENT)
    name = "" if content == CONTENT_CONFIG else child.key.name
    return (child.key.kind, child.key.namespace, label(manifest, LABEL_SERVICE), content, name)


def _is_shard(one: Seen) -> bool:
    return one.key.kind == "ConfigMap" and label(one.object, LABEL_CONTENT) == CONTENT_SHARD


def _entries(shard: Seen) -> list[Json]:
    return [
        entry for text in shard.object["data"].values() for entry in json.loads(text)["entries"]
    ]


def _names(shard: Seen) -> set[str]:
    names = (parse_revision(entry["revision"]) for entry in _entries(shard))
    return {f"{name.namespace}/{name.name}" for name in names}


def _is_out(adapter: Seen) -> bool:
    """Whether an adapter's own spec or status says that it is not to be served."""
    return bool(adapter.object["spec"].get("suspend")) or any(
        c["type"] == "Accepted" and c["status"] == "False"
        for c in status_of(adapter.object).get("conditions", ())
    )


def _foreign(manifest: Json) -> dict[str, str]:
    metadata = manifest["metadata"]
    all_ = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return {name: value for name, value in all_.items() if name.startswith("example.com/")}
