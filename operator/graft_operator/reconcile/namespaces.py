"""Reads the labels of namespaces that a service chooses by label."""

from __future__ import annotations

from graft_operator.cluster.base import Cluster
from graft_operator.errors import ForbiddenError
from graft_operator.plan.accept import NamespaceFacts
from graft_operator.reconcile.read_through import ReadThrough
from graft_operator.resources.meta import ObjectKey

NamespaceReader = ReadThrough[str, NamespaceFacts]
"""Reads namespaces when a service's consent depends on their labels."""


def namespace_reader(cluster: Cluster, ttl_seconds: float) -> NamespaceReader:
    """Make a reader of namespaces.

    Args:
        cluster: Is read from; what it raises when it does not answer reaches whoever asked.
        ttl_seconds: How long labels are remembered; so long a change takes to count.
    """

    async def fetch(name: str) -> NamespaceFacts:
        try:
            stored = await cluster.get(ObjectKey("Namespace", "", name))
        except ForbiddenError:
            return NamespaceFacts(problem="the operator may not read it")
        if stored is None:
            return NamespaceFacts(problem="does not exist")
        return NamespaceFacts(labels=dict(stored["metadata"].get("labels") or {}))

    return ReadThrough(fetch, ttl_seconds)
