"""A real cluster behind the port: server-side apply, complete lists, one write per change.

Field manager `graft`; nothing is read-modify-written, so there is nothing to conflict about. It
decides nothing; reconcile calls it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

from graft_operator.cluster.base import EventType
from graft_operator.cluster.kubernetes_client import APPLY, MERGE, KubernetesClient, Request
from graft_operator.cluster.kubernetes_kinds import EVENT, Kind, kind_named
from graft_operator.constants import KIND_ADAPTER, MANAGED_BY
from graft_operator.errors import (
    ClusterError,
    ConflictError,
    ExpiredError,
    InvalidObjectError,
    NameTakenError,
    NotFoundError,
)
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, uid_of
from graft_operator.settings import OperatorSettings
from graft_protocol.naming import ANNOTATION_DESIRED, FIELD_MANAGER, LABEL_MANAGED_BY

log = logging.getLogger(__name__)

COMPONENT = "graft-operator"
EVENT_MESSAGE_MAX = 1024
REMEMBERED_EVENTS = 4096
STATUS_TRIES = 5
_MANAGER = ("fieldManager", FIELD_MANAGER)


class Listing(NamedTuple):
    """Every object of a kind as it was at one version of the cluster's state."""

    version: int
    manifests: tuple[Manifest, ...]


class KubernetesCluster:
    """Use it as an async context manager; leaving it closes the connections."""

    def __init__(self, client: KubernetesClient, settings: OperatorSettings) -> None:
        self._client = client
        self._settings = settings
        self._told: dict[tuple[str, str, str], float] = {}
        self._ours: set[ObjectKey] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._client.close()

    def scopes(self, kind: Kind) -> tuple[str | None, ...]:
        """Return where a kind is looked for, each by itself; one None is the whole cluster."""
        namespaces = self._settings.namespaces
        if namespaces and kind.name == KIND_ADAPTER:
            namespaces += self._settings.tenant_namespaces
        return tuple(dict.fromkeys(namespaces)) or (None,)

    async def list_objects(self, kind: str, namespace: str | None = None) -> list[Manifest]:
        """Return every object of a kind, of children those that are ours; complete, or an error."""
        known = kind_named(kind)
        scopes = self.scopes(known) if namespace is None else (namespace,)
        listings = [await self.listing(known, scope) for scope in scopes]
        return [manifest for listing in listings for manifest in listing.manifests]

    async def listing(self, kind: Kind, namespace: str | None) -> Listing:
        """Return a complete list, read page by page from the newest state.

        Raises:
            ClusterError: A page could not be read. Pages that could be are dropped.
        """
        try:
            return await self._listing(kind, namespace, self._settings.page_size)
        except ExpiredError:
            # The state behind the pages is gone; one page is always of one state.
            return await self._listing(kind, namespace, 0)

    async def _listing(self, kind: Kind, namespace: str | None, page_size: int) -> Listing:
        manifests: list[Manifest] = []
        token = ""
        while True:
            query = [("labelSelector", kind.selector), ("continue", token)]
            query.append(("limit", str(page_size) if page_size else ""))
            page = await self._client.request(
                Request(
                    verb="list",
                    kind=kind.name,
                    method="GET",
                    path=kind.path(namespace),
                    query=[(name, value) for name, value in query if value],
                )
            )
            manifests += [cleaned(item, kind) for item in page.get("items") or []]
            metadata = page.get("metadata") or {}
            token = str(metadata.get("continue") or "")
            if not token:
                for manifest in manifests:
                    self._recognise(kind, manifest)
                return Listing(version_of(page), tuple(manifests))

    async def get(self, key: ObjectKey) -> Manifest | None:
        """Return one object as it is now."""
        kind = kind_named(key.kind)
        path = kind.path(key.namespace, key.name)
        request = Request("get", kind.name, "GET", path)
        try:
            stored = cleaned(await self._client.request(request), kind)
        except NotFoundError:
            return None
        self._recognise(kind, stored)
        return stored

    def _recognise(self, kind: Kind, stored: Manifest) -> None:
        """Remember a child of ours by its label, also one that an operator before us made."""
        labels = stored["metadata"].get("labels") or {}
        if kind.selector and labels.get(LABEL_MANAGED_BY) == MANAGED_BY:
            self._ours.add(key_of(stored))

    async def apply(self, manifest: Manifest) -> Manifest:
        """Make the object what the manifest says (server-side apply) and return it as stored.

        What others wrote into an object of ours is taken back. An object that was there before us
        is not taken over.

        Raises:
            NameTakenError: Somebody else's object has the name.
            ClusterError: It could not be written.
        """
        key = key_of(manifest)
        kind = kind_named(key.kind)
        path = kind.path(key.namespace, key.name)
        query = [_MANAGER, ("force", "true" if key in self._ours else "false")]
        request = Request("apply", kind.name, "PATCH", path, query, manifest, APPLY)
        try:
            stored = await self._patch(kind, request)
        except ConflictError as error:
            if key in self._ours:
                raise
            raise NameTakenError(f"{key} is not ours: {error}") from error
        except InvalidObjectError:
            if key not in self._ours:
                raise
            stored = await self._repair(kind, request)
        self._ours.add(key)
        return stored

    async def _repair(self, kind: Kind, apply: Request) -> Manifest:
        """Apply to an object of ours of which others have made something that nothing fits to.

        An apply leaves the items of lists that others own, and a Service cannot have both our port
        and theirs of the same name. So our lists are put in whole. That makes us their owner by
        update as well, which has to end: a field that we stop to apply would stay otherwise.
        """
        body = apply.body or {}
        key = key_of(body)
        log.warning("%s does not take what is applied to it; replacing what others wrote", key)
        # Each step moves the version on.
        metadata = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
        apply = replace(apply, body={**body, "metadata": metadata})
        merge = replace(apply, query=[_MANAGER], content_type=MERGE)
        await self._client.request(merge)
        stored = await self._client.request(apply)
        owners = [
            entry for entry in stored["metadata"].get("managedFields", ()) if not _is_update(entry)
        ]
        body = {"metadata": {"managedFields": owners}}
        return await self._patch(kind, replace(merge, body=body))

    async def delete(self, key: ObjectKey, uid: str) -> None:
        """Delete the object if it still is the one with this uid; one that is gone is fine."""
        kind = kind_named(key.kind)
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        path = kind.path(key.namespace, key.name)
        try:
            await self._client.request(Request("delete", kind.name, "DELETE", path, body=body))
        except NotFoundError:
            log.debug("%s is gone already", key)
        self._ours.discard(key)

    async def patch_status(self, about: Manifest, status: Mapping[str, Any]) -> Manifest:
        """Write the status of this very object, not of one that took its name; return it.

        An API server does not look at the uid in a status: it would take what was true of an object
        that is gone for its successor. It does look at the version. Where that has moved on, the
        status still holds for the generation it names, so it is written over the newer version.

        Raises:
            ConflictError: Another object has the name now, or others write all the time.
            ClusterError: It could not be written.
        """
        key, uid = key_of(about), uid_of(about)
        kind = kind_named(key.kind)
        identity = {"name": key.name, "namespace": key.namespace, "uid": uid}
        path = kind.path(key.namespace, key.name, "status")
        known: Manifest | None = about
        for _ in range(STATUS_TRIES):
            if known is None or uid_of(known) != uid:
                break
            metadata = {**identity, "resourceVersion": known["metadata"]["resourceVersion"]}
            document = {
                "apiVersion": kind.api_version,
                "kind": kind.name,
                "metadata": metadata,
                "status": dict(status),
            }
            query = [_MANAGER, ("force", "true")]
            try:
                return await self._patch(
                    kind, Request("status", kind.name, "PATCH", path, query, document, APPLY)
                )
            except ConflictError:
                known = await self._find(kind, key)
        raise ConflictError(f"{key} is not the object with uid {uid}, or changes all the time")

    async def _find(self, kind: Kind, key: ObjectKey) -> Manifest | None:
        """Return one object of a kind that may only be listed."""
        query = [("fieldSelector", f"metadata.name={key.name}")]
        path = kind.path(key.namespace)
        page = await self._client.request(Request("list", kind.name, "GET", path, query))
        return next((cleaned(item, kind) for item in page.get("items") or []), None)

    async def nudge(self, pod: ObjectKey, value: str) -> None:
        """Annotate a pod so that its mounted volumes are refreshed at once; gone is fine."""
        kind = kind_named(pod.kind)
        body = {"metadata": {"annotations": {ANNOTATION_DESIRED: value}}}
        path = kind.path(pod.namespace, pod.name)
        try:
            await self._patch(
                kind, Request("nudge", kind.name, "PATCH", path, [_MANAGER], body, MERGE)
            )
        except NotFoundError:
            log.debug("%s is gone already", pod)

    async def record_event(
        self, about: Manifest, type_: EventType, reason: str, message: str
    ) -> None:
        """Tell people that something happened; an equal Event is told again only after a while.

        An Event that cannot be written is lost, and nothing else: conditions hold the truth.
        """
        if not self._is_news((uid_of(about), reason, message)):
            return
        namespace = key_of(about).namespace
        event = _event(about, type_, reason, message[:EVENT_MESSAGE_MAX])
        request = Request("event", EVENT.name, "POST", EVENT.path(namespace), (_MANAGER,), event)
        try:
            await self._client.request(request)
        except ClusterError as error:
            log.warning("an event about %s is lost: %s", key_of(about), error)

    def url_of(self, service: Manifest) -> str:
        """Return where clients in the cluster reach a Service."""
        key = key_of(service)
        port = service["spec"]["ports"][0]["port"]
        return f"http://{key.name}.{key.namespace}.svc:{port}"

    async def _patch(self, kind: Kind, request: Request) -> Manifest:
        return cleaned(await self._client.request(request), kind)

    def _is_news(self, told: tuple[str, str, str]) -> bool:
        now = asyncio.get_running_loop().time()
        last = self._told.pop(told, None)
        is_repeated = last is not None and now - last < self._settings.event_repeat_seconds
        self._told[told] = last if is_repeated and last is not None else now
        while len(self._told) > REMEMBERED_EVENTS:
            del self._told[next(iter(self._told))]
        return not is_repeated


def _is_update(entry: Mapping[str, Any]) -> bool:
    """Whether we own fields of an object by another way than by applying them."""
    is_ours = entry.get("manager") == FIELD_MANAGER and not entry.get("subresource")
    return is_ours and entry.get("operation") == "Update"


def cleaned(stored: Mapping[str, Any], kind: Kind) -> Manifest:
    """Return a stored object with the kind that items of a list lack, and without bookkeeping."""
    metadata = {k: v for k, v in stored["metadata"].items() if k != "managedFields"}
    if kind.name == "Deployment":
        metadata["managedFields"] = scalers(stored["metadata"].get("managedFields") or [])
    return {**stored, "apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}


def scalers(managed_fields: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the entries of others than us that own a Deployment's number of replicas."""
    return [
        entry
        for entry in managed_fields
        if entry.get("manager") != FIELD_MANAGER
        and "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]


def _event(about: Manifest, type_: EventType, reason: str, message: str) -> Manifest:
    metadata = about["metadata"]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": EVENT.name,
        "metadata": {
            # The name of the object, cut so that the whole stays within 253 characters.
            "name": f"{metadata['name'][:220]}.{uuid.uuid4().hex[:16]}",
            "namespace": key_of(about).namespace,
        },
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": key_of(about).namespace,
            "uid": uid_of(about),
            "resourceVersion": str(metadata.get("resourceVersion", "")),
        },
        "type": type_,
        "reason": reason,
        "message": message,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def version_of(document: Mapping[str, Any]) -> int:
    """Return the version of an object or a list, which grows over all; 0 if it is no number."""
    text = str((document.get("metadata") or {}).get("resourceVersion") or "")
    return int(text) if text.isdigit() else 0
