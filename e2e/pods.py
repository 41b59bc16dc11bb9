"""Runs a command in a pod that any namespace accepts, and reads what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from e2e.cluster.tools import Kubectl

USER_ID = 10_001


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pod that ran to its end left."""

    exit_code: int
    log: str


def restricted_pod(name: str, image: str, **container: Any) -> dict[str, Any]:
    """Return a pod within PodSecurity `restricted`, which may write to /tmp alone."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": security,
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                    **container,
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
        },
    }


def run_to_end(kubectl: Kubectl, pod: dict[str, Any], *, seconds: float = 120) -> Outcome:
    """Run a pod, wait for its end, and return how it ended and what it printed."""
    name = pod["metadata"]["name"]
    kubectl.apply(json.dumps(pod))
    ended = "--for=jsonpath={.status.containerStatuses[0].state.terminated}"
    kubectl.run("wait", f"pod/{name}", ended, f"--timeout={seconds:.0f}s", seconds=seconds + 10)
    state = kubectl.get("pod", name)["status"]["containerStatuses"][0]["state"]["terminated"]
    return Outcome(exit_code=int(state["exitCode"]), log=kubectl.run("logs", name))
