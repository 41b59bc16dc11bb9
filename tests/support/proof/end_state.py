"""What a namespace has come to, without what differs between two runs that went the same way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from graft_operator.constants import ANNOTATION_APPLIED, KIND_ADAPTER, KIND_SERVICE, LABEL_CONTENT
from graft_operator.render.secrets import CONTENT_TOKEN
from tests.support.proof.history import Json, Seen, is_true, label, status_of

COMPARED = (
    KIND_SERVICE,
    KIND_ADAPTER,
    "Secret",
    "ConfigMap",
    "Service",
    "ServiceAccount",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Deployment",
    "HorizontalPodAutoscaler",
)
_OF_ONE_RUN = {
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "managedFields",
    "lastTransitionTime",
    "stepSince",
    "generation",
    "observedGeneration",
    "clusterIP",
    "clusterIPs",
    "endpoints",
    "selfLink",
}
_ADDRESS = re.compile(r"127\.\d+\.\d+\.\d+")
_UNSEEN = {"kube-root-ca.crt", "default"}
"""What every namespace has."""


def end_state(objects: Iterable[Seen]) -> dict[str, Json]:
    """Return the objects of one namespace that an operator answers for, by kind and name."""
    found = {}
    for one in objects:
        if one.key.kind in COMPARED and one.key.name not in _UNSEEN:
            found[f"{one.key.kind}/{one.key.name}"] = _normal(one)
    return found


def differences(wanted: dict[str, Json], found: dict[str, Json]) -> list[str]:
    """Return in what two end states differ, in words."""
    lines = [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"left over: {name}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        lines += [f"{name}{path}" for path in _differing(wanted[name], found[name], "")]
    return lines


def is_settled(objects: Iterable[Seen]) -> bool:
    """Whether every service and adapter says of its newest spec that all is done."""
    for one in objects:
        if one.key.kind not in (KIND_SERVICE, KIND_ADAPTER):
            continue
        status = status_of(one.object)
        if one.is_going or status.get("observedGeneration") != one.generation:
            return False
        if one.key.kind == KIND_SERVICE:
            if not (_is_in_sync(one.object, status) and is_true(one.object, "Ready")):
                return False
        elif status.get("candidateRevision") or not _is_decided(one.object):
            return False
    return True


def _is_decided(adapter: Json) -> bool:
    """Whether it serves on every pod, or is refused."""
    status = status_of(adapter)
    if is_true(adapter, "Ready"):
        return bool(status["readyReplicas"] == status["desiredReplicas"] > 0)
    return any(
        c["type"] == "Accepted" and c["status"] == "False" for c in status.get("conditions", ())
    )


def _is_in_sync(service: Json, status: Json) -> bool:
    pods = int(service["spec"].get("replicas", 1))
    counts = [status.get("replicas"), status.get("readyReplicas"), status.get("updatedReplicas")]
    adapters = status.get("adapters") or {}
    in_sync = [adapters.get("podsInSync")]
    return [*counts, *in_sync] == [pods] * 4 and adapters.get("ready") == adapters.get("registered")


def _normal(one: Seen) -> Json:
    manifest: Json = _stripped(one.object, one.key.namespace)
    if one.key.kind not in (KIND_SERVICE, KIND_ADAPTER):
        manifest.pop("status", None)
    if label(one.object, LABEL_CONTENT) == CONTENT_TOKEN:
        manifest["data"] = sorted(manifest["data"])  # drawn at random
    # Hashes of manifests that name their owner by its uid.
    (manifest["metadata"].get("annotations") or {}).pop(ANNOTATION_APPLIED, None)
    return manifest


def _stripped(value: Any, namespace: str) -> Any:
    if isinstance(value, dict):
        return {
            name: _stripped(item, namespace)
            for name, item in value.items()
            if name not in _OF_ONE_RUN
        }
    if isinstance(value, list):
        return [_stripped(item, namespace) for item in value]
    if isinstance(value, str):
        return _ADDRESS.sub("ADDRESS", value.replace(namespace, "NAMESPACE"))
    return value


def _differing(wanted: Any, found: Any, path: str) -> Iterable[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name in sorted(wanted.keys() | found.keys()):
            yield from _differing(wanted.get(name), found.get(name), f"{path}.{name}")
    elif wanted != found:
        yield f"{path}: wanted {wanted!r:.200}, found {found!r:.200}"
