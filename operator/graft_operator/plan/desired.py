"""The desired set of a service: which revisions its pods are to have, in which part.

Made from specs, verdicts and recorded statuses alone, so that a crash between two writes is
repaired by making it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from graft_operator.plan.accept import Names, Verdict
from graft_operator.plan.canary import ALL
from graft_operator.plan.rollout import is_rejected, wanted_revision
from graft_operator.plan.signature import without_revision
from graft_operator.plan.views import PodView
from graft_operator.resources.meta import ObjectKey
from graft_operator.resources.status import RevisionStatus
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import AdapterEntry, Shard, TenantLimits, build_shards, set_hash

WEIGHT_STANDBY = 0


class Grant(NamedTuple):
    """What goes with an adapter besides its versions."""

    access: tuple[str, ...] | None = None
    """Hashes of the keys that open it; None is open to all."""
    tenant: TenantLimits | None = None
    """What its namespace is allowed."""


OPEN = Grant()


def desired_shards(
    adapters: Iterable[LoraAdapter],
    verdicts: Mapping[ObjectKey, Verdict],
    pods: Sequence[PodView],
    grants: Mapping[ObjectKey, Grant] = MappingProxyType({}),
) -> tuple[Shard, ...]:
    """Return all shards of a service."""
    entries: list[AdapterEntry] = []
    for adapter in adapters:
        verdict = verdicts.get(adapter.key)
        if verdict is not None and verdict.names is not None:
            grant = grants.get(adapter.key, OPEN)
            entries += adapter_entries(
                without_revision(adapter, verdict.untrusted),
                verdict.names,
                pods,
                grant,
                held_back=verdict.held_back is not None,
                is_unmeasured=verdict.is_unmeasured,
            )
    return build_shards(entries)


def hash_of_set(shards: Iterable[Shard]) -> str:
    """Return the hash that names the whole set."""
    return set_hash(shard.hash for shard in shards)


def adapter_entries(
    adapter: LoraAdapter,
    names: Names,
    pods: Sequence[PodView],
    grant: Grant = OPEN,
    *,
    held_back: bool = False,
    is_unmeasured: bool = False,
) -> list[AdapterEntry]:
    """Return an accepted adapter's entries: the wanted version and the current one.

    Without steps the wanted one has all requests as soon as it can serve, and the current one
    stands by until then. With steps it is the other way round, until its share grows; so it is
    without, as long as the wanted one may turn out to be too large.
    """
    if adapter.spec.suspend:
        return []
    wanted, current = wanted_revision(adapter), adapter.status.current_revision
    if current is None or current.digest is None or (current.id == wanted.id and not held_back):
        current = None
    elif held_back or is_rejected(adapter, wanted):
        return [_entry(adapter, names, current, ALL, None, grant)]
    weight = ALL if current is None else _share(adapter, wanted, is_unmeasured=is_unmeasured)
    resolver = resolver_of(adapter, wanted, pods)
    entries = [_entry(adapter, names, wanted, weight, resolver, grant)]
    if current is not None:
        entries.append(_entry(adapter, names, current, ALL - weight, None, grant))
    return entries


def _share(adapter: LoraAdapter, wanted: RevisionStatus, *, is_unmeasured: bool) -> int:
    """Return what the wanted version has of the requests while another one serves."""
    if is_unmeasured:
        # Pods load it all the same, and so find out how large it is.
        return WEIGHT_STANDBY
    if not adapter.spec.rollout.steps or adapter.spec.rollout.promote == wanted.id:
        return ALL
    return wanted.weight or WEIGHT_STANDBY


def resolver_of(
    adapter: LoraAdapter, wanted: RevisionStatus, pods: Sequence[PodView]
) -> str | None:
    """Name the pod that finds out a version's digest: the same one as long as the pods are."""
    if wanted.digest is not None or not pods:
        return None
    best = max((pod.ready, pod.report is not None) for pod in pods)
    able = [pod.name for pod in pods if (pod.ready, pod.report is not None) == best]
    return max(able, key=lambda name: _affinity(adapter.qualified_name, name))


def _affinity(adapter: str, pod: str) -> bytes:
    """Spread adapters over pods without remembering anything (highest random weight)."""
    return hashlib.sha256(f"{adapter}\n{pod}".encode()).digest()


def _entry(
    adapter: LoraAdapter,
    names: Names,
    revision: RevisionStatus,
    weight: int,
    resolver: str | None,
    grant: Grant,
) -> AdapterEntry:
    return AdapterEntry(
        revision=revision.id,
        served_name=names.served,
        aliases=names.aliases,
        uri=revision.uri,
        digest=revision.digest,
        resolver=resolver,
        credential=revision.credential,
        tier=adapter.spec.tier,
        pinned=adapter.spec.pinned,
        weight=weight,
        required_for_readiness=adapter.spec.required_for_readiness,
        access=grant.access,
        tenant=grant.tenant,
        chat_template=True if revision.chat_template else None,
        drain_timeout_seconds=adapter.spec.drain_timeout_seconds,
    )
