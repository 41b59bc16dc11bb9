"""A namespace in which Graft serves, as its owner sees it: manifests in, kubectl and HTTP out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import Any

import yaml

from e2e.buckets import Bucket, node_address
from e2e.client import Client
from e2e.cluster import addons
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl
from e2e.release import Release

MANIFESTS = REPOSITORY / "e2e" / "manifests"
READY_SECONDS = 120
PODS = ("pods", "-l", "serving.graft.dev/service=base")


@dataclass(frozen=True, slots=True)
class Stage:
    """Graft, installed for one namespace, and a bucket with a model in it."""

    release: Release
    kubectl: Kubectl
    """In the namespace that is served."""
    bucket: Bucket

    def open_store(self, kubectl: Kubectl | None = None) -> None:
        """Put the Secret that opens the object store into a namespace."""
        values = {"user": addons.STORE_USER, "password": addons.STORE_PASSWORD}
        (kubectl or self.kubectl).apply(manifest("object-store", **values))

    def serve(self, *, replicas: int = 1, allowed: str = "Same") -> Client:
        """Apply the Secret and the InferenceService, wait until it serves, and return a client."""
        self.apply(replicas=replicas, allowed=allowed)
        self.wait_ready("inferenceservice/base")
        return self.client()

    def apply(
        self, *, model: str = "models/tiny", replicas: int = 1, allowed: str = "Same"
    ) -> None:
        """Apply the Secret and the InferenceService."""
        self.open_store()
        values = {"model": self.bucket.uri(model), "replicas": str(replicas), "allowed": allowed}
        self.kubectl.apply(manifest("base", **values))

    def change(self, thing: str, **spec: Any) -> None:
        """Merge fields into an object's spec, as an editor of one or a GitOps commit would."""
        self.kubectl.run(
            "patch", thing, "--type=merge", "--patch", json.dumps({"spec": spec}, default=str)
        )

    def client(self) -> Client:
        """Return a client outside the cluster, by a port of the node."""
        outside = ("--name=outside", "--type=NodePort", "--port=8000")
        if not self.kubectl.succeeds("get", "service", "outside"):
            self.kubectl.run("expose", "service", "base", *outside)
        port = self.kubectl.get("service", "outside")["spec"]["ports"][0]["nodePort"]
        client = Client(f"http://{node_address(self.kubectl)}:{port}")
        # The node programs its ports a moment after the Service is there.
        wait_until(lambda: client.ask("base", max_tokens=1).is_ok, "an answer", seconds=30)
        return client

    def add(self, adapter: str, name: str, *options: str) -> None:
        """Publish an example adapter, apply the manifest that this prints, and wait for Ready."""
        self.kubectl.apply(self.bucket.publish(adapter, name, *options))
        self.wait_ready(f"loraadapter/{name}")

    def wait_ready(self, *objects: str, seconds: int = READY_SECONDS) -> None:
        """Wait for the condition that users wait for."""
        flags = ("--for=condition=Ready", f"--timeout={seconds}s")
        self.kubectl.run("wait", *objects, *flags, seconds=seconds + 10)

    def pods(self) -> dict[str, dict[str, Any]]:
        """Return the model's pods by name."""
        return {pod["metadata"]["name"]: pod for pod in self.kubectl.get(*PODS)["items"]}

    def starts(self) -> dict[str, int]:
        """Return how often each pod's container was restarted, by the pod's uid."""
        return {
            pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"]
            for pod in self.pods().values()
        }


def manifest(name: str, **values: str) -> str:
    """Return one of the stories' manifests, filled in."""
    values = {"endpoint": addons.STORE_URL, **values}
    return Template((MANIFESTS / f"{name}.yaml").read_text()).substitute(values)


def edited(
    text: str, name: str = "", *, spec: Mapping[str, Any] | None = None, **source: Any
) -> str:
    """Return an adapter's manifest with another name, other fields in its spec or its source."""
    document = yaml.safe_load(text)
    document["metadata"]["name"] = name or document["metadata"]["name"]
    document["spec"] |= spec or {}
    document["spec"]["source"] |= source
    return str(yaml.safe_dump(document))


def condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition of an object, empty while it has none."""
    found = thing.get("status", {}).get("conditions", [])
    return next((item for item in found if item["type"] == kind), {})
