"""Who is owed the engine's time: a counter of served tokens per tenant.

The tenant with the least counter goes next, so that between two tenants that both have requests
waiting the difference of what they got, by weight, stays bounded, however unlike their requests
are. Knows no request, no tensor and no clock; the waiting queue and the scheduler call it.

Source: Sheng et al., "Fairness in Serving Large Language Models", arXiv:2401.00588 (virtual token
counter).
"""

from __future__ import annotations

from dataclasses import dataclass, field

PROMPT_COST = 1.0
"""Charged for a token of a prompt that is computed. One found in the cache is free."""
OUTPUT_COST = 2.0
"""Charged for a generated token: it takes a step of its own."""


@dataclass(slots=True)
class _Account:
    """One tenant."""

    served: float = 0.0
    """Cost of what it got, divided by its weight."""
    num_requests: int = 0
    """Its requests that have not ended."""
    weight: float = 1.0
    """Its share, as its newest request has it."""


@dataclass
class FairShare:
    """Counters of the tenants that have requests, and of those that had some lately."""

    _accounts: dict[str, _Account] = field(default_factory=dict)
    _now: float = 0.0
    """Least counter among tenants with requests when it was last looked at."""

    def enter(self, tenant: str, weight: float = 1.0) -> None:
        """Count a request in, and note its tenant's share.

        A tenant that had none begins at the least counter of those that have some: it may not save
        up for later what it did not use.
        """
        account = self._accounts.setdefault(tenant, _Account())
        if not account.num_requests:
            self._prune()
            account.served = max(account.served, self._now)
            self._accounts[tenant] = account
        account.num_requests += 1
        account.weight = weight

    def leave(self, tenant: str) -> None:
        """Count a request out."""
        self._accounts[tenant].num_requests -= 1

    def charge(self, tenant: str, cost: float) -> None:
        """Add to a tenant's counter what one of its requests got."""
        account = self._accounts[tenant]
        account.served += cost / account.weight

    def served(self, tenant: str) -> float:
        """Return the counter of a tenant that has requests."""
        return self._accounts[tenant].served

    def _prune(self) -> None:
        """Move the time on, and forget tenants without requests that are owed nothing by it."""
        active = [one.served for one in self._accounts.values() if one.num_requests]
        self._now = max(self._now, min(active, default=self._now))
        self._accounts = {
            tenant: one
            for tenant, one in self._accounts.items()
            if one.num_requests or one.served > self._now
        }
