"""What decisions are made from: a pod as the cluster and its own report show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from graft_protocol.reasons import AdapterState, EngineState
from graft_protocol.status import RevisionReport, RuntimeStatus


@dataclass(frozen=True)
class PodView:
    """One runtime pod."""

    name: str
    ready: bool
    """Whether the cluster sends it requests."""
    report: RuntimeStatus | None
    """What it last said of itself; None while it does not answer."""
    address: str = ""
    """Where clients reach it, ``http://host:port``."""
    config_hash: str = ""
    """The configuration it was started with."""
    template_revision: int = 0
    """Version of the pod template it was made from."""
    image: str = ""
    """Image of its runtime, as its template has it."""
    trouble: str = ""
    """Why it does not run, as the cluster tells it."""
    unschedulable: str = ""
    """Why it has no node, as the scheduler tells it."""

    def revision(self, revision: str) -> RevisionReport | None:
        """Return the pod's report on one revision, if it has one."""
        return self._by_revision.get(revision)

    @cached_property
    def _by_revision(self) -> dict[str, RevisionReport]:
        revisions = self.report.revisions if self.report else ()
        return {report.revision: report for report in revisions}

    def serves(self, revision: str) -> bool:
        """Whether a request for this revision succeeds on this pod now."""
        report = self.revision(revision)
        return report is not None and report.state is AdapterState.AVAILABLE

    def shard_hash(self, index: int) -> str:
        """Return the hash of a shard as the pod has it in force; empty if none is known."""
        shards = self.report.shards if self.report else ()
        return shards[index].hash if index < len(shards) else ""

    @property
    def has_failed(self) -> bool:
        """Whether the engine gave up."""
        return self.report is not None and self.report.state is EngineState.FAILED


@dataclass(frozen=True)
class DeploymentView:
    """A service's Deployment, as its controller tells of it."""

    replicas: int
    """Pods it is to have."""
    is_scaled_by_others: bool = False
    """Whether an autoscaler, or a person, wrote that number last."""
    refusal: str = ""
    """Why the cluster does not let it create a pod."""
    overdue: str = ""
    """Why it counts as stuck, once its deadline has passed."""


def taking_requests(pods: Iterable[PodView]) -> tuple[PodView, ...]:
    """Return the pods that clients reach, whether they answer us or not."""
    return tuple(pod for pod in pods if pod.ready)
