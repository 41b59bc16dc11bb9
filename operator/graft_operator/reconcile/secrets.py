"""Reads the Secrets that specs refer to, and remembers them for a while.

Tenants' Secrets are read by name, never listed or watched; so a change is seen after `ttl_seconds`,
or at once where the cluster tells of it (`invalidate`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from graft_operator.cluster.base import Cluster
from graft_operator.errors import ForbiddenError, InvalidManifestError
from graft_operator.resources.api_keys import parse_api_keys
from graft_operator.resources.credentials import parse_credential
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_protocol.credentials import Credential

SecretName = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class SecretView:
    """What a Secret says, or why it says nothing."""

    credential: Credential | None = None
    key_hashes: tuple[str, ...] = ()
    """Of API keys."""
    problem: str = ""


def as_credential(secret: Manifest) -> SecretView:
    """Read a Secret as one that opens a source."""
    return SecretView(credential=parse_credential(secret))


def as_api_keys(secret: Manifest) -> SecretView:
    """Read a Secret as one that holds API keys."""
    return SecretView(key_hashes=parse_api_keys(secret))


class SecretReader:
    """Reads each Secret at most once per `ttl_seconds`."""

    def __init__(
        self,
        cluster: Cluster,
        ttl_seconds: float,
        understand: Callable[[Manifest], SecretView],
    ) -> None:
        """Make a reader.

        Args:
            cluster: Is read from.
            ttl_seconds: How long a Secret is remembered.
            understand: Makes a view of a stored Secret, or raises `InvalidManifestError`.
        """
        self._cluster = cluster
        self._understand = understand
        self.ttl_seconds = ttl_seconds
        self._views: dict[SecretName, tuple[float, SecretView]] = {}

    def invalidate(self, name: SecretName) -> None:
        """Forget a Secret."""
        self._views.pop(name, None)

    async def read_all(self, names: Iterable[SecretName]) -> dict[SecretName, SecretView]:
        """Return each Secret.

        Raises:
            ClusterError: The cluster did not answer; nothing is known then.
        """
        unique = sorted(set(names))
        views = await asyncio.gather(*(self._read(name) for name in unique))
        return dict(zip(unique, views, strict=True))

    async def _read(self, name: SecretName) -> SecretView:
        now = asyncio.get_running_loop().time()
        known = self._views.get(name)
        if known is not None and known[0] > now:
            return known[1]
        view = await self._fetch(name)
        # A Secret that cannot be used is looked at again each time: its owner is mending it.
        if not view.problem:
            self._views[name] = (now + self.ttl_seconds, view)
        return view

    async def _fetch(self, name: SecretName) -> SecretView:
        try:
            stored = await self._cluster.get(ObjectKey("Secret", *name))
        except ForbiddenError:
            return SecretView(problem="the operator may not read it")
        if stored is None:
            return SecretView(problem="does not exist")
        try:
            return self._understand(stored)
        except InvalidManifestError as error:
            return SecretView(problem=str(error))
