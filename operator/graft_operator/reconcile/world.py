"""What every reconcile works with: the cluster, what is known of it, and what was decided.

Made by the controller. It holds no decision of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from graft_operator.cluster.base import Cluster
from graft_operator.constants import ANNOTATION_CONFIG
from graft_operator.errors import InvalidManifestError
from graft_operator.log import last_words
from graft_operator.plan.accept import Verdict
from graft_operator.plan.views import DeploymentView, PodView
from graft_operator.reconcile.cache import ObjectCache
from graft_operator.reconcile.namespaces import NamespaceReader
from graft_operator.reconcile.pods import PodPoller
from graft_operator.reconcile.secrets import SecretReader
from graft_operator.resources.admission import parse
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, uid_of
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_operator.settings import ControlSettings
from graft_protocol.naming import ANNOTATION_TEMPLATE_REVISION
from graft_protocol.status import RuntimeStatus

M = TypeVar("M", InferenceService, LoraAdapter)


@dataclass(frozen=True)
class Decision:
    """What a service's reconcile decided, for its adapters' reconciles to conclude."""

    verdicts: Mapping[ObjectKey, Verdict]
    versions: Mapping[ObjectKey, tuple[str, int]]
    """Uid and generation of each adapter that the verdict is about."""
    shard_hashes: tuple[str, ...] = ()
    set_hash: str = ""
    has_probation: bool = False
    """Whether a version is on its way in steps, so that the requests that fail are counted."""


class ParsedObjects:
    """Models of stored objects, parsed once per version."""

    def __init__(self) -> None:
        self._parsed: dict[ObjectKey, tuple[Manifest, Any]] = {}

    def parse(self, model: type[M], manifest: Manifest) -> M:
        """Return the model of an object.

        Raises:
            InvalidManifestError: The spec cannot work as written.
        """
        key = key_of(manifest)
        known = self._parsed.get(key)
        if known is None or known[0] is not manifest:
            known = (manifest, _parsed_or_error(model, manifest))
            self._parsed[key] = known
        if isinstance(known[1], InvalidManifestError):
            raise known[1]
        return known[1]  # type: ignore[no-any-return]  # stored under a key that names the kind

    def forget(self, key: ObjectKey) -> None:
        """Drop an object."""
        self._parsed.pop(key, None)


def _parsed_or_error(model: type[M], manifest: Manifest) -> M | InvalidManifestError:
    try:
        return parse(model, manifest)
    except InvalidManifestError as error:
        return error


@dataclass
class World:
    """The surroundings of a reconcile."""

    cluster: Cluster
    cache: ObjectCache
    poller: PodPoller
    secrets: SecretReader
    """Of credentials."""
    api_keys: SecretReader
    """Of Secrets that open adapters to callers."""
    namespaces: NamespaceReader
    """Of the labels by which a service chooses who may attach."""
    settings: ControlSettings
    now: Callable[[], str]
    """Returns the time as Kubernetes writes it."""
    enqueue: Callable[[ObjectKey], None]
    parsed: ParsedObjects = field(default_factory=ParsedObjects)
    decisions: dict[ObjectKey, Decision] = field(default_factory=dict)
    nudges: dict[ObjectKey, tuple[str, int, float]] = field(default_factory=dict)
    """By pod: set hash, attempts, and when the last one was made (loop time)."""
    optional: dict[ObjectKey, tuple[str | None, float]] = field(default_factory=dict)
    """By child of an unwatched kind: what was last wanted, and when that was brought about."""
    _views: dict[ObjectKey, tuple[Manifest, PodView]] = field(default_factory=dict)

    def pods_of(self, namespace: str, service_label: str) -> list[PodView]:
        """Return the pods of a service that are not going away."""
        pods = self.cache.children("Pod", namespace, service_label)
        return [self._view(pod) for pod in pods if not pod["metadata"].get("deletionTimestamp")]

    def forget_pod(self, key: ObjectKey) -> None:
        """Drop what is remembered of a pod."""
        self.nudges.pop(key, None)
        self._views.pop(key, None)

    def _view(self, pod: Manifest) -> PodView:
        """Return the view of a pod, the same one until something about the pod changes."""
        key = key_of(pod)
        report = self.poller.report(key)
        known = self._views.get(key)
        if known is None or known[0] is not pod or known[1].report is not report:
            known = (pod, pod_view(pod, report))
            self._views[key] = known
        return known[1]


def pod_view(pod: Manifest, report: RuntimeStatus | None) -> PodView:
    """Join what the cluster and the pod itself say of a pod."""
    status = pod.get("status") or {}
    annotations = pod["metadata"].get("annotations") or {}
    revision = str(annotations.get(ANNOTATION_TEMPLATE_REVISION, ""))
    containers = pod["spec"]["containers"]
    return PodView(
        name=pod["metadata"]["name"],
        ready=is_ready(pod),
        report=report,
        address=pod_url(pod, "http") or "",
        config_hash=annotations.get(ANNOTATION_CONFIG, ""),
        template_revision=int(revision) if revision.isdigit() else 0,
        image=containers[0].get("image", "") if containers else "",
        trouble=_trouble(status),
        unschedulable=_unschedulable(status.get("conditions") or []),
    )


def is_ready(pod: Manifest) -> bool:
    """Whether the cluster sends a pod requests."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def deployment_view(deployment: Manifest | None) -> DeploymentView | None:
    """Return what is told of a stored Deployment."""
    if deployment is None:
        return None
    conditions = (deployment.get("status") or {}).get("conditions") or []
    told = {item["type"]: item for item in conditions}
    failure, progress = told.get("ReplicaFailure", {}), told.get("Progressing", {})
    return DeploymentView(
        replicas=int(deployment["spec"].get("replicas", 1)),
        # What is left of it are the entries of others for this field.
        is_scaled_by_others=bool(deployment["metadata"].get("managedFields")),
        refusal=str(failure.get("message", "")) if failure.get("status") == "True" else "",
        overdue=str(progress.get("message", "")) if progress.get("status") == "False" else "",
    )


def incarnation_of(pod: Manifest) -> str:
    """Return what changes when another process takes over a pod's name."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    restarts = sum(int(status.get("restartCount", 0)) for status in statuses)
    return f"{uid_of(pod)}/{restarts}"


def pod_url(pod: Manifest, port_name: str) -> str | None:
    """Return the address of one of a pod's ports; None while the pod has no address."""
    host = (pod.get("status") or {}).get("podIP")
    ports = [port for item in pod["spec"]["containers"] for port in item.get("ports") or []]
    number = next((p["containerPort"] for p in ports if p.get("name") == port_name), None)
    if not host or number is None:
        return None
    return f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"


def _unschedulable(conditions: Iterable[Mapping[str, Any]]) -> str:
    for item in conditions:
        if item["type"] == "PodScheduled" and item["status"] == "False":
            return str(item.get("message") or item.get("reason") or "no node was found")
    return ""


def _trouble(status: Mapping[str, Any]) -> str:
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in {"ContainerCreating", "PodInitializing"}:
            ended = (container.get("lastState") or {}).get("terminated") or {}
            # What the process said helps; that it will be started again does not.
            said = last_words(ended.get("message") or "") or waiting.get("message", "")
            return f"{reason}: {said}".rstrip(": ")
    return ""
