"""A fake Kubernetes API on loopback: discovery, lists in pages, watches, apply, patch, delete.

Tests run it in their own loop, look into its store, read its record of requests and make it fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.support.kube_store import ApiError, Json, KubeStore, Place, matches

BOOKMARK_SECONDS = 0.2
VERBS = ["create", "delete", "get", "list", "patch", "watch"]
RESOURCES: dict[str, dict[str, str]] = {
    "v1": {
        "configmaps": "ConfigMap",
        "events": "Event",
        "namespaces": "Namespace",
        "pods": "Pod",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "monitoring.coreos.com/v1": {"podmonitors": "PodMonitor"},
    "inference.networking.k8s.io/v1": {"inferencepools": "InferencePool"},
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    "apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
    "serving.graft.dev/v1alpha1": {
        "inferenceservices": "InferenceService",
        "loraadapters": "LoraAdapter",
    },
}
PLURALS = {kind: plural for kinds in RESOURCES.values() for plural, kind in kinds.items()}
CLUSTER_WIDE = {"namespaces", "customresourcedefinitions"}
WITH_STATUS = {"inferenceservices", "loraadapters", "pods", "deployments"}


@dataclass(frozen=True)
class Call:
    """One request that was answered."""

    verb: str
    plural: str
    name: str
    subresource: str
    code: int
    query: dict[str, str]
    namespace: str = ""

    @property
    def is_write(self) -> bool:
        return self.verb not in ("get", "list", "watch")


@dataclass
class Fault:
    """Makes requests fail: those of a verb and kind, as often as `times` says."""

    verb: str
    plural: str
    code: int
    times: int = 1_000_000
    headers: dict[str, str] = field(default_factory=dict)
    only_later_pages: bool = False
    namespace: str = "*"

    def hits(self, verb: str, plural: str, namespace: str | None, query: dict[str, str]) -> bool:
        is_meant = self.verb in ("*", verb) and self.plural in ("*", plural) and self.times > 0
        is_there = self.namespace in ("*", namespace)
        if not (is_meant and is_there) or (self.only_later_pages and "continue" not in query):
            return False
        self.times -= 1
        return True


class KubeApi:
    """The server. `muted` kinds are watched in vain: the stream lives and tells nothing."""

    def __init__(self) -> None:
        self.store = KubeStore()
        self.token = "first-token"
        self.faults: list[Fault] = []
        self.meanwhile: dict[tuple[str, str, str], Callable[[], object]] = {}
        """By verb, kind and subresource: done once, just before such a request is answered."""
        self.muted: set[str] = set()
        self.stream_errors: dict[str, int] = {}
        self.calls: list[Call] = []
        self.url = ""

    def kubeconfig(self, folder: Path) -> Path:
        """Write a kubeconfig for this server and return its path."""
        cluster = {"name": "fake", "cluster": {"server": self.url}}
        user = {"name": "operator", "user": {"token": self.token}}
        context = {"name": "fake", "context": {"cluster": "fake", "user": "operator"}}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [user],
            "contexts": [context],
            "current-context": "fake",
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        return path

    def create(self, manifest: Json, namespace: str = "default") -> Json:
        """Create an object, as a user does."""
        metadata, plural = manifest["metadata"], PLURALS[manifest["kind"]]
        within = "" if plural in CLUSTER_WIDE else metadata.get("namespace", namespace)
        return self.store.create(Place(plural, within, metadata["name"]), manifest, "user")

    def change(self, plural: str, name: str, patch: Json, namespace: str = "default") -> Json:
        """Merge into an object, as a user does."""
        return self.store.merge(Place(plural, namespace, name), patch, "user")

    def delete(self, plural: str, name: str, namespace: str = "default") -> None:
        """Delete an object, as a user does."""
        self.store.delete(Place(plural, namespace, name))

    def writes(self, plural: str) -> list[Call]:
        """Return the writes to a kind that succeeded so far."""
        done = [call for call in self.calls if call.is_write and call.code < 400]
        return [call for call in done if call.plural == plural]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        try:
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                raise ApiError(401, "Unauthorized", "Unauthorized")
            discovered = _discover(parts)
            if discovered is not None:
                return web.json_response(discovered)
            return await self._serve(request, parts)
        except ApiError as error:
            return web.json_response(error.status, status=error.code)

    async def _serve(self, request: web.Request, parts: list[str]) -> web.StreamResponse:
        depth = 2 if parts[0] == "api" else 3
        group_version, rest = "/".join(parts[1:depth]), parts[depth:]
        namespace = rest[1] if rest[0] == "namespaces" and len(rest) > 2 else None
        rest = rest[2:] if namespace else rest
        plural, name, subresource = (*rest, "", "")[:3]
        query = dict(request.query)
        verb = _verb(request.method, name, query)
        code = 500
        try:
            if plural not in RESOURCES.get(group_version, {}):
                raise ApiError(404, "NotFound", "the server could not find the requested resource")
            self.meanwhile.pop((verb, plural, subresource), lambda: None)()
            for fault in self.faults:
                if fault.hits(verb, plural, namespace, query):
                    code = fault.code
                    return web.json_response(
                        ApiError(code, "Fault", "as asked").status,
                        status=code,
                        headers=fault.headers,
                    )
            if verb == "watch":
                code = 200
                return await self._watch(request, plural, namespace, query)
            answer = await self._answer(request, verb, Place(plural, namespace or "", name), query)
            code = 201 if verb == "create" else 200
            return web.json_response(answer, status=code)
        except ApiError as error:
            code = error.code
            raise
        finally:
            # Rights to a namespace itself are looked up within it.
            within = name if plural == "namespaces" else namespace or ""
            call = Call(verb, plural, name, subresource, code, query, within)
            self.calls.append(call)

    async def _answer(
        self, request: web.Request, verb: str, place: Place, query: dict[str, str]
    ) -> Json:
        if verb == "list":
            return self._list(place, query)
        if verb == "get":
            return self.store.get(place)
        body = await request.json()
        manager = query.get("fieldManager", "unknown")
        if verb == "delete":
            return self.store.delete(place, (body.get("preconditions") or {}).get("uid"))
        if verb == "create":
            named = place._replace(name=body["metadata"]["name"])
            return self.store.create(named, body, manager)
        subresource = "status" if request.path.endswith("/status") else ""
        if request.content_type == "application/apply-patch+yaml":
            force = query.get("force") == "true"
            return self.store.apply(place, body, manager, force=force, subresource=subresource)
        if request.content_type == "application/merge-patch+json":
            return self.store.merge(place, body, manager, subresource)
        raise ApiError(415, "UnsupportedMediaType", request.content_type)

    def _list(self, place: Place, query: dict[str, str]) -> Json:
        found = self.store.select(place.plural, place.namespace or None, _selector(query))
        _, _, name = query.get("fieldSelector", "").partition("metadata.name=")
        found = [each for each in found if name in ("", each["metadata"]["name"])]
        start, limit = int(query.get("continue", "0")), int(query.get("limit", "0"))
        end = start + limit if limit else len(found)
        metadata = {"resourceVersion": str(self.store.version)}
        if end < len(found):
            metadata["continue"] = str(end)
        # Items of a list have no kind of their own.
        items = [{k: v for k, v in o.items() if k not in ("kind", "apiVersion")} for o in found]
        return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items[start:end]}

    async def _watch(
        self, request: web.Request, plural: str, namespace: str | None, query: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        end = loop.time() + float(query.get("timeoutSeconds", "3600"))
        position, since = 0, int(query.get("resourceVersion") or 0)
        selector = _selector(query)
        with contextlib.suppress(ConnectionError):
            while loop.time() < end:
                code = self.stream_errors.pop(plural, None)
                if code is not None:
                    error = {"type": "ERROR", "object": ApiError(code, "Fault", "asked").status}
                    await _write_line(response, error)
                events, position = self.store.events[position:], len(self.store.events)
                for event in events:
                    where = event.object["metadata"]["namespace"]
                    if (
                        event.plural == plural
                        and event.version > since
                        and namespace in (None, where)
                        and matches(event.object, selector)
                        and plural not in self.muted
                    ):
                        line = {"type": event.type, "object": event.object}
                        await _write_line(response, line)
                await _write_line(response, _bookmark(self.store.version))
                await self.store.changed(BOOKMARK_SECONDS)
        return response


def _verb(method: str, name: str, query: dict[str, str]) -> str:
    if method == "GET":
        return "get" if name else "watch" if query.get("watch") == "true" else "list"
    return {"POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]


def _selector(query: dict[str, str]) -> dict[str, str]:
    terms = (query.get("labelSelector") or "").split(",")
    return dict(term.split("=", 1) for term in terms if term)


def _bookmark(version: int) -> Json:
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}


async def _write_line(response: web.StreamResponse, line: Json) -> None:
    await response.write(json.dumps(line).encode() + b"\n")


def _discover(parts: list[str]) -> Json | None:
    if parts == ["version"]:
        return {"major": "1", "minor": "37", "gitVersion": "v1.37.2"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        groups = [_group(version) for version in RESOURCES if "/" in version]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    group_version = "/".join(parts[1:])
    if parts[0] in ("api", "apis") and group_version in RESOURCES:
        resources = [
            resource
            for plural, kind in RESOURCES[group_version].items()
            for resource in _resources(plural, kind)
        ]
        return {
            "kind": "APIResourceList",
            "groupVersion": group_version,
            "resources": resources,
        }
    return None


def _group(group_version: str) -> Json:
    group, _, version = group_version.partition("/")
    entry = {"groupVersion": group_version, "version": version}
    return {"name": group, "versions": [entry], "preferredVersion": entry}


def _resources(plural: str, kind: str) -> list[dict[str, Any]]:
    names = [plural, f"{plural}/status"] if plural in WITH_STATUS else [plural]
    return [
        {
            "name": name,
            "kind": kind,
            "singularName": kind.lower(),
            "namespaced": plural not in CLUSTER_WIDE,
            "verbs": VERBS,
        }
        for name in names
    ]


@contextlib.asynccontextmanager
async def kube_api() -> AsyncIterator[KubeApi]:
    """Serve on a free port of 127.0.0.1."""
    api = KubeApi()
    app = web.Application(client_max_size=2**24)
    app.router.add_route("*", "/{tail:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield api
    finally:
        await runner.cleanup()
