"""Everything that was so in one namespace, in the order in which it became so.

Versions of a cluster grow over all kinds, so they order what a plain watch of each kind has told.
Values only; `recorder` and `api_proxy` write it down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from graft_operator.resources.meta import ObjectKey
from tests.support.proof.script import Call

Json = dict[str, Any]


class Seen(NamedTuple):
    """One version of an object as the API server told it, or its end."""

    version: int
    key: ObjectKey
    uid: str
    object: Json
    at: float
    """When the oracle heard of it (monotonic seconds)."""
    is_gone: bool = False

    @property
    def generation(self) -> int:
        """Version of its spec."""
        return int(self.object["metadata"].get("generation", 0))

    @property
    def is_going(self) -> bool:
        """Whether somebody has asked for its deletion."""
        return self.is_gone or bool(self.object["metadata"].get("deletionTimestamp"))


@dataclass(frozen=True)
class Write:
    """One mutating call of the operator, as it passed the proxy."""

    number: int
    """Counts from 1."""
    call: Call
    uid: str
    """Of the object that the caller meant, if the call says."""
    code: int
    """Of the answer; 0 if the call was not passed on."""
    version: int
    """Of the object in the answer."""
    began: float
    operator: int = 0
    """Which operator, from 1: a new one after each crash."""

    @property
    def is_done(self) -> bool:
        """Whether the API server took it."""
        return 200 <= self.code < 300


@dataclass(frozen=True)
class Served:
    """A time during which a pod could serve a revision."""

    pod: ObjectKey
    revision: str
    began: float
    ended: float = math.inf


@dataclass(frozen=True)
class History:
    """What was seen, what the operator wrote, what the pods served."""

    seen: tuple[Seen, ...] = ()
    """By version."""
    writes: tuple[Write, ...] = ()
    served: tuple[Served, ...] = ()
    now: float = 0.0
    """Until when it goes."""

    def of(self, *kinds: str) -> Iterator[Seen]:
        """Return what was seen of some kinds."""
        return (one for one in self.seen if one.key.kind in kinds)

    def lives(self, *kinds: str) -> dict[str, list[Seen]]:
        """Return the versions of each object of some kinds, by uid."""
        found: dict[str, list[Seen]] = {}
        for one in self.of(*kinds):
            found.setdefault(one.uid, []).append(one)
        return found

    def with_seen(self, *more: Seen) -> History:
        """Return a history in which more was seen."""
        merged = sorted((*self.seen, *more), key=lambda one: one.version)
        return replace(self, seen=tuple(merged))


@dataclass
class Shelf:
    """Objects as they are at one point of a history."""

    objects: dict[ObjectKey, Seen] = field(default_factory=dict)

    def take_in(self, one: Seen) -> None:
        """Move on by one version."""
        if one.is_gone:
            self.objects.pop(one.key, None)
        else:
            self.objects[one.key] = one

    def of(self, kind: str) -> list[Seen]:
        """Return the objects of a kind."""
        return [one for key, one in self.objects.items() if key.kind == kind]


def replay(seen: Iterable[Seen]) -> Iterator[tuple[Seen, Shelf]]:
    """Return each version with everything as it is right after it."""
    shelf = Shelf()
    for one in seen:
        shelf.take_in(one)
        yield one, shelf


def status_of(manifest: Json) -> Json:
    """Return an object's status."""
    return manifest.get("status") or {}


def is_true(manifest: Json, type_: str) -> bool:
    """Whether an object's condition is true."""
    conditions = status_of(manifest).get("conditions") or ()
    return any(c["type"] == type_ and c["status"] == "True" for c in conditions)


def label(manifest: Json, name: str) -> str:
    """Return a label; empty if there is none."""
    return str((manifest["metadata"].get("labels") or {}).get(name, ""))


def short(digest: str) -> str:
    """Return the part of a digest that revisions are named with."""
    return digest.removeprefix("sha256:")[:12]
