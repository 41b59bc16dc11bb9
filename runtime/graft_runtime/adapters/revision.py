"""One revision of an adapter in a pod: where it is on its way, and how it is reported.

`graft_runtime.adapters.manager` moves it; routes, gateway and reports read it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from graft_protocol.desired import AdapterEntry, Tier
from graft_protocol.reasons import AdapterState, Reason
from graft_protocol.status import RevisionReport
from graft_runtime.ipc.messages import AdapterPrepared

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0
"""Retries of what may mend itself: doubling from the first to the last, then on and on."""


class Phase(Enum):
    """Where a revision is on its way."""

    WAITING = auto()
    FETCHING = auto()
    REGISTERING = auto()
    SERVING = auto()
    DRAINING = auto()
    FAILED = auto()
    RESOLVED = auto()
    """A pending revision whose digest is known; its pinned successor is served, not this one."""


class Part(NamedTuple):
    """One revision of several that are added up."""

    revision: str
    weight: float
    access: tuple[str, ...] | None = None
    """Who might use it when it was added up; the sum goes when that changes."""


@dataclass(slots=True)
class Revision:
    """What is known of one revision."""

    entry: AdapterEntry
    phase: Phase = Phase.WAITING
    prepared: AdapterPrepared | None = None
    reason: Reason = Reason.PENDING
    message: str = ""
    tier: Tier | None = None
    failures: int = 0
    """Attempts that failed since it was last on the device."""
    retry_at: float | None = None
    drain_until: float | None = None
    wanted_at: float = 0.0
    """When it entered the desired set."""
    parts: tuple[Part, ...] = ()
    """What it is the weighted sum of, if it was derived from others."""

    @property
    def serves(self) -> bool:
        """Whether a new request may use it."""
        return self.phase is Phase.SERVING

    def fail(self, reason: Reason, message: str, now: float | None, pod: str) -> None:
        """Note why it cannot be used, and when its pod tries again; never without a time."""
        self.phase, self.reason, self.message = Phase.FAILED, reason, message
        if now is not None:
            who = f"{pod} {self.entry.revision}"
            self.retry_at = now + retry_seconds(self.failures, who)
            self.failures += 1

    def answers_to(self, name: str) -> bool:
        """Whether a model name in a request may mean it."""
        return name == self.entry.served_name or name in self.entry.aliases

    @property
    def may_be_registered(self) -> bool:
        """Whether the engine may know it, whatever became of it since."""
        return self.prepared is not None and self.phase is not Phase.RESOLVED

    @property
    def is_near(self) -> bool:
        """Whether it is about to serve, so that holding a request for it is worth while."""
        return self.phase is Phase.REGISTERING


def retry_seconds(failures: int, who: str) -> float:
    """Return the pause after an attempt with so many failures before it: 1, 2, 4 s ... and 60 s.

    Up to a half is taken off, as much as `who` and the number decide: pods that failed together do
    not come back together.
    """
    longest = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures, 30), LAST_RETRY_SECONDS)
    digest = hashlib.sha256(f"{who} {failures}".encode(errors="surrogatepass")).digest()
    return longest * (1.0 - int.from_bytes(digest[:4]) / 2**33)


STATES = {
    Phase.WAITING: AdapterState.PENDING,
    Phase.FETCHING: AdapterState.DOWNLOADING,
    Phase.REGISTERING: AdapterState.LOADING,
    Phase.SERVING: AdapterState.AVAILABLE,
    Phase.DRAINING: AdapterState.DRAINING,
    Phase.FAILED: AdapterState.FAILED,
    Phase.RESOLVED: AdapterState.PENDING,
}


def report(revision: Revision, active_requests: int) -> RevisionReport:
    """Describe a revision as the operator reads it."""
    prepared = revision.prepared
    return RevisionReport(
        revision=revision.entry.revision,
        state=STATES[revision.phase],
        reason=revision.reason,
        message=revision.message[:1024],
        digest=revision.entry.digest if prepared is None else prepared.digest,
        origin=None if prepared is None else prepared.origin,
        bytes=None if prepared is None else prepared.bytes,
        rank=None if prepared is None else prepared.rank,
        target_modules=() if prepared is None else prepared.target_modules,
        weight=0 if revision.phase is Phase.DRAINING else revision.entry.weight,
        tier=revision.tier,
        active_requests=active_requests,
        warning="" if prepared is None else prepared.warning,
    )
