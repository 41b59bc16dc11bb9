"""Reads the labels of namespaces that a service chooses by label, and remembers them for a while.

By name, one at a time: that takes no right beyond the namespace itself. No list, no watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from graft_operator.cluster.base import Cluster
from graft_operator.errors import ForbiddenError
from graft_operator.plan.accept import NamespaceFacts
from graft_operator.resources.meta import ObjectKey


class NamespaceReader:
    """Reads each namespace at most once per `ttl_seconds`."""

    def __init__(self, cluster: Cluster, ttl_seconds: float) -> None:
        """Make a reader.

        Args:
            cluster: Is read from.
            ttl_seconds: How long labels are remembered; so long a change takes to count.
        """
        self._cluster = cluster
        self.ttl_seconds = ttl_seconds
        self._known: dict[str, tuple[float, NamespaceFacts]] = {}

    async def read_all(self, names: Iterable[str]) -> dict[str, NamespaceFacts]:
        """Return what is known of each.

        Raises:
            ClusterError: The cluster did not answer; nothing is known then.
        """
        unique = sorted(set(names))
        facts = await asyncio.gather(*(self._read(name) for name in unique))
        return dict(zip(unique, facts, strict=True))

    async def _read(self, name: str) -> NamespaceFacts:
        now = asyncio.get_running_loop().time()
        until, facts = self._known.get(name, (now, NamespaceFacts()))
        if until <= now:
            facts = await self._fetch(name)
            self._known[name] = (now + self.ttl_seconds, facts)
        return facts

    async def _fetch(self, name: str) -> NamespaceFacts:
        try:
            stored = await self._cluster.get(ObjectKey("Namespace", "", name))
        except ForbiddenError:
            return NamespaceFacts(problem="the operator may not read it")
        if stored is None:
            return NamespaceFacts(problem="does not exist")
        return NamespaceFacts(labels=dict(stored["metadata"].get("labels") or {}))
