"""Objects in memory with the life an API server gives them: uids, generations, owners, changes.

Local mode keeps its objects here; it knows neither files nor processes.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from graft_operator.cluster.base import Change
from graft_operator.errors import ConflictError, NotFoundError
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, owner_uids, uid_of

Listener = Callable[[Change], None]
_SYSTEM_FIELDS = ("uid", "resourceVersion", "generation", "creationTimestamp")


def timestamp() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ObjectStore:
    """All objects by key. Listeners hear of each change, in order, before the call returns.

    What it returns or tells belongs to it and must not be changed: a write makes a new object, so
    nobody sees one change under their hands.
    """

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Manifest] = {}
        self._listeners: list[Listener] = []
        self._version = 0

    def subscribe(self, listener: Listener) -> None:
        """Have a listener called for every change from now on."""
        self._listeners.append(listener)

    def get(self, key: ObjectKey) -> Manifest | None:
        """Return one object."""
        return self._objects.get(key)

    def list_objects(self, kind: str, namespace: str | None = None) -> list[Manifest]:
        """Return all objects of a kind."""
        return list(self._select(kind, namespace))

    def restore(self, manifest: Manifest) -> None:
        """Take in an object with the identity and status it had in an earlier life."""
        self._version += 1
        restored = copy.deepcopy(manifest)
        restored["metadata"]["resourceVersion"] = str(self._version)
        self._objects[key_of(manifest)] = restored
        self._tell(Change("ADDED", restored))

    def apply(self, manifest: Manifest) -> Manifest:
        """Create the object or replace its content; status and identity stay."""
        key = key_of(manifest)
        old = self._objects.get(key)
        new = copy.deepcopy(manifest)
        metadata = new["metadata"]
        metadata["namespace"] = key.namespace
        if old is None:
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp()}
            metadata["generation"] = 1
            return self._put(key, new, "ADDED")
        metadata |= {field: old["metadata"][field] for field in _SYSTEM_FIELDS}
        new.setdefault("status", old.get("status", {}))
        if new == {**old, "status": new["status"]} and new["status"] == old.get("status", {}):
            return old
        if new.get("spec") != old.get("spec"):
            metadata["generation"] += 1
        return self._put(key, new, "MODIFIED")

    def set_status(self, key: ObjectKey, uid: str, status: Mapping[str, Any]) -> Manifest:
        """Replace an object's status.

        Raises:
            NotFoundError: No such object.
            ConflictError: Another object has the name now.
        """
        old = self._objects.get(key)
        if old is None:
            raise NotFoundError(f"{key} does not exist")
        if uid_of(old) != uid:
            raise ConflictError(f"{key} is not the object with uid {uid}")
        if old.get("status", {}) == status:
            return old
        return self._put(key, {**old, "status": copy.deepcopy(dict(status))}, "MODIFIED")

    def delete(self, key: ObjectKey, uid: str | None = None) -> None:
        """Remove an object and everything it owns.

        Raises:
            ConflictError: Another object has the name now.
        """
        old = self._objects.get(key)
        if old is None:
            return
        if uid is not None and uid_of(old) != uid:
            raise ConflictError(f"{key} is not the object with uid {uid}")
        del self._objects[key]
        self._tell(Change("DELETED", old))
        for owned in [k for k, v in self._objects.items() if uid_of(old) in owner_uids(v)]:
            self.delete(owned)

    def _select(self, kind: str, namespace: str | None) -> Iterator[Manifest]:
        for key, stored in self._objects.items():
            if key.kind == kind and namespace in (None, key.namespace):
                yield stored

    def _put(self, key: ObjectKey, new: Manifest, type_: Any) -> Manifest:
        self._version += 1
        new["metadata"] = {**new["metadata"], "resourceVersion": str(self._version)}
        self._objects[key] = new
        self._tell(Change(type_, new))
        return new

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)
