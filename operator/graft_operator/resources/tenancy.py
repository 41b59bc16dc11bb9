"""What a service allows the namespaces whose adapters it takes, and an adapter its callers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from graft_operator.resources.fields import Bytes, Count, Namespace, ObjectName
from graft_operator.resources.meta import Closed

Rank = Annotated[int, Field(ge=1, le=512)]


class TenantSpec(Closed):
    """Limits of namespaces, for each of them by itself. What is left out is not limited."""

    namespaces: Annotated[tuple[Namespace, ...], Field(max_length=64)] = ()
    """Which namespaces. Without any: all that no other entry names."""
    max_adapters: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Adapters of a namespace that are accepted. The longest served come first."""
    max_bytes: Bytes | None = None
    """Size of its accepted adapters together, bytes, as far as pods have found them out."""
    max_rank: Rank | None = None
    """Largest rank of an adapter, as declared or as found."""
    max_concurrent_requests: Count | None = None
    """Requests for its adapters that one pod has in flight; further ones get a 429. It holds for
    each pod by itself: what a service takes from a namespace grows with its replicas, as its
    capacity does, and no pod has to ask another before it answers."""
    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Its share of a busy engine, relative to other namespaces."""


class KeySecretRef(Closed):
    """A Secret with API keys, in the adapter's own namespace."""

    name: ObjectName
    """Name of the Secret. Every value in it is a key of at least 16 characters, or the hash of one:
    `sha256:` and 64 hexadecimal digits."""


class AccessSpec(Closed):
    """Who may use an adapter. To everybody else it looks as if it did not exist."""

    api_key_secret_refs: Annotated[tuple[KeySecretRef, ...], Field(min_length=1, max_length=8)]
    """Secrets with the keys that open it, sent as `Authorization: Bearer` or `x-api-key`."""


class DeclaredSpec(Closed):
    """What the adapter's files will turn out to be, so that a refusal need not wait for them."""

    rank: Rank | None = None
    """Its largest rank."""
