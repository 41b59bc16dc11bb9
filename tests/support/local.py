"""A running local mode over a temporary folder, with fake runtime processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from graft_operator.cluster.local import LocalCluster
from graft_operator.constants import API_VERSION
from graft_operator.reconcile.controller import Controller
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_operator.settings import ControlSettings, LocalSettings

FAKE_RUNTIME = (sys.executable, str(Path(__file__).with_name("fake_runtime.py")))
DEADLINE_SECONDS = 60.0
ENV_TEST_FOLDER = "GRAFT_TEST_FOLDER"


def service_document(name: str = "tiny", uri: str = "s3://fake/ok", **spec: Any) -> Manifest:
    """Return an InferenceService as a user writes it."""
    return _document("InferenceService", name, {"model": {"uri": uri}, **spec})


def adapter_document(name: str, uri: str = "s3://fake/ok", **spec: Any) -> Manifest:
    """Return a LoraAdapter as a user writes it."""
    source = {"uri": uri, **spec.pop("source", {})}
    ref = {"name": "tiny"}
    return _document("LoraAdapter", name, {"inferenceServiceRef": ref, "source": source, **spec})


def secret_document(name: str, **data: str) -> Manifest:
    """Return a Secret as a user writes it."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def _document(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def local_settings(folder: Path) -> LocalSettings:
    """Return settings that run fake pods in a hurry."""
    return LocalSettings(
        folder,
        runtime_command=FAKE_RUNTIME,
        scan_seconds=0.02,
        probe_seconds=0.02,
        probe_ready_seconds=0.05,
        restart_first_seconds=0.05,
        restart_max_seconds=0.2,
        stop_seconds=5.0,
        environment={ENV_TEST_FOLDER: str(folder)},
    )


@dataclass
class LocalRun:
    """The running cluster and what tests ask of it."""

    folder: Path
    cluster: LocalCluster
    controller: Controller

    def write(self, *documents: Manifest, file: str = "all.yaml") -> None:
        """Write a manifest file in one step."""
        write_documents(self.folder, *documents, file=file)

    def get(self, kind: str, name: str) -> Manifest:
        """Return an object; empty if there is none."""
        return self.cluster.store.get(ObjectKey(kind, "default", name)) or {}

    def service_status(self) -> Manifest:
        """Return the service's status; empty before there is one."""
        return self.get("InferenceService", "tiny").get("status") or {}

    def condition(self, kind: str, name: str, type_: str = "Ready") -> tuple[str, str]:
        """Return status and reason of a condition of the current generation."""
        item = self.get(kind, name)
        status = item.get("status") or {}
        found = next((c for c in status.get("conditions", []) if c["type"] == type_), None)
        if found is not None and found["observedGeneration"] == item["metadata"]["generation"]:
            return found["status"], found["reason"]
        return "Unknown", ""

    def adapter(self, name: str, type_: str = "Ready") -> tuple[str, str]:
        """Return status and reason of an adapter's condition."""
        return self.condition("LoraAdapter", name, type_)

    def pods(self) -> list[str]:
        """Return the names of all pods."""
        return sorted(pod["metadata"]["name"] for pod in self.cluster.store.list_objects("Pod"))

    def pod_file(self, pod: str, path: str) -> Path:
        """Return the place of a file as a pod sees it."""
        (root,) = self.cluster.state.folder.glob(f"pods/*{pod}/root")
        return root / path.lstrip("/")

    def log_of(self, pod: str) -> str:
        """Return what a pod's processes have written."""
        (log,) = self.cluster.state.folder.glob(f"pods/*{pod}/log")
        return log.read_text()

    async def which(self, name: str, index: int = 0) -> str | None:
        """Return the revision that answers to a name on one ready pod."""
        endpoints = self.get("InferenceService", "tiny")["status"]["endpoints"]
        async with httpx.AsyncClient(trust_env=False) as client:
            response = await client.get(f"{endpoints[index]}/which/{name}")
        return response.text if response.is_success else None

    async def until_unserved(self, name: str) -> None:
        """Wait until no revision answers to a name on the first pod."""
        async with asyncio.timeout(10):
            while await self.which(name) is not None:
                await asyncio.sleep(0.01)

    async def until(self, what: Callable[[], Any], message: str = "") -> None:
        """Wait until something holds.

        Raises:
            AssertionError: It did not in time; the objects are in the message.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE_SECONDS
        while not what():
            if loop.time() > deadline:
                shown = [
                    item.get("status")
                    for kind in ("InferenceService", "LoraAdapter", "Pod")
                    for item in self.cluster.store.list_objects(kind)
                ]
                raise AssertionError(f"{message} {self.cluster.problems} {shown}")
            await asyncio.sleep(0.01)

    async def until_ready(self, *adapters: str) -> None:
        """Wait until the service and some adapters are Ready with what they ask for."""
        await self.until(lambda: self.condition("InferenceService", "tiny")[0] == "True", "service")
        for name in adapters:
            await self.until(
                lambda name=name: (  # type: ignore[misc]  # binds the loop's variable
                    self.adapter(name)[0] == self.adapter(name, "Loaded")[0] == "True"
                ),
                name,
            )


def pids_of(folder: Path) -> list[int]:
    """Return the processes that run for a folder."""
    marker = f"{ENV_TEST_FOLDER}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def write_documents(folder: Path, *documents: Manifest, file: str = "all.yaml") -> None:
    """Write a manifest file in one step."""
    draft = folder / f"{file}.draft"
    draft.write_text(yaml.safe_dump_all(documents))
    draft.replace(folder / file)


@asynccontextmanager
async def running(folder: Path, *documents: Manifest) -> AsyncIterator[LocalRun]:
    """Run local mode over a folder that begins with some manifests."""
    if documents:
        write_documents(folder, *documents)
    cluster = LocalCluster(local_settings(folder))
    control = ControlSettings(poll_busy_seconds=0.02, poll_idle_seconds=0.1, nudge_seconds=0.2)
    controller = Controller(cluster, control, secret_ttl_seconds=3600)
    cluster.subscribe(controller.on_change)
    async with controller, cluster:
        yield LocalRun(folder, cluster, controller)
