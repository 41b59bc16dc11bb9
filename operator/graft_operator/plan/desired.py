"""The desired set of a service: which revisions its pods are to have, in which part.

Made from specs, verdicts and recorded statuses alone, so that a crash between two writes is
repaired by making it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from graft_operator.plan.accept import Names, Verdict
from graft_operator.plan.rollout import wanted_revision
from graft_operator.plan.views import PodView
from graft_operator.resources.meta import ObjectKey
from graft_operator.resources.status import RevisionStatus
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import AdapterEntry, Shard, build_shards, set_hash

WEIGHT_WANTED = 100
WEIGHT_STANDBY = 0


def desired_shards(
    adapters: Iterable[LoraAdapter],
    verdicts: Mapping[ObjectKey, Verdict],
    pods: Sequence[PodView],
) -> tuple[Shard, ...]:
    """Return all shards of a service."""
    entries: list[AdapterEntry] = []
    for adapter in adapters:
        verdict = verdicts.get(adapter.key)
        if verdict is not None and verdict.names is not None:
            entries += adapter_entries(adapter, verdict.names, pods)
    return build_shards(entries)


def hash_of_set(shards: Iterable[Shard]) -> str:
    """Return the hash that names the whole set."""
    return set_hash(shard.hash for shard in shards)


def adapter_entries(
    adapter: LoraAdapter, names: Names, pods: Sequence[PodView]
) -> list[AdapterEntry]:
    """Return an accepted adapter's entries: the wanted version, and the current one as standby."""
    if adapter.spec.suspend:
        return []
    wanted = wanted_revision(adapter)
    entries = [_entry(adapter, names, wanted, WEIGHT_WANTED, resolver_of(adapter, wanted, pods))]
    current = adapter.status.current_revision
    if current is not None and current.digest is not None and current.id != wanted.id:
        entries.append(_entry(adapter, names, current, WEIGHT_STANDBY, None))
    return entries


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
    adapter: LoraAdapter, names: Names, revision: RevisionStatus, weight: int, resolver: str | None
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
    )
