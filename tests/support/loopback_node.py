"""A kubelet for a real API server without nodes: pods are fake runtimes on 127.x addresses.

Controllers of the real control plane make the pods; this runs them, mounts their ConfigMaps and
Secrets whenever something updates the pod, and writes their status. It runs in a thread, so that
tests may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from graft_operator.cluster.mounts import Ports, mount_all
from graft_operator.errors import NotFoundError
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_protocol.naming import LABEL_MANAGED_BY, PodPaths
from graft_protocol.reasons import AdapterState
from tests.support.fake_runtime import FakeRuntime, serve_with
from tests.support.informer import Informer, RealApi
from tests.support.kube_operator import TLS_GOODBYE_SECONDS

OnReport = Callable[[ObjectKey, str, AdapterState | None], None]
"""Told by which pod, of which revision, and to which state it came; None is its end."""
RETRY_SECONDS = 0.2
REMOUNTED_ANYWAY_SECONDS = 5.0
"""Pause between two looks at files of which nobody has said that they changed."""
START_SECONDS = 60.0


@dataclass
class LoopbackPod:
    """One pod that runs."""

    key: ObjectKey
    uid: str
    address: str
    root: Path
    version: str = ""
    runtime: FakeRuntime | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    servers: list[asyncio.Server] = field(default_factory=list)

    async def start(self, ports: Ports, on_report: OnReport) -> None:
        """Answer at the pod's own address."""
        runtime = self.runtime = FakeRuntime(PodPaths(self.root), self.key.name)
        runtime.on_report = partial(on_report, self.key)
        for port, answer in ((ports.http, runtime.public), (ports.internal, runtime.internal)):
            server = await asyncio.start_server(serve_with(answer), self.address, port)
            self.servers.append(server)
        self.tasks.append(asyncio.create_task(runtime.run(REMOUNTED_ANYWAY_SECONDS)))

    async def stop(self) -> None:
        """End it and forget its files."""
        if self.runtime is not None:
            for revision in self.runtime.reports:
                self.runtime.on_report(revision, None)
        for task in (*self.tasks, *(self.runtime.tasks if self.runtime else ())):
            task.cancel()
        for server in self.servers:
            server.close()
        await asyncio.to_thread(shutil.rmtree, self.root, ignore_errors=True)


class LoopbackNode:
    """Runs every pod that Graft's Deployments make."""

    def __init__(self, kubeconfig: Path, on_report: OnReport = lambda *_: None) -> None:
        self._on_report = on_report
        self.pods: dict[ObjectKey, LoopbackPod] = {}
        self._kubeconfig = kubeconfig
        self._addresses = (
            f"127.{32 + high}.{middle}.{low}"
            for high, middle, low in itertools.product(range(32), range(256), range(1, 255))
        )
        self._changed: set[ObjectKey] = set()
        self._wake = asyncio.Event()
        self._informers: dict[str, Informer] = {}

    async def run(self) -> None:
        """Run until cancelled."""
        api = await RealApi.open(self._kubeconfig)
        managed = f"{LABEL_MANAGED_BY}=graft"
        for kind, plural in (("Secret", "secrets"), ("ConfigMap", "configmaps"), ("Pod", "pods")):
            on_change = self._on_pod if kind == "Pod" else _ignore
            self._informers[kind] = Informer(api, kind, f"/api/v1/{plural}", managed, on_change)
        try:
            async with asyncio.TaskGroup() as tasks:
                for informer in self._informers.values():
                    tasks.create_task(informer.run())
                await self._run_pods(api)
        finally:
            await asyncio.gather(*(pod.stop() for pod in self.pods.values()))
            await api.close()

    def _on_pod(self, key: ObjectKey) -> None:
        self._changed.add(key)
        self._wake.set()

    async def _run_pods(self, api: RealApi) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, set()
            for key in sorted(changed):
                if not await self._sync(api, key):
                    asyncio.get_running_loop().call_later(RETRY_SECONDS, self._on_pod, key)

    async def _sync(self, api: RealApi, key: ObjectKey) -> bool:
        """Make a pod run as it should; tell whether there is nothing left to do for now."""
        stored = self._informers["Pod"].objects.get(key)
        pod = self.pods.get(key)
        if pod is not None and (stored is None or stored["metadata"]["uid"] != pod.uid):
            await self.pods.pop(key).stop()
            pod = None
        if stored is None or stored["metadata"].get("deletionTimestamp"):
            return True
        if pod is None:
            root = Path(tempfile.mkdtemp(prefix="graft-pod-"))
            pod = LoopbackPod(key, stored["metadata"]["uid"], next(self._addresses), root)
            self.pods[key] = pod
        ports = _ports(stored)
        if pod.version != stored["metadata"]["resourceVersion"]:
            try:
                mount_all(stored, key.namespace, pod.root, self._lookup, ports, pod.root)
            except NotFoundError:
                return False
            pod.version = stored["metadata"]["resourceVersion"]
            if pod.runtime is not None:
                pod.runtime.remounted.set()
        if pod.runtime is None:
            await pod.start(ports, self._on_report)
        is_ready = pod.runtime is not None and pod.runtime.is_ready
        status = _status(stored, pod.address, is_ready=is_ready)
        if status is not None:
            path = f"/api/v1/namespaces/{key.namespace}/pods/{key.name}"
            await api.merge_status(path, status)
        return is_ready

    def _lookup(self, key: ObjectKey) -> Manifest | None:
        return self._informers[key.kind].objects.get(key)


def _ignore(_: ObjectKey) -> None:
    """Mounted objects are looked at when a pod is."""


def _ports(pod: Manifest) -> Ports:
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    return Ports(ports["http"], ports.get("grpc", 0), ports["internal"])


def _status(pod: Manifest, address: str, *, is_ready: bool) -> Manifest | None:
    """Return what to write, None if it is written already."""
    known = pod.get("status") or {}
    text = str(is_ready)
    by_type = {each["type"]: each for each in known.get("conditions", [])}
    if known.get("podIP") == address and by_type.get("Ready", {}).get("status") == text:
        return None
    others = [each for type_, each in by_type.items() if type_ not in ("Ready", "PodScheduled")]
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            *others,
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": text},
        ],
    }


@contextmanager
def loopback_node(
    kubeconfig: Path, on_report: OnReport = lambda *_: None
) -> Iterator[LoopbackNode]:
    """Run the node in a thread for as long as the context lasts."""
    started = threading.Event()
    box: list[tuple[LoopbackNode, asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        node = LoopbackNode(kubeconfig, on_report)
        task = asyncio.create_task(node.run())
        box.append((node, asyncio.get_running_loop(), task))
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(TLS_GOODBYE_SECONDS)

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="node", daemon=True)
    thread.start()
    started.wait(START_SECONDS)
    ((node, loop, task),) = box
    try:
        yield node
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended by itself, and told why
            loop.call_soon_threadsafe(task.cancel)
        thread.join(START_SECONDS)
