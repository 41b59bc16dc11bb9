"""What every test cluster has inside: name resolution, an object store, GPUs that only count."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from string import Template

from e2e.cluster.paths import HERE
from e2e.cluster.tools import Kubectl

STORE_NAMESPACE = "graft-e2e-store"
STORE_URL = "http://minio.graft-e2e-store:9000"
"""The object store, for pods."""
STORE_NODE_PORT = 30900
STORE_USER = "graft-e2e"
STORE_PASSWORD = "graft-e2e-password"
PUBLIC_STORE_IMAGE = "minio/minio:RELEASE.2025-04-22T22-12-26Z"
"""For clusters that can pull."""


def num_gpus() -> int:
    """Return how many GPUs each node pretends to have."""
    return int(os.environ.get("GRAFT_LAB_GPUS") or 4)


def pretend_gpus(kubectl: Kubectl, count: int | None = None) -> None:
    """Give every node GPUs that the scheduler counts, as a device plugin would report them."""
    gpus = {"nvidia.com/gpu": str(num_gpus() if count is None else count)}
    patch = json.dumps({"status": {"capacity": gpus, "allocatable": gpus}})
    for node in kubectl.run("get", "nodes", "--output", "name").split():
        kubectl.run("patch", node, "--subresource", "status", "--type", "merge", "--patch", patch)


def add_store(kubectl: Kubectl, image: str, data: str) -> None:
    """Run the object store.

    Args:
        kubectl: The cluster.
        image: MinIO.
        data: The folder on the node where it keeps its objects.
    """
    values = {
        "minio_image": image,
        "minio_data": data,
        "minio_user": STORE_USER,
        "minio_password": STORE_PASSWORD,
    }
    _apply(kubectl, "minio.yaml", values)
    rollout(kubectl, STORE_NAMESPACE, "minio")


def add_dns(kubectl: Kubectl, image: str, dns_ip: str) -> None:
    """Run CoreDNS."""
    _apply(kubectl, "coredns.yaml", {"coredns_image": image, "dns_ip": dns_ip})


def rollout(kubectl: Kubectl, namespace: str, deployment: str) -> None:
    """Wait until all pods of a Deployment are ready."""
    wait = ("rollout", "status", f"deployment/{deployment}", "--timeout=120s")
    kubectl.within(namespace).run(*wait, seconds=130)


def _apply(kubectl: Kubectl, manifest: str, values: Mapping[str, str]) -> None:
    kubectl.apply(Template((HERE / "manifests" / manifest).read_text()).substitute(values))
