"""What a service allows each namespace, and what its accepted adapters have used of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from graft_operator.plan.rollout import wanted_revision
from graft_operator.resources.meta import condition_of
from graft_operator.resources.status import RevisionStatus
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


@dataclass
class QuotaBook:
    """Counts accepted adapters in, in order of precedence."""

    service: InferenceService
    _adapters: Counter[str] = field(default_factory=Counter)
    _bytes: Counter[str] = field(default_factory=Counter)

    def refusal(self, adapter: LoraAdapter) -> tuple[Reason, str] | None:
        """Return why there is no room for an adapter, if there is none."""
        return self._refusal(adapter.metadata.namespace, _rank(adapter), num_bytes(adapter))

    def is_about_the_update_alone(self, adapter: LoraAdapter) -> bool:
        """Whether there is room for the version that serves, had its successor not come."""
        current = adapter.status.current_revision
        if current is None or current.digest is None or current.id == wanted_revision(adapter).id:
            return False
        namespace = adapter.metadata.namespace
        return self._refusal(namespace, current.rank, current.bytes or 0) is None

    def _refusal(
        self, namespace: str, rank: int | None, num_bytes: int
    ) -> tuple[Reason, str] | None:
        tenant = tenant_spec(self.service, namespace)
        ranks = [self.service.spec.adapters.max_rank, tenant.max_rank if tenant else None]
        bound = min((r for r in ranks if r is not None), default=None)
        if rank is not None and bound is not None and rank > bound:
            return Reason.RANK_TOO_LARGE, f"rank {rank} is above the {bound} that is allowed"
        if tenant is None:
            return None
        if tenant.max_adapters is not None and self._adapters[namespace] >= tenant.max_adapters:
            return (
                Reason.QUOTA_EXCEEDED,
                f"namespace {namespace} has its {tenant.max_adapters} adapters already",
            )
        size = self._bytes[namespace] + num_bytes
        if tenant.max_bytes is not None and size > tenant.max_bytes:
            message = f"namespace {namespace} would have {size} of {tenant.max_bytes} bytes"
            return Reason.QUOTA_EXCEEDED, message
        return None

    def count_in(self, adapter: LoraAdapter, *, without_update: bool = False) -> None:
        """Note that an adapter was accepted, or the version alone that serves."""
        current = adapter.status.current_revision
        size = current.bytes or 0 if without_update and current else num_bytes(adapter)
        self._adapters[adapter.metadata.namespace] += 1
        self._bytes[adapter.metadata.namespace] += size


def num_bytes(adapter: LoraAdapter) -> int:
    """Return the size of an adapter's larger version as far as it is known."""
    return max((revision.bytes or 0 for revision in _versions(adapter)), default=0)


def _rank(adapter: LoraAdapter) -> int | None:
    declared = adapter.spec.declared.rank if adapter.spec.declared else None
    found = [revision.rank for revision in _versions(adapter)]
    return declared if declared is not None else next(iter(found), None)


def _versions(adapter: LoraAdapter) -> list[RevisionStatus]:
    """Return the known versions that take room, the newest first.

    Of an adapter that was refused that is the one its spec asks for now, and no other: a smaller
    source has to help, and the larger one that was tried before it takes no room any more.
    """
    status = adapter.status
    known = [one for one in (status.candidate_revision, status.current_revision) if one is not None]
    accepted = condition_of(status.conditions, "Accepted")
    if accepted is None or accepted.status != "False":
        return known
    wanted = wanted_revision(adapter).source_hash
    return [revision for revision in known if revision.source_hash == wanted]
