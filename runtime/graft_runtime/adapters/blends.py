"""Weighted sums of adapters that requests ask for: names, pages, and which may go. Pure.

The sum is exact: the parts' pages lie beside one another in one slot, each B multiplied with its
weight (`graft_runtime.adapters.slots`). So a sum takes as many pages as its parts together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from graft_protocol.desired import AdapterEntry
from graft_protocol.revisions import RUNTIME_NAMESPACE, pinned_revision
from graft_runtime.adapters.revision import Part, Revision
from graft_runtime.errors import InvalidRequestError, OverloadedError
from graft_runtime.layers.lora.layout import pages_for

MAX_PARTS = 8
PREFIX = "merge-"


def equal_weights(count: int) -> list[float]:
    """Return what so many adapters count where nobody says: their mean."""
    return [1 / count] * count


@dataclass(frozen=True)
class BlendedAdapter:
    """One sum."""

    entry: AdapterEntry
    parts: tuple[Part, ...]


def blend(
    revisions: Sequence[Revision], weights: Sequence[float], max_pages: int
) -> BlendedAdapter:
    """Name the weighted sum of adapters; the same sum always has the same name.

    Raises:
        InvalidRequestError: Too many parts, or more pages than the device has.
    """
    if len(revisions) > MAX_PARTS:
        message = f"at most {MAX_PARTS} adapters can be merged"
        raise InvalidRequestError(message, param="merged_adapters.ids")
    ranks = [one.prepared.rank for one in revisions if one.prepared is not None]
    pages = sum(map(pages_for, ranks))
    if pages > max_pages:
        message = f"the adapters together take {pages} pages of rank 16; there are {max_pages}"
        raise InvalidRequestError(message, param="merged_adapters.ids")
    parts = tuple(
        Part(one.entry.revision, weight, one.entry.access)
        for one, weight in zip(revisions, weights, strict=True)
    )
    digests = [one.entry.digest for one in revisions]
    text = json.dumps([*zip(digests, weights, strict=True)])
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    name = f"{PREFIX}{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"
    entry = AdapterEntry(
        revision=pinned_revision(RUNTIME_NAMESPACE, name, digest),
        served_name=name,
        uri="merge:",
        digest=digest,
        access=_access(revisions),
    )
    return BlendedAdapter(entry, parts)


def _access(revisions: Sequence[Revision]) -> tuple[str, ...] | None:
    """Return who may use the sum: those who may use every part."""
    listed = [set(one.entry.access) for one in revisions if one.entry.access is not None]
    return tuple(sorted(set.intersection(*listed))) if listed else None


@dataclass
class Blends:
    """Which sums are kept, and which may go for another."""

    limit: int
    _used: dict[str, None] = field(default_factory=dict)
    """Revisions, the longest unused first."""

    def use(self, revision: str, busy: AbstractSet[str]) -> str | None:
        """Note a use; return the revision that is to go for it, if there is no room.

        Raises:
            OverloadedError: All are in use.
        """
        known = revision in self._used
        self._used.pop(revision, None)
        gone = None
        if not known and len(self._used) >= self.limit:
            gone = next((one for one in self._used if one not in busy), None)
            if gone is None:
                message = f"{self.limit} merged adapters are in use"
                raise OverloadedError(message, retry_after_seconds=1)
            del self._used[gone]
        self._used[revision] = None
        return gone
