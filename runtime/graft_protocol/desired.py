"""The desired set of adapters: entries, their shards, and the hashes that name a set.

The operator writes shards, a runtime pod reads them. Each shard is one JSON document carrying the
hash of its own content; the set's hash is the hash of the shard hashes, so there is no counter that
two writers could disagree about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from graft_protocol.base import Message
from graft_protocol.digest import DIGEST_PATTERN, content_hash
from graft_protocol.revisions import parse_revision
from graft_protocol.version import PROTOCOL_VERSION

NUM_SHARDS = 16
"""Shards of a service: each stays far below the 1 MiB limit of a ConfigMap at 1,000s of adapters,
and a change rewrites a sixteenth."""

SERVED_NAME_MAX = 128
_LATER_FIELDS = frozenset(
    {
        "access",
        "tenant",
        "chat_template",
        "chatTemplate",
        "drain_timeout_seconds",
        "drainTimeoutSeconds",
    }
)
"""Fields of an entry that came after protocol 1."""


class Tier(StrEnum):
    """How far ahead of the first request an adapter's weights are brought."""

    DEVICE = "Device"
    HOST = "Host"
    DISK = "Disk"


KEY_HASH_PATTERN = r"^[0-9a-f]{64}$"
KeyHash = Annotated[str, Field(pattern=KEY_HASH_PATTERN)]


def key_hash(key: str) -> str:
    """Return what stands for an API key: its SHA-256, so that no set ever holds a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class TenantLimits(Message):
    """What the service allows the namespace that an entry comes from."""

    max_concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    """Requests of all its adapters together that a pod has in flight; more get a 429."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of a busy engine, relative to other namespaces."""


class AdapterEntry(Message):
    """One revision that every pod of the service registers."""

    revision: str
    """``<namespace>/<name>@<digest12>``, or ``...@pending-<spec hash>`` without `digest`."""
    served_name: Annotated[str, Field(min_length=1, max_length=SERVED_NAME_MAX)]
    """The name under which requests ask for it."""
    aliases: tuple[str, ...] = ()
    """Other names that mean the same route."""
    uri: str
    """Where the files are: ``s3://bucket/prefix`` or ``file:///folder``."""
    digest: Annotated[str, Field(pattern=DIGEST_PATTERN)] | None = None
    """Identity of the content. Without it the entry is only resolved, never served."""
    resolver: str | None = None
    """Pod that resolves an entry without digest. Other pods leave it alone."""
    credential: str | None = None
    """Key of the credential file; None means ambient identity."""
    tier: Tier = Tier.DEVICE
    pinned: bool = False
    """Whether eviction leaves it where it is."""
    weight: Annotated[int, Field(ge=0, le=100)] = 100
    """Share of the served name's requests among its available revisions. 0 is a standby: it serves
    only while no revision of the name with a weight is available. That is how the version before
    an update stays in the set until the new one is proven."""
    required_for_readiness: bool = False
    """Whether pods stay unready until this revision is available (up to the sync timeout)."""
    access: tuple[KeyHash, ...] | None = None
    """Hashes of the API keys that open it; None opens it to everybody, () to nobody. Since 2."""
    tenant: TenantLimits | None = None
    """What its namespace is allowed. Since 2."""
    chat_template: Literal[True] | None = None
    """Whether its own chat template belongs to its files and renders its chats. Since 3."""
    drain_timeout_seconds: Annotated[float, Field(ge=0)] | None = None
    """How long its running requests may go on once it has left the set; 0 ends them at once. None
    takes the service's. Since 4."""

    @property
    def min_protocol(self) -> int:
        """The lowest protocol whose runtimes understand this entry."""
        if self.drain_timeout_seconds is not None:
            return 4
        if self.chat_template:
            return 3
        return 1 if self.access is None and self.tenant is None else 2

    @model_serializer(mode="wrap")
    def _without_what_is_unused(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields that say nothing: runtimes from before refuse them."""
        document: dict[str, Any] = serialise(self)
        return {k: v for k, v in document.items() if v is not None or k not in _LATER_FIELDS}

    @model_validator(mode="after")
    def _revision_matches_digest(self) -> AdapterEntry:
        revision = parse_revision(self.revision)
        if revision.is_pending != (self.digest is None):
            message = f"{self.revision!r}: a pinned revision has a digest, a pending one has none"
            raise ValueError(message)
        return self


class Shard(Message):
    """The entries whose served name hashes to one shard, sorted by revision."""

    index: Annotated[int, Field(ge=0, lt=NUM_SHARDS)]
    min_protocol: int = 1
    entries: tuple[AdapterEntry, ...] = ()
    hash: str = ""
    """`content_hash` of everything else in this document."""


class MalformedShardError(ValueError):
    """A shard document cannot be used; the reader keeps the last good content."""


class RuntimeTooOldError(ValueError):
    """A shard needs a newer runtime than this one."""


def shard_index(served_name: str) -> int:
    """Return the shard that holds all revisions of a served name."""
    return int.from_bytes(hashlib.sha256(served_name.encode()).digest()[:4]) % NUM_SHARDS


def shard_key(index: int) -> str:
    """Return the file name of a shard, which is also its key in the ConfigMap."""
    return f"shard-{index:02d}.json"


def build_shards(entries: Iterable[AdapterEntry]) -> tuple[Shard, ...]:
    """Distribute entries over all shards; every shard exists, empty or not."""
    buckets: list[list[AdapterEntry]] = [[] for _ in range(NUM_SHARDS)]
    for entry in entries:
        buckets[shard_index(entry.served_name)].append(entry)
    return tuple(_sealed(index, bucket) for index, bucket in enumerate(buckets))


def _sealed(index: int, entries: list[AdapterEntry]) -> Shard:
    ordered = tuple(sorted(entries, key=lambda entry: entry.revision))
    min_protocol = max((entry.min_protocol for entry in ordered), default=1)
    shard = Shard(index=index, min_protocol=min_protocol, entries=ordered)
    return shard.model_copy(update={"hash": _hash_of(shard.model_dump(mode="json", by_alias=True))})


def _hash_of(document: Mapping[str, Any]) -> str:
    body = {key: value for key, value in document.items() if key != "hash"}
    return content_hash(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def parse_shard(text: str) -> Shard:
    """Read one shard document.

    Raises:
        RuntimeTooOldError: The document needs a newer protocol; nothing in it was interpreted.
        MalformedShardError: Not JSON, unknown or missing fields, or the hash does not fit.
    """
    try:
        document = json.loads(text)
        min_protocol = int(document["minProtocol"])
    except (ValueError, TypeError, KeyError) as error:
        message = f"not a shard document: {error}"
        raise MalformedShardError(message) from error
    if min_protocol > PROTOCOL_VERSION:
        message = f"needs protocol {min_protocol}, this runtime speaks {PROTOCOL_VERSION}"
        raise RuntimeTooOldError(message)
    if document.get("hash") != _hash_of(document):
        message = "the content does not have the hash it carries"
        raise MalformedShardError(message)
    try:
        return Shard.model_validate(document)
    except ValueError as error:
        raise MalformedShardError(str(error)) from error


def set_hash(shard_hashes: Iterable[str]) -> str:
    """Return the hash of a whole desired set from its shards' hashes in order of index."""
    return content_hash("\n".join(shard_hashes).encode())
