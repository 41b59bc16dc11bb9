"""What a service allows each namespace, and what its accepted adapters have used of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from graft_operator.plan.rollout import wanted_revision
from graft_operator.resources.meta import ObjectKey
from graft_operator.resources.tenancy import TenantSpec
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.desired import TenantLimits
from graft_protocol.reasons import Reason


def tenant_spec(service: InferenceService, namespace: str) -> TenantSpec | None:
    """Return the entry that is about a namespace: one that names it, or one that names none."""
    tenants = service.spec.adapters.tenants
    named = (tenant for tenant in tenants if namespace in tenant.namespaces)
    others = (tenant for tenant in tenants if not tenant.namespaces)
    return next(named, None) or next(others, None)


def tenant_limits(service: InferenceService, namespace: str) -> TenantLimits | None:
    """Return what pods have to hold a namespace to; None if there is nothing."""
    tenant = tenant_spec(service, namespace)
    if tenant is None or (tenant.max_concurrent_requests is None and tenant.weight == 1.0):
        return None
    return TenantLimits(
        max_concurrent_requests=tenant.max_concurrent_requests, weight=tenant.weight
    )


class Facts(NamedTuple):
    """What is known of a version; None where nothing is."""

    bytes: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Ceiling:
    """What a version may have that follows the one that serves.

    For the moment in which its size is found out: it may be ready to serve in the same moment, and
    must not become current before it has been measured.
    """

    namespace: str
    used: int
    """Bytes of all that is counted, without what the update itself adds."""
    served: int
    """Bytes of the version that serves."""
    max_bytes: int | None
    max_rank: int | None
    is_open: bool = False
    """Whether bytes are bounded and those of the version not known: it has to be loaded first."""

    def refusal(self, facts: Facts) -> tuple[Reason, str] | None:
        """Return why there is no room for a version, if there is none."""
        if facts.rank is not None and self.max_rank is not None and facts.rank > self.max_rank:
            message = f"rank {facts.rank} is above the {self.max_rank} that is allowed"
            return Reason.RANK_TOO_LARGE, message
        more = max(0, (facts.bytes or 0) - self.served)
        size = self.used + more
        if self.max_bytes is None or not more or size <= self.max_bytes:
            return None
        message = f"namespace {self.namespace} would have {size} of {self.max_bytes} bytes"
        return Reason.QUOTA_EXCEEDED, message


@dataclass
class QuotaBook:
    """Counts accepted adapters in, in order of precedence."""

    service: InferenceService
    _adapters: Counter[str] = field(default_factory=Counter)
    _bytes: Counter[str] = field(default_factory=Counter)
    _updates: dict[ObjectKey, tuple[int, int]] = field(default_factory=dict)
    """Of adapters with one: bytes of what serves, and what the update adds to them."""

    def refusal(self, adapter: LoraAdapter) -> tuple[Reason, str] | None:
        """Return why there is no room for an adapter, if there is none.

        One that serves is measured by the version that does: what its spec asks for meanwhile is an
        update, and comes after everybody else (`holding_back`).
        """
        namespace, facts = adapter.metadata.namespace, _served(adapter) or _wanted(adapter)
        ceiling = self._ceiling(namespace, served=0)
        too_large = ceiling.refusal(Facts(rank=facts.rank))
        tenant = tenant_spec(self.service, namespace)
        if too_large is not None or tenant is None:
            return too_large
        if tenant.max_adapters is not None and self._adapters[namespace] >= tenant.max_adapters:
            return (
                Reason.QUOTA_EXCEEDED,
                f"namespace {namespace} has its {tenant.max_adapters} adapters already",
            )
        return ceiling.refusal(facts)

    def count_in(self, adapter: LoraAdapter) -> None:
        """Note that an adapter was accepted."""
        facts = _served(adapter) or _wanted(adapter)
        self._adapters[adapter.metadata.namespace] += 1
        self._bytes[adapter.metadata.namespace] += facts.bytes or 0

    def holding_back(self, adapter: LoraAdapter) -> tuple[Reason, str] | None:
        """Return why an accepted adapter's update has to wait; count it in if it has not."""
        served, wanted = _served(adapter), _wanted(adapter)
        if served is None:
            return None
        namespace, size = adapter.metadata.namespace, served.bytes or 0
        refusal = self._ceiling(namespace, size).refusal(wanted)
        growth = max(0, (wanted.bytes or 0) - size) if refusal is None else 0
        self._bytes[namespace] += growth
        self._updates[adapter.key] = size, growth
        return refusal

    def ceiling(self, adapter: LoraAdapter) -> Ceiling | None:
        """Return what its update may have, once all are counted in; None if it has none."""
        if adapter.key not in self._updates:
            return None
        served, growth = self._updates[adapter.key]
        found = self._ceiling(adapter.metadata.namespace, served)
        is_open = found.max_bytes is not None and _wanted(adapter).bytes is None
        return replace(found, used=found.used - growth, is_open=is_open)

    def _ceiling(self, namespace: str, served: int) -> Ceiling:
        tenant = tenant_spec(self.service, namespace)
        ranks = [self.service.spec.adapters.max_rank, tenant.max_rank if tenant else None]
        return Ceiling(
            namespace,
            self._bytes[namespace],
            served,
            max_bytes=tenant.max_bytes if tenant else None,
            max_rank=min((rank for rank in ranks if rank is not None), default=None),
        )


def _served(adapter: LoraAdapter) -> Facts | None:
    """Return what is known of the version that serves, if the spec asks for another one."""
    current = adapter.status.current_revision
    if current is None or current.digest is None or current.id == wanted_revision(adapter).id:
        return None
    return Facts(current.bytes, current.rank)


def _wanted(adapter: LoraAdapter) -> Facts:
    """Return what is known of the version that the spec asks for.

    What it asked for before does not count: a smaller source has to help one that was refused.
    """
    status, wanted = adapter.status, wanted_revision(adapter)
    known = [one for one in (status.candidate_revision, status.current_revision) if one is not None]
    found = [one for one in known if one.id == wanted.id or one.source_hash == wanted.source_hash]
    declared = adapter.spec.declared.rank if adapter.spec.declared else None
    size, rank = (found[0].bytes, found[0].rank) if found else (None, None)
    return Facts(size, rank if declared is None else declared)
