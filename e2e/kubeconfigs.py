"""Kubeconfigs for programs that run beside the cluster: the administrator's, and an account's."""

from __future__ import annotations

from typing import Any

import yaml

from e2e.cluster import clusters
from e2e.cluster.clusters import Origin
from e2e.cluster.tools import Kubectl

LAB_SERVER = "https://127.0.0.1:6443"
TOKEN_DURATION = "12h"


def admin_kubeconfig(kubectl: Kubectl) -> str:
    """Return the kubeconfig in force; the lab's API server answers on loopback, too."""
    return str(yaml.safe_dump(_config(kubectl)))


def account_kubeconfig(kubectl: Kubectl, account: str) -> str:
    """Return one with the rights of a service account in kubectl's namespace, and no others."""
    config = _config(kubectl)
    token = kubectl.run("create", "token", account, f"--duration={TOKEN_DURATION}").strip()
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    return str(yaml.safe_dump(config))


def _config(kubectl: Kubectl) -> dict[str, Any]:
    shown = kubectl.run("config", "view", "--minify", "--flatten", "--raw")
    config: dict[str, Any] = yaml.safe_load(shown)
    if clusters.origin() is Origin.LAB:
        config["clusters"][0]["cluster"]["server"] = LAB_SERVER
    return config
