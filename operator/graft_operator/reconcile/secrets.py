"""Reads the Secrets that specs refer to, and remembers them for a while.

Tenants' Secrets are read by name, never listed or watched; so a change is seen after `ttl_seconds`,
or at once where the cluster tells of it (`invalidate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graft_operator.cluster.base import Cluster
from graft_operator.errors import ForbiddenError, InvalidManifestError
from graft_operator.reconcile.read_through import ReadThrough
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


SecretReader = ReadThrough[SecretName, SecretView]
"""Reads Secrets when a spec refers to them."""


def secret_reader(
    cluster: Cluster, ttl_seconds: float, understand: Callable[[Manifest], SecretView]
) -> SecretReader:
    """Make a reader of Secrets.

    Args:
        cluster: Is read from; what it raises when it does not answer reaches whoever asked.
        ttl_seconds: How long a Secret is remembered.
        understand: Makes a view of a stored Secret, or raises `InvalidManifestError`.
    """

    async def fetch(name: SecretName) -> SecretView:
        try:
            stored = await cluster.get(ObjectKey("Secret", *name))
        except ForbiddenError:
            return SecretView(problem="the operator may not read it")
        if stored is None:
            return SecretView(problem="does not exist")
        try:
            return understand(stored)
        except InvalidManifestError as error:
            return SecretView(problem=str(error))

    # A Secret that cannot be used is looked at again each time: its owner is mending it.
    return ReadThrough(fetch, ttl_seconds, keeps=lambda view: not view.problem)
