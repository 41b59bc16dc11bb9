"""Writes down what a failed story left in its namespaces: objects, events, logs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.errors import LabError
from e2e.cluster.tools import Kubectl

KINDS = (
    "all,configmaps,persistentvolumeclaims,poddisruptionbudgets,endpointslices,roles,rolebindings"
)
"""Secrets are left out: what is written down may be shown to others."""
OWN_KINDS = "inferenceservices.serving.graft.dev,loraadapters.serving.graft.dev"
NUM_EVENTS_SHOWN = 30


def dump(kubectl: Kubectl, namespaces: Sequence[str], folder: Path) -> str:
    """Write files into a folder and return the few lines a person reads first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shown = [f"written to {folder}"]
    for namespace in namespaces:
        inside = kubectl.within(namespace)
        objects = folder / namespace
        objects.mkdir(exist_ok=True)
        (objects / "objects.yaml").write_text(_get(inside, KINDS, "--output", "yaml"))
        (objects / "graft.yaml").write_text(_get(inside, OWN_KINDS, "--output", "yaml"))
        (objects / "describe.txt").write_text(_ask(inside, "describe", "pods"))
        events = _get(inside, "events", "--sort-by=.lastTimestamp")
        (objects / "events.txt").write_text(events)
        _dump_logs(inside, objects)
        shown += [f"--- {namespace}", _get(inside, "pods"), _get(inside, OWN_KINDS)]
        shown += events.splitlines()[-NUM_EVENTS_SHOWN:]
    return "\n".join(shown)


def _dump_logs(kubectl: Kubectl, folder: Path) -> None:
    """Write each container's log, and that of its predecessor if it was restarted."""
    for pod in _get(kubectl, "pods", "--output", "name").split():
        flags = ("--all-containers", "--prefix", "--timestamps")
        name = pod.removeprefix("pod/")
        (folder / f"{name}.log").write_text(_ask(kubectl, "logs", pod, *flags))
        previous = _ask(kubectl, "logs", pod, *flags, "--previous")
        if previous and "previous terminated container" not in previous:
            (folder / f"{name}.previous.log").write_text(previous)


def _get(kubectl: Kubectl, *arguments: str) -> str:
    return _ask(kubectl, "get", *arguments)


def _ask(kubectl: Kubectl, *arguments: str) -> str:
    """Return what a command prints, or why it failed: half a dump is better than none."""
    try:
        return kubectl.run(*arguments, seconds=30)
    except LabError as error:
        return f"{error}\n"
