"""What the control loop asks of a cluster. Two implementations: `kubernetes` and `local`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

from graft_operator.resources.meta import Manifest, ObjectKey

EventType = Literal["Normal", "Warning"]


class Change(NamedTuple):
    """One object as it is now, or as it last was."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    manifest: Manifest


class Cluster(Protocol):
    """Reads and writes objects. Every method raises a `ClusterError` when it cannot do its work."""

    async def list_objects(self, kind: str, namespace: str | None = None) -> list[Manifest]:
        """Return every object of a kind; complete, or an error."""

    async def get(self, key: ObjectKey) -> Manifest | None:
        """Return one object as it is now."""

    async def apply(self, manifest: Manifest) -> Manifest:
        """Make the object what the manifest says (server-side apply) and return it as stored."""

    async def delete(self, key: ObjectKey, uid: str) -> None:
        """Delete the object if it still is the one with this uid; one that is gone is fine."""

    async def patch_status(self, about: Manifest, status: Mapping[str, Any]) -> Manifest:
        """Write the status of this very object, not of one that took its name; return it."""

    async def nudge(self, pod: ObjectKey, value: str) -> None:
        """Annotate a pod so that its mounted volumes are refreshed at once."""

    async def record_event(
        self, about: Manifest, type_: EventType, reason: str, message: str
    ) -> None:
        """Tell people that something happened to an object."""

    def url_of(self, service: Manifest) -> str:
        """Return where clients reach a Service; empty while that is not known."""
