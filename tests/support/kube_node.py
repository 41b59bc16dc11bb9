"""The rest of a cluster for tests: Deployments become Pods, Pods become fake runtimes on loopback.

Plays deployment controller and kubelet. As with a real kubelet, a changed ConfigMap reaches a pod's
files only when something updates the pod; the minute-long resync of the real one is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from graft_operator.cluster.mounts import Ports, mount_all
from graft_operator.cluster.ports import free_ports
from graft_operator.errors import NotFoundError
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_protocol.naming import PodPaths
from tests.support.fake_runtime import FakeRuntime, serve_with
from tests.support.kube_api import PLURALS, KubeApi
from tests.support.kube_store import Json, KubeStore, Place

TICK_SECONDS = 0.02


@dataclass
class NodePod:
    """One pod that runs."""

    place: Place
    template: Json
    root: Path
    ports: Ports
    runtime: FakeRuntime | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    servers: list[asyncio.Server] = field(default_factory=list)
    is_ready: bool = False

    def mount(self, store: KubeStore) -> None:
        """Bring the files up to date."""

        def lookup(key: ObjectKey) -> Manifest | None:
            stored = store.find(PLURALS[key.kind], key.name, key.namespace)
            return stored and {**stored, "kind": key.kind}

        claims = self.root.parent
        mount_all(self.template, self.place.namespace, self.root, lookup, self.ports, claims)

    async def start(self) -> None:
        runtime = self.runtime = FakeRuntime(PodPaths(self.root), self.place.name)
        answers = {self.ports.http: runtime.public, self.ports.internal: runtime.internal}
        for port, answer in answers.items():
            self.servers.append(await asyncio.start_server(serve_with(answer), "127.0.0.1", port))
        self.tasks.append(asyncio.create_task(runtime.run()))

    async def stop(self) -> None:
        tasks = [*self.tasks, *(self.runtime.tasks if self.runtime else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            server.close()
        shutil.rmtree(self.root, ignore_errors=True)


class KubeNode:
    """Runs the pods of every Deployment in an API's store."""

    def __init__(self, api: KubeApi) -> None:
        self.pods: dict[str, NodePod] = {}
        self._store = api.store
        self._refused: set[str] = set()

    async def run(self) -> None:
        while True:
            for deployment in self._store.select("deployments"):
                self._scale(deployment)
            for pod in list(self.pods.values()):
                await self._sync(pod)
            await self._store.changed(TICK_SECONDS)

    async def stop(self) -> None:
        await asyncio.gather(*(pod.stop() for pod in self.pods.values()))

    def _scale(self, deployment: Json) -> None:
        name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
        replica_set = f"{name}-7f9c"
        if self._store.find("replicasets", replica_set, namespace) is None:
            self._store.create(
                Place("replicasets", namespace, replica_set),
                {"metadata": {"ownerReferences": [_owner("Deployment", deployment)]}},
                "controller",
            )
        owner = self._store.get(Place("replicasets", namespace, replica_set))
        for index in range(deployment["spec"]["replicas"]):
            pod = f"{replica_set}-{index}"
            if pod not in self.pods:
                self._create_pod(pod, deployment, owner)

    def _create_pod(self, name: str, deployment: Json, owner: Json) -> None:
        template = deployment["spec"]["template"]
        ports = Ports(*free_ports(3))
        numbers = {"http": ports.http, "internal": ports.internal}
        container = {
            **template["spec"]["containers"][0],
            "ports": [{"name": key, "containerPort": port} for key, port in numbers.items()],
        }
        place = Place("pods", deployment["metadata"]["namespace"], name)
        metadata = {**template["metadata"], "ownerReferences": [_owner("ReplicaSet", owner)]}
        self._store.create(
            place,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": {**template["spec"], "containers": [container]},
                "status": {"phase": "Pending"},
            },
            "controller",
        )
        root = Path(tempfile.mkdtemp(prefix="graft-"))
        self.pods[name] = NodePod(place, template, root, ports)

    async def _sync(self, pod: NodePod) -> None:
        stored = self._store.find("pods", pod.place.name, pod.place.namespace)
        if stored is None:
            await self.pods.pop(pod.place.name).stop()
            return
        annotations = stored["metadata"].get("annotations") or {}
        if pod.runtime is None or annotations != pod.annotations:
            try:
                pod.mount(self._store)
            except NotFoundError as error:
                self._refused.add(str(error))
                return
            pod.annotations = annotations
        if pod.runtime is None:
            await pod.start()
        is_ready = pod.runtime is not None and pod.runtime.is_ready
        if is_ready != pod.is_ready or "podIP" not in stored["status"]:
            pod.is_ready = is_ready
            self._store.merge(pod.place, {"status": _status(is_ready)}, "kubelet", "status")


def _owner(kind: str, owner: Json) -> Json:
    metadata = owner["metadata"]
    return {"apiVersion": "apps/v1", "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}


def _status(is_ready: bool) -> Json:
    return {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "conditions": [{"type": "Ready", "status": str(is_ready)}],
    }


@contextlib.asynccontextmanager
async def kube_node(api: KubeApi) -> AsyncIterator[KubeNode]:
    """Run the pods for as long as the context lasts."""
    node = KubeNode(api)
    task = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.stop()
