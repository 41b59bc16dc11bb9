"""A cluster port over an `ObjectStore`: no files, no processes, faults where a test wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_operator.cluster.base import EventType
from graft_operator.cluster.store import ObjectStore
from graft_operator.errors import ClusterError, ClusterUnreachableError
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, uid_of


class StoreCluster:
    """Counts writes; fails one of them, before or after it takes effect."""

    def __init__(self) -> None:
        self.store = ObjectStore()
        self.writes: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.fail_at: int | None = None
        """Number of the write that fails, from 0."""
        self.fails_after = False
        """Whether the write that fails takes effect nevertheless."""
        self.refusals: dict[str, ClusterError] = {}
        """By kind: what is told to whoever applies an object of it."""

    async def list_objects(self, kind: str, namespace: str | None = None) -> list[Manifest]:
        return self.store.list_objects(kind, namespace)

    async def get(self, key: ObjectKey) -> Manifest | None:
        return self.store.get(key)

    async def apply(self, manifest: Manifest) -> Manifest:
        name = f"apply {manifest['kind']} {manifest['metadata']['name']}"
        self._before(name)
        if manifest["kind"] in self.refusals:
            raise self.refusals[manifest["kind"]]
        stored = self.store.apply(manifest)
        self._after()
        return stored

    async def delete(self, key: ObjectKey, uid: str) -> None:
        self._before(f"delete {key}")
        self.store.delete(key, uid)
        self._after()

    async def patch_status(self, about: Manifest, status: Mapping[str, Any]) -> Manifest:
        key = key_of(about)
        self._before(f"status {key}")
        stored = self.store.set_status(key, uid_of(about), status)
        self._after()
        return stored

    async def nudge(self, pod: ObjectKey, value: str) -> None:
        self._before(f"nudge {pod} {value}")
        self._after()

    async def record_event(
        self, about: Manifest, type_: EventType, reason: str, message: str
    ) -> None:
        del type_, message
        self.events.append((about["metadata"]["name"], reason))

    def url_of(self, service: Manifest) -> str:
        return f"http://{service['metadata']['name']}"

    def _before(self, name: str) -> None:
        self.writes.append(name)
        if self.fail_at == len(self.writes) - 1 and not self.fails_after:
            raise ClusterUnreachableError("as asked, before")

    def _after(self) -> None:
        if self.fail_at == len(self.writes) - 1 and self.fails_after:
            raise ClusterUnreachableError("as asked, after")
