"""The state behind a fake Kubernetes API: versions, field owners, uids, events in order.

kmock was tried first. It has no uids, no versions, no selectors, no pages, no status subresource
and no resumed watches, and its apply is a merge into objects that must exist; with all of that
replaced nothing of it was left. Here apply creates, and removes what its manager no longer names.
Simplified against a real server: a list in an object is one value with one owner, and nothing is
defaulted or validated.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

Json = dict[str, Any]
FieldPath = tuple[str, ...]
_IDENTITY = ("uid", "resourceVersion", "generation", "creationTimestamp", "namespace", "name")


class ApiError(Exception):
    """A refusal, in the words of the API."""

    def __init__(self, code: int, reason: str, message: str, field_name: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
            "details": {"causes": [{"field": field_name}] if field_name else []},
        }


class Place(NamedTuple):
    """Where an object is."""

    plural: str
    namespace: str
    name: str


class Event(NamedTuple):
    """One change, as a watch tells it."""

    version: int
    plural: str
    type: str
    object: Json


@dataclass
class Stored:
    """An object and who owns which of its fields."""

    object: Json
    owners: dict[str, frozenset[FieldPath]] = field(default_factory=dict)


class KubeStore:
    """All objects. Every change has a version of its own and wakes whoever waits."""

    def __init__(self) -> None:
        self.version = 1
        self.events: list[Event] = []
        self._objects: dict[Place, Stored] = {}
        self._changed = asyncio.Event()

    async def changed(self, seconds: float) -> None:
        """Wait until something changes, but not longer than this."""
        event = self._changed
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    def find(self, plural: str, name: str, namespace: str = "default") -> Json | None:
        """Return an object, if there is one."""
        stored = self._objects.get(Place(plural, namespace, name))
        return copy.deepcopy(stored.object) if stored else None

    def get(self, place: Place) -> Json:
        """Return an object."""
        return copy.deepcopy(self._stored(place).object)

    def select(
        self, plural: str, namespace: str | None = None, selector: Mapping[str, str] | None = None
    ) -> list[Json]:
        """Return objects, sorted by place."""
        return [
            copy.deepcopy(stored.object)
            for place, stored in sorted(self._objects.items())
            if place.plural == plural
            and namespace in (None, place.namespace)
            and matches(stored.object, selector or {})
        ]

    def owners(self, place: Place) -> dict[str, frozenset[FieldPath]]:
        """Return who owns which fields."""
        return dict(self._stored(place).owners)

    def create(self, place: Place, manifest: Json, manager: str = "test") -> Json:
        """Create an object."""
        if place in self._objects:
            raise ApiError(409, "AlreadyExists", f"{place.plural} {place.name!r} already exists")
        new = copy.deepcopy(manifest)
        new["metadata"] = {
            **new.get("metadata", {}),
            "name": place.name,
            "namespace": place.namespace,
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        self._objects[place] = Stored({}, {manager: frozenset(_leaves(_claim(manifest, "")))})
        return self._put(place, new, "ADDED")

    def apply(
        self, place: Place, manifest: Json, manager: str, *, force: bool, subresource: str = ""
    ) -> Json:
        """Make the object have these fields, and no longer those the manager owned before."""
        if place not in self._objects:
            if subresource:
                raise _not_found(place)
            return self.create(place, {k: v for k, v in manifest.items() if k != "status"}, manager)
        stored = self._stored(place)
        if not subresource:
            # As the real server: of a status it takes no notice of the uid.
            _check_uid(stored.object, manifest)
        _check_version(stored.object, manifest)
        claim = _claim(manifest, subresource)
        claimed = frozenset(_leaves(claim))
        owner = f"{manager}/{subresource}" if subresource else manager
        others = [paths for name, paths in stored.owners.items() if name != owner]
        if not force:
            _check_conflicts(stored.object, claim, claimed, others)
        new = copy.deepcopy(stored.object)
        for path in stored.owners.get(owner, frozenset()) - claimed:
            if not any(path in paths for paths in others):
                _remove(new, path)
        _merge(new, claim)
        for name in stored.owners:
            stored.owners[name] -= claimed if name != owner and force else frozenset()
        stored.owners[owner] = claimed
        return self._put(place, new, "MODIFIED")

    def merge(
        self, place: Place, patch: Json, manager: str = "test", subresource: str = ""
    ) -> Json:
        """Merge a patch; null removes."""
        stored = self._stored(place)
        _check_uid(stored.object, patch)
        claim = _claim(patch, subresource)
        new = copy.deepcopy(stored.object)
        _merge(new, claim, remove_null=True)
        stored.owners[manager] = stored.owners.get(manager, frozenset()) | set(_leaves(claim))
        return self._put(place, new, "MODIFIED")

    def delete(self, place: Place, uid: str | None = None) -> Json:
        """Delete an object and what it owns."""
        gone = self._stored(place).object
        if uid is not None and gone["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", "Precondition failed: UID in precondition differs")
        del self._objects[place]
        self._tell(place, gone, "DELETED")
        for other, stored in list(self._objects.items()):
            owners = stored.object["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == gone["metadata"]["uid"] for owner in owners):
                self.delete(other)
        return gone

    def _stored(self, place: Place) -> Stored:
        if place not in self._objects:
            raise _not_found(place)
        return self._objects[place]

    def _put(self, place: Place, new: Json, type_: str) -> Json:
        stored = self._objects[place]
        if not new.get("data", True):
            del new["data"]  # An empty map is left out, as the real server does.
        if new == stored.object:
            return copy.deepcopy(new)
        if stored.object and new.get("spec") != stored.object.get("spec"):
            new["metadata"]["generation"] += 1
        stored.object = new
        self._tell(place, new, type_)
        return copy.deepcopy(new)

    def _tell(self, place: Place, what: Json, type_: str) -> None:
        self.version += 1
        what["metadata"]["resourceVersion"] = str(self.version)
        self.events.append(Event(self.version, place.plural, type_, copy.deepcopy(what)))
        self._changed.set()
        self._changed = asyncio.Event()


def matches(stored: Json, selector: Mapping[str, str]) -> bool:
    """Whether an object has these labels."""
    labels = stored["metadata"].get("labels") or {}
    return all(labels.get(key) == value for key, value in selector.items())


def _not_found(place: Place) -> ApiError:
    return ApiError(404, "NotFound", f"{place.plural} {place.name!r} not found")


def _check_uid(stored: Json, manifest: Json) -> None:
    uid = (manifest.get("metadata") or {}).get("uid")
    if uid and uid != stored["metadata"]["uid"]:
        raise ApiError(422, "Invalid", "metadata.uid: field is immutable", "metadata.uid")


def _check_version(stored: Json, manifest: Json) -> None:
    version = (manifest.get("metadata") or {}).get("resourceVersion")
    if version and version != stored["metadata"]["resourceVersion"]:
        raise ApiError(409, "Conflict", "the object has been modified")


def _check_conflicts(
    stored: Json, claim: Json, claimed: frozenset[FieldPath], others: list[frozenset[FieldPath]]
) -> None:
    for path in claimed:
        is_other = any(path in paths for paths in others)
        if is_other and _value(stored, path) != _value(claim, path):
            raise ApiError(409, "Conflict", f"{'.'.join(path)} is owned by another manager")


def _claim(manifest: Json, subresource: str) -> Json:
    """Return what a write is about: the status, or everything but the status and the identity."""
    if subresource:
        return {"status": copy.deepcopy(manifest.get("status", {}))}
    claim = {k: v for k, v in manifest.items() if k not in ("apiVersion", "kind", "status")}
    metadata = manifest.get("metadata", {})
    claim["metadata"] = {k: v for k, v in metadata.items() if k not in _IDENTITY}
    return copy.deepcopy(claim)


def _leaves(document: Json, at: FieldPath = ()) -> Iterator[FieldPath]:
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*at, key))
        else:
            yield (*at, key)


def _value(document: Any, path: FieldPath) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _remove(document: Json, path: FieldPath) -> None:
    parent = _value(document, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
        if not parent and len(path) > 1:
            _remove(document, path[:-1])


def _merge(document: Json, patch: Json, *, remove_null: bool = False) -> None:
    for key, value in patch.items():
        if value is None and remove_null:
            document.pop(key, None)
        elif isinstance(value, dict) and isinstance(document.get(key), dict):
            _merge(document[key], value, remove_null=remove_null)
        else:
            document[key] = copy.deepcopy(value)
