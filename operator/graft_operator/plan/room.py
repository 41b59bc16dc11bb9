"""What fits into the objects that carry a service's set to its pods, counted before it is written.

An API server takes no ConfigMap and no Secret above 1 MiB. Without a count of what goes in, the
adapters of one namespace could keep all others from being written; with it, who comes last waits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from graft_operator.resources.api_keys import KEYS_MAX
from graft_operator.resources.credentials import credential_index, credential_key
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.desired import shard_index
from graft_protocol.reasons import Reason

SHARD_MAX = 1_000_000
"""Most bytes of a shard's entries."""
CREDENTIALS_MAX = 1_000_000
"""Most bytes of the credential files in one Secret."""

_ENTRY_BYTES = 640
"""Most that an entry takes whatever the adapter: names of fields, digest, resolver, limits."""
_KEY_BYTES = 67
"""What the hash of an API key takes in an entry."""
_VERSIONS = 2
"""Entries of an adapter while it is updated: there has to be room for that, too."""


@dataclass
class RoomBook:
    """Counts accepted adapters in, in order of precedence."""

    service: InferenceService
    credential_sizes: Mapping[tuple[str, str], int]
    """By namespace and name of a Secret: bytes of the credential file it becomes."""
    key_counts: Mapping[tuple[str, str], int]
    """By namespace and name of a Secret: how many API keys it holds."""
    _shards: Counter[int] = field(default_factory=Counter)
    _credentials: Counter[int] = field(default_factory=Counter)
    _known: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        ref = self.service.spec.model.credentials_secret_ref
        if ref is not None:
            self._take((self.service.metadata.namespace, ref.name))

    def refusal(self, adapter: LoraAdapter, names: tuple[str, ...]) -> tuple[Reason, str] | None:
        """Return why there is no room for an adapter under its names, if there is none."""
        keys = self._num_keys(adapter)
        if keys > KEYS_MAX:
            return Reason.QUOTA_EXCEEDED, f"spec.access opens it to {keys} keys, above {KEYS_MAX}"
        shard = shard_index(names[0])
        if self._shards[shard] + entry_bytes(adapter, names, keys) > SHARD_MAX:
            message = "the part of the service's set that would hold it is full"
            return Reason.QUOTA_EXCEEDED, message
        secret = _secret_of(adapter)
        if secret is None or credential_key(*secret) in self._known:
            return None
        index, size = credential_index(credential_key(*secret)), self._size(secret)
        if self._credentials[index] + size > CREDENTIALS_MAX:
            return Reason.QUOTA_EXCEEDED, "the Secret that would hold its credentials is full"
        return None

    def count_in(self, adapter: LoraAdapter, names: tuple[str, ...]) -> None:
        """Note that an adapter was accepted."""
        keys = self._num_keys(adapter)
        self._shards[shard_index(names[0])] += entry_bytes(adapter, names, keys)
        secret = _secret_of(adapter)
        if secret is not None:
            self._take(secret)

    def _take(self, secret: tuple[str, str]) -> None:
        key = credential_key(*secret)
        if key not in self._known:
            self._known.add(key)
            self._credentials[credential_index(key)] += self._size(secret)

    def _size(self, secret: tuple[str, str]) -> int:
        return self.credential_sizes.get(secret, 0)

    def _num_keys(self, adapter: LoraAdapter) -> int:
        access = adapter.spec.access
        refs = access.api_key_secret_refs if access is not None else ()
        namespace = adapter.metadata.namespace
        return sum(self.key_counts.get((namespace, ref.name), 0) for ref in refs)


def entry_bytes(adapter: LoraAdapter, names: tuple[str, ...], num_keys: int) -> int:
    """Return the most bytes that an adapter's entries take in their shard."""
    status = adapter.status
    uris = [one.uri for one in (status.current_revision, status.candidate_revision) if one]
    uri = max((adapter.spec.source.uri, *uris), key=len)
    secret = _secret_of(adapter)
    key = credential_key(*secret) if secret is not None else ""
    texts = (adapter.qualified_name, uri, key, *names)
    one = _ENTRY_BYTES + len(json.dumps(texts)) + _KEY_BYTES * num_keys
    return _VERSIONS * one


def _secret_of(adapter: LoraAdapter) -> tuple[str, str] | None:
    ref = adapter.spec.source.credentials_secret_ref
    return (adapter.metadata.namespace, ref.name) if ref is not None else None
