"""The custom metrics API, for as long as a story needs it: Prometheus and its adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.buckets import EXAMPLES
from e2e.cluster.addons import rollout
from e2e.cluster.clusters import Cluster, Origin
from e2e.cluster.errors import LabError
from e2e.cluster.images import Images
from e2e.cluster.paths import Lab
from e2e.cluster.tools import Kubectl
from e2e.stage import manifest

API = "v1beta1.custom.metrics.k8s.io"
FILES = EXAMPLES / "autoscaling"
PUBLIC_IMAGES = {
    "prometheus_image": "quay.io/prometheus/prometheus:v3.16.0",
    "adapter_image": "registry.k8s.io/prometheus-adapter/prometheus-adapter:v0.12.0",
}
"""For clusters that can pull."""


@contextmanager
def custom_metrics(cluster: Cluster, namespace: str) -> Iterator[None]:
    """Serve the cluster's pods' metrics by the rules of `examples/autoscaling`, then no more."""
    kubectl = cluster.kubectl.within(namespace)
    manifests = manifest("custom-metrics", namespace=namespace, **_images(cluster))
    told = ("create", "configmap", "told", f"--from-file={FILES}", "--dry-run=client")
    try:
        kubectl.apply(kubectl.run(*told, "--output", "yaml"))
        cluster.kubectl.apply(manifests)
        for deployment in ("prometheus", "adapter"):
            rollout(kubectl, namespace, deployment)
        kubectl.run("wait", f"apiservice/{API}", "--for=condition=Available", "--timeout=60s")
        yield
    finally:
        # First the API: as long as it is there and nobody answers, no namespace can go.
        gone = ("--ignore-not-found", "--wait=false")
        cluster.kubectl.run("delete", "apiservice", API, *gone)
        cluster.kubectl.run("delete", *gone, "--filename", "-", stdin=manifests)


def per_pod(kubectl: Kubectl, metric: str) -> dict[str, str]:
    """Return a metric of each pod in kubectl's namespace, as an autoscaler reads it."""
    path = f"/apis/custom.metrics.k8s.io/v1beta1/namespaces/{kubectl.namespace}/pods/*/{metric}"
    try:
        answer = json.loads(kubectl.run("get", "--raw", path))
    except LabError:  # there is no such metric (yet)
        return {}
    return {item["describedObject"]["name"]: item["value"] for item in answer["items"]}


def _images(cluster: Cluster) -> dict[str, str]:
    if cluster.origin is not Origin.LAB:
        return PUBLIC_IMAGES
    images = Images(Lab())
    return {
        "prometheus_image": images.ensure_program("prometheus"),
        "adapter_image": images.ensure_program("adapter"),
    }
