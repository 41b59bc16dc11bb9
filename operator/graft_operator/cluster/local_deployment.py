"""Deployments of local mode: each is so many supervised processes, replaced one by one.

Plays the parts of deployment controller, scheduler and kubelet on the objects of one `ObjectStore`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_operator.cluster.base import Change
from graft_operator.cluster.local_pod import LocalPod, PodSpec
from graft_operator.cluster.mounts import Ports, references
from graft_operator.cluster.ports import free_ports
from graft_operator.cluster.store import ObjectStore
from graft_operator.errors import LocalModeError
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, uid_of
from graft_operator.settings import LocalSettings
from graft_protocol.naming import PodPaths

SOCKET_FOLDER_MAX = 80
"""Longest path of the folder with a pod's unix sockets; the system's limit for a socket is 107."""


class PodHost:
    """All local pods: where their folders are and which ports they have."""

    def __init__(self, settings: LocalSettings, store: ObjectStore, state_dir: Path) -> None:
        """Make the folder of the disk cache.

        Raises:
            LocalModeError: It cannot be made.
        """
        self.settings = settings
        self.store = store
        self.cache_dir = state_dir / "cache"
        try:
            self.cache_dir.mkdir(exist_ok=True)
        except OSError as error:
            message = f"cannot use {self.cache_dir} for the disk cache: {error.strerror}"
            raise LocalModeError(message) from error
        self._state_dir = state_dir
        self._short_dir: Path | None = None
        self._next_port = settings.first_port
        self._ports: dict[str, Ports] = {}
        self._deployments: dict[ObjectKey, LocalDeployment] = {}
        store.subscribe(self.on_change)

    def on_change(self, change: Change) -> None:
        """Follow Deployments, and the objects that pods mount."""
        key = key_of(change.manifest)
        if key.kind == "Deployment":
            self._follow(key, change)
        elif key.kind in {"ConfigMap", "Secret"} and change.type != "DELETED":
            for deployment in self._deployments.values():
                deployment.refresh(key)

    def _follow(self, key: ObjectKey, change: Change) -> None:
        if change.type == "DELETED":
            if key in self._deployments:
                self._deployments[key].want(None)
            return
        if key not in self._deployments:
            self._deployments[key] = LocalDeployment(key, self)
        self._deployments[key].want(change.manifest)

    async def stop(self, grace_seconds: float) -> None:
        """Stop every pod and remove what lies outside the state folder."""
        stops = (deployment.stop(grace_seconds) for deployment in self._deployments.values())
        await asyncio.gather(*stops)
        if self._short_dir is not None:
            shutil.rmtree(self._short_dir, ignore_errors=True)

    def kill(self) -> None:
        """End every process at once."""
        for deployment in self._deployments.values():
            deployment.kill()

    def pod_spec(self, name: str, namespace: str, template: Mapping[str, Any]) -> PodSpec:
        """Prepare the folders of a pod."""
        folder = self._state_dir / "pods" / f"{namespace}.{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        root = folder / "root"
        if len(str(PodPaths(root).run_dir)) > SOCKET_FOLDER_MAX:
            root = self._short_root(folder.name)
            (folder / "root").symlink_to(root)
            shutil.rmtree(root, ignore_errors=True)
        root.mkdir(mode=0o700)
        cache = PodPaths(root).cache_dir
        cache.parent.mkdir(parents=True)
        cache.symlink_to(self.cache_dir)
        ports = self._ports_of(folder.name)
        claims = self._state_dir / "claims" / namespace
        return PodSpec(name, namespace, template, root, folder / "log", ports, claims)

    def _short_root(self, name: str) -> Path:
        if self._short_dir is None:
            self._short_dir = Path(tempfile.mkdtemp(prefix="graft-"))
        return self._short_dir / hashlib.sha256(name.encode()).hexdigest()[:8]

    def _ports_of(self, name: str) -> Ports:
        """Return a pod's ports; its successor gets them again, so that addresses stay."""
        if name not in self._ports:
            http, grpc, internal = free_ports(3)
            if self._next_port:
                http, self._next_port = self._next_port, self._next_port + 1
            self._ports[name] = Ports(http, grpc, internal)
        return self._ports[name]


class LocalDeployment:
    """Keeps as many pods of one template as a Deployment wants."""

    def __init__(self, key: ObjectKey, host: PodHost) -> None:
        self._key = key
        self._host = host
        self._wanted: Manifest | None = None
        self._pods: dict[str, LocalPod] = {}
        self._changed = asyncio.Event()
        self._stopped = False
        self._task = asyncio.create_task(self._converge_forever(), name=f"deployment {key.name}")

    def want(self, manifest: Manifest | None) -> None:
        """Set what should run; None means nothing."""
        self._wanted = manifest
        self._changed.set()

    def refresh(self, key: ObjectKey) -> None:
        """Refresh the volumes of the pods that mount an object."""
        for pod in self._pods.values():
            if key in references(pod.spec.template, pod.spec.namespace):
                pod.refresh_volumes()

    async def stop(self, grace_seconds: float) -> None:
        """Stop all pods at once and follow nothing any more."""
        self._stopped = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(pod.stop(grace_seconds) for pod in self._pods.values()))

    def kill(self) -> None:
        """End the processes of all pods at once."""
        for pod in self._pods.values():
            pod.kill()

    async def _converge_forever(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (step := self._next_step()) is not None:
                name, is_start = step
                if is_start:
                    self._start(name)
                else:
                    await self._stop_pod(name)

    def _names(self) -> list[str]:
        if self._wanted is None:
            return []
        count = int(self._wanted["spec"]["replicas"])
        return [f"{self._key.name}-{index}" for index in range(count)]

    def _next_step(self) -> tuple[str, bool] | None:
        """Return the next pod to stop or start, and whether it is to be started.

        An outdated pod is stopped only when all that replace others are ready.
        """
        names = self._names()
        surplus = [name for name in self._pods if name not in names]
        if surplus:
            return surplus[-1], False
        missing = [name for name in names if name not in self._pods]
        if missing:
            return missing[0], True
        outdated = [name for name in names if not self._is_current(name)]
        settled = all(pod.ready for name, pod in self._pods.items() if name not in outdated)
        return (outdated[0], False) if outdated and settled else None

    async def _stop_pod(self, name: str) -> None:
        pod = self._pods[name]
        await pod.stop(float(pod.spec.template["spec"]["terminationGracePeriodSeconds"]))
        del self._pods[name]
        self._host.store.delete(ObjectKey("Pod", self._key.namespace, name))
        self._write_status()

    def _is_current(self, name: str) -> bool:
        wanted = self._wanted["spec"]["template"] if self._wanted else None
        return bool(_template_hash(self._pods[name].spec.template) == _template_hash(wanted))

    def _start(self, name: str) -> None:
        if self._wanted is None:
            return
        template = self._wanted["spec"]["template"]
        spec = self._host.pod_spec(name, self._key.namespace, template)
        pod = LocalPod(spec, self._host.settings, self._host.store.get, self._on_pod_change)
        self._pods[name] = pod
        pod.start()
        self._on_pod_change(pod)

    def _on_pod_change(self, pod: LocalPod) -> None:
        if self._stopped or self._wanted is None or pod.spec.name not in self._pods:
            return
        manifest = pod_manifest(pod, uid_of(self._wanted))
        self._host.store.apply(manifest)
        self._write_status()
        self._changed.set()

    def _write_status(self) -> None:
        if self._wanted is None or self._host.store.get(self._key) is None:
            return
        status = {
            "observedGeneration": self._wanted["metadata"]["generation"],
            "replicas": len(self._pods),
            "readyReplicas": sum(pod.ready for pod in self._pods.values()),
            "updatedReplicas": sum(self._is_current(name) for name in self._pods),
        }
        self._host.store.set_status(self._key, uid_of(self._wanted), status)


def pod_manifest(pod: LocalPod, owner_uid: str) -> Manifest:
    """Return the Pod object that shows what a local pod is doing."""
    spec, template = pod.spec, pod.spec.template
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": pod.trouble}}
    state = waiting if pod.trouble else {"running": {}}
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec.name, "uid": owner_uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "labels": dict(template["metadata"]["labels"]),
            "annotations": dict(template["metadata"]["annotations"]),
            "ownerReferences": [owner],
        },
        "spec": {
            "containers": [
                {
                    "name": "runtime",
                    "image": template["spec"]["containers"][0]["image"],
                    "ports": [
                        {"name": "http", "containerPort": spec.ports.http},
                        {"name": "grpc", "containerPort": spec.ports.grpc},
                        {"name": "internal", "containerPort": spec.ports.internal},
                    ],
                }
            ]
        },
        "status": {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if pod.ready else "False"}],
            "containerStatuses": [
                {
                    "name": "runtime",
                    "restartCount": pod.restarts,
                    "ready": pod.ready,
                    "state": state,
                }
            ],
        },
    }


def _template_hash(template: Any) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
