"""The kinds the operator works with, and where the API serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE, MANAGED_BY
from graft_operator.errors import ClusterError
from graft_protocol.naming import API_GROUP, LABEL_MANAGED_BY


@dataclass(frozen=True)
class Kind:
    """One kind of object, by the names the API has for it."""

    name: str
    group: str
    version: str
    plural: str
    selector: str = ""
    """Label selector that every list and watch of the kind carries."""

    @property
    def api_version(self) -> str:
        """What manifests of this kind have as ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of the collection if it has no name.

        Raises:
            ClusterError: A name would lead elsewhere. No object can have one like that.
        """
        if "/" in f"{namespace or ''}{name}":
            raise ClusterError(f"no object of kind {self.name} is called {namespace} {name}")
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, f"namespaces/{namespace}" if namespace else "", self.plural]
        return "/".join(part for part in (*parts, name, subresource) if part)


CHILDREN_SELECTOR: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"

WATCHED: Final = (
    Kind(KIND_SERVICE, API_GROUP, "v1alpha1", "inferenceservices"),
    Kind(KIND_ADAPTER, API_GROUP, "v1alpha1", "loraadapters"),
    Kind("Secret", "", "v1", "secrets", CHILDREN_SELECTOR),
    Kind("ConfigMap", "", "v1", "configmaps", CHILDREN_SELECTOR),
    Kind("Service", "", "v1", "services", CHILDREN_SELECTOR),
    Kind("ServiceAccount", "", "v1", "serviceaccounts", CHILDREN_SELECTOR),
    Kind("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies", CHILDREN_SELECTOR),
    Kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets", CHILDREN_SELECTOR),
    Kind("Deployment", "apps", "v1", "deployments", CHILDREN_SELECTOR),
    Kind(
        "HorizontalPodAutoscaler",
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        CHILDREN_SELECTOR,
    ),
    Kind("Pod", "", "v1", "pods", CHILDREN_SELECTOR),
)
"""Owners before what they own, so that a list in this order knows a child's owner."""

OPTIONAL: Final = (
    Kind("PodMonitor", "monitoring.coreos.com", "v1", "podmonitors", CHILDREN_SELECTOR),
    Kind("InferencePool", "inference.networking.k8s.io", "v1", "inferencepools", CHILDREN_SELECTOR),
)
"""Kinds that a cluster may lack. They are not watched: a watch of nothing never ends well."""
EVENT: Final = Kind("Event", "", "v1", "events")
NAMESPACE: Final = Kind("Namespace", "", "v1", "namespaces")
"""Read by name, and only where a service chooses namespaces by label."""
_BY_NAME: Final = {kind.name: kind for kind in (*WATCHED, *OPTIONAL, EVENT, NAMESPACE)}


def kind_named(name: str) -> Kind:
    """Return a kind.

    Raises:
        ClusterError: The operator has no business with it.
    """
    if name not in _BY_NAME:
        raise ClusterError(f"{name} is not a kind the operator works with")
    return _BY_NAME[name]
