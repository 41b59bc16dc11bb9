"""What happens to a container from below: it is killed, or stands still for a while.

Needs a way to the node, which a given cluster does not offer: stories that use it are
skipped there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.cluster.clusters import Cluster, Origin
from e2e.cluster.kind import NAME as KIND_NAME
from e2e.cluster.tools import run_tool


def kill_container(cluster: Cluster, pod: dict[str, Any]) -> None:
    """End a pod's container as the kernel would: at once, with no chance to say so."""
    _task(cluster, "kill", "--signal", "SIGKILL", _container_id(pod))


@contextmanager
def paused_container(cluster: Cluster, pod: dict[str, Any]) -> Iterator[None]:
    """Let a pod's container stand still: it misses what happens meanwhile."""
    container = _container_id(pod)
    _task(cluster, "pause", container)
    try:
        yield
    finally:
        _task(cluster, "resume", container)


def _container_id(pod: dict[str, Any]) -> str:
    container_id: str = pod["status"]["containerStatuses"][0]["containerID"]
    return container_id.removeprefix("containerd://")


def _task(cluster: Cluster, *arguments: str) -> None:
    command = ["ctr", "--namespace", "k8s.io", "tasks", *arguments]
    run_tool([*_node_shell(cluster), *command], cluster.environment)


def _node_shell(cluster: Cluster) -> list[str]:
    """Return what a command needs in front of it to run on the node."""
    if cluster.origin is Origin.LAB:
        return []
    if cluster.origin is Origin.KIND:
        return ["docker", "exec", f"{KIND_NAME}-control-plane"]
    pytest.skip("reaches into a container on the node, and nobody told how to get there")
