"""The cluster made by kind, where a Docker engine answers. Used by `clusters` alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from e2e.cluster import addons
from e2e.cluster.tools import Kubectl, run_tool

NAME = "graft"
CONTEXT = f"kind-{NAME}"
START_SECONDS = 600.0
DATA = "/var/lib/graft-object-store"
"""In the node's container; goes when it goes."""


def is_possible() -> bool:
    """Tell whether kind can make a cluster on this machine."""
    return shutil.which("kind") is not None and docker_answers()


def docker_answers() -> bool:
    """Tell whether a Docker engine answers; the command alone says nothing."""
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "info"], capture_output=True, check=False)
    return done.returncode == 0


def kubeconfig() -> Path:
    """Return where kind writes how to reach the cluster: a file of its own, not the user's."""
    return Path("~/.cache/graft-lab/kind.kubeconfig").expanduser()


def environment() -> dict[str, str]:
    """Return the environment in which kubectl finds the cluster."""
    return {**os.environ, "KUBECONFIG": str(kubeconfig())}


def is_up() -> bool:
    """Tell whether the cluster was created."""
    return NAME in _kind("get", "clusters").split()


def up() -> None:
    """Create the cluster unless it is there."""
    kubeconfig().parent.mkdir(parents=True, exist_ok=True)
    if not is_up():
        print("  kind creates a cluster (minutes the first time: it fetches its image)", flush=True)
        _kind("create", "cluster", "--name", NAME, "--wait", "5m")
    kubectl = Kubectl(environment(), CONTEXT)
    addons.pretend_gpus(kubectl)
    addons.add_store(kubectl, addons.PUBLIC_STORE_IMAGE, DATA)


def down() -> None:
    """Delete the cluster."""
    _kind("delete", "cluster", "--name", NAME)
    kubeconfig().unlink(missing_ok=True)


def load(image: str) -> None:
    """Copy an image from the Docker engine to the cluster's nodes."""
    _kind("load", "docker-image", image, "--name", NAME)


def _kind(*arguments: str) -> str:
    return run_tool(("kind", *arguments), environment(), seconds=START_SECONDS)
