"""The cluster of `graft up`: manifests in a folder, objects in memory, pods as child processes.

The same port as a Kubernetes cluster, so that reconcile, plan and runtime are the same code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from graft_operator.cluster.base import EventType
from graft_operator.cluster.local_deployment import PodHost
from graft_operator.cluster.manifests import Document, ManifestFolder, Problem, Scan
from graft_operator.cluster.state import EventRecord, LocalState
from graft_operator.cluster.store import Listener, ObjectStore, timestamp
from graft_operator.constants import DEFAULT_NAMESPACE, KIND_ADAPTER, KIND_SERVICE
from graft_operator.errors import InvalidManifestError, LocalModeError
from graft_operator.resources.admission import admit, check_metadata
from graft_operator.resources.credentials import with_plain_data
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, owner_uids, uid_of
from graft_operator.settings import LocalSettings
from graft_protocol.naming import LABEL_SERVICE

OWN_KINDS = (KIND_SERVICE, KIND_ADAPTER)
NEEDS_CLUSTER = ("autoscaling", "inferencePool")
KINDS_IN_FILES = (*OWN_KINDS, "Secret")
REMEMBERED = ("currentRevision", "candidateRevision")


class LocalCluster:
    """Use it as an async context manager: leaving it stops every process it started."""

    def __init__(self, settings: LocalSettings) -> None:
        if not settings.folder.is_dir():
            raise LocalModeError(f"{settings.folder} is not a folder")
        self.settings = settings
        self.store = ObjectStore()
        self.problems: tuple[Problem, ...] = ()
        self.state = LocalState(settings.folder)
        self._folder = ManifestFolder(settings.folder)
        self._tasks: list[asyncio.Task[None]] = []
        self._pods: PodHost | None = None
        self._problem_listeners: list[Callable[[tuple[Problem, ...]], None]] = []

    def subscribe(self, listener: Listener) -> None:
        """Have a listener called for every change of any object."""
        self.store.subscribe(listener)

    def subscribe_problems(self, listener: Callable[[tuple[Problem, ...]], None]) -> None:
        """Have a listener called whenever the list of problems changed."""
        self._problem_listeners.append(listener)

    def kill(self) -> None:
        """End every process at once; for a person who will not wait."""
        if self._pods is not None:
            self._pods.kill()

    async def __aenter__(self) -> Self:
        self.state.lock()
        for manifest in self.state.restore(OWN_KINDS):
            self.store.restore(_without_claims(manifest))
        self.store.subscribe(lambda _: self.state.touch())
        try:
            self._pods = PodHost(self.settings, self.store, self.state.folder)
        except LocalModeError:
            self.state.unlock()
            raise
        self.scan()
        self._tasks = [
            asyncio.create_task(self._scan_forever(), name="scan manifests"),
            asyncio.create_task(self._save_forever(), name="save state"),
        ]
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            if self._pods is not None:
                await self._pods.stop(self.settings.stop_seconds)
        finally:
            self.save()
            self.state.unlock()

    def scan(self) -> None:
        """Look at the folder once and take in what changed."""
        found = self._folder.scan()
        if found is not None:
            self._take_in(found)

    def save(self) -> None:
        """Write the state that other commands read."""
        shown = [
            manifest for kind in (*OWN_KINDS, "Pod") for manifest in self.store.list_objects(kind)
        ]
        self.state.save(shown, self.problems)

    async def list_objects(self, kind: str, namespace: str | None = None) -> list[Manifest]:
        """Return every object of a kind."""
        return self.store.list_objects(kind, namespace)

    async def get(self, key: ObjectKey) -> Manifest | None:
        """Return one object."""
        return self.store.get(key)

    async def apply(self, manifest: Manifest) -> Manifest:
        """Make the object what the manifest says."""
        return self.store.apply(manifest)

    async def delete(self, key: ObjectKey, uid: str) -> None:
        """Delete the object with this uid."""
        self.store.delete(key, uid)

    async def patch_status(self, about: Manifest, status: Mapping[str, Any]) -> Manifest:
        """Write an object's status."""
        return self.store.set_status(key_of(about), uid_of(about), status)

    async def nudge(self, pod: ObjectKey, value: str) -> None:
        """Do nothing: local volumes follow their objects at once."""

    async def record_event(
        self, about: Manifest, type_: EventType, reason: str, message: str
    ) -> None:
        """Keep an event for `graft describe`."""
        self.state.add_event(EventRecord(timestamp(), str(key_of(about)), type_, reason, message))

    def url_of(self, service: Manifest) -> str:
        """Return the address of the first pod behind a Service."""
        wanted = service["metadata"]["labels"][LABEL_SERVICE]
        namespace = service["metadata"]["namespace"]
        pods = self.store.list_objects("Pod", namespace)
        mine = [pod for pod in pods if pod["metadata"]["labels"].get(LABEL_SERVICE) == wanted]
        if not mine:
            return ""
        first = min(mine, key=lambda pod: str(pod["metadata"]["name"]))
        port = first["spec"]["containers"][0]["ports"][0]["containerPort"]
        return f"http://{first['status']['podIP']}:{port}"

    async def _scan_forever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.scan_seconds)
            self.scan()

    async def _save_forever(self) -> None:
        while True:
            await self.state.touched()
            self.save()
            # Many changes come together; a reader is served well enough twenty times a second.
            await asyncio.sleep(0.05)

    def _take_in(self, found: Scan) -> None:
        problems = list(found.problems)
        present: dict[ObjectKey, str] = {}
        keep_all = bool(problems)
        for document in found.documents:
            where = f"{document.file}, document {document.number}"
            try:
                key = _identify(document)
            except InvalidManifestError as error:
                problems.append(Problem(where, str(error)))
                # It may have been any of them: nothing is removed until it can be read.
                keep_all = True
                continue
            where = f"{where} ({key})"
            if key in present:
                problems.append(Problem(where, f"is also in {present[key]}, which counts"))
                continue
            present[key] = document.file
            self._admit(key, document, where, problems)
        if not keep_all:
            self._remove_absent(present.keys())
        self._set_problems(tuple(problems))

    def _set_problems(self, problems: tuple[Problem, ...]) -> None:
        if problems == self.problems:
            return
        self.problems = problems
        self.state.touch()
        for listener in self._problem_listeners:
            listener(problems)

    def _admit(
        self, key: ObjectKey, document: Document, where: str, problems: list[Problem]
    ) -> None:
        old = self.store.get(key)
        manifest = {name: value for name, value in document.content.items() if name != "status"}
        manifest["metadata"] = {**manifest["metadata"], "namespace": key.namespace}
        try:
            is_own = key.kind in OWN_KINDS
            manifest = admit(manifest, old) if is_own else with_plain_data(manifest)
            _check_local(manifest)
        except InvalidManifestError as error:
            kept = "; the last good version stays" if old is not None else ""
            problems.append(Problem(where, f"{error}{kept}"))
            return
        self.store.apply(manifest)

    def _remove_absent(self, present: Any) -> None:
        for kind in KINDS_IN_FILES:
            for manifest in self.store.list_objects(kind):
                # Secrets that we made ourselves have an owner and never came from a file.
                if key_of(manifest) not in present and not owner_uids(manifest):
                    self.store.delete(key_of(manifest))


def _identify(document: Document) -> ObjectKey:
    content = document.content
    if not isinstance(content, dict):
        raise InvalidManifestError("", "is not a manifest")
    kind = content.get("kind")
    if kind not in KINDS_IN_FILES:
        raise InvalidManifestError("kind", f"{kind!r} is not one of {', '.join(KINDS_IN_FILES)}")
    check_metadata(content)
    metadata = content["metadata"]
    return ObjectKey(kind, metadata.get("namespace") or DEFAULT_NAMESPACE, metadata["name"])


def _without_claims(manifest: Manifest) -> Manifest:
    """Keep which revision an object had; what was true of its pods ended with them."""
    status = manifest.get("status") or {}
    return {**manifest, "status": {k: v for k, v in status.items() if k in REMEMBERED}}


def _check_local(manifest: Manifest) -> None:
    """Refuse what only a cluster can do, by name."""
    for name in NEEDS_CLUSTER:
        if manifest["kind"] == KIND_SERVICE and manifest["spec"].get(name) is not None:
            raise InvalidManifestError(f"spec.{name}", "needs a cluster; there is none locally")
