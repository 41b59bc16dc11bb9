"""How an adapter moves from one version of its content to the next.

The wanted version comes in beside the current one; it becomes current when every pod that takes
requests serves it. Until then, and for good if it cannot be loaded, the current one serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from graft_operator.plan.canary import shift
from graft_operator.plan.views import PodView, taking_requests
from graft_operator.resources.credentials import credential_key
from graft_operator.resources.status import Rejection, RevisionStatus
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.digest import content_hash
from graft_protocol.revisions import pending_revision, pinned_revision


class Versions(NamedTuple):
    """Where an adapter's rollout stands; `candidate` is None when the wanted one is current."""

    current: RevisionStatus | None
    candidate: RevisionStatus | None
    rejection: Rejection | None = None
    """Why the version that the spec asks for is not the wanted one."""

    @property
    def wanted(self) -> RevisionStatus | None:
        """The version the spec asks for."""
        return self.candidate or self.current


def wanted_revision(adapter: LoraAdapter) -> RevisionStatus:
    """Return the version the spec asks for, with its digest if spec or status know it."""
    namespace, name = adapter.metadata.namespace, adapter.metadata.name
    source, status = adapter.spec.source, adapter.status
    credential = _credential_of(adapter)
    has_template = adapter.spec.chat_template == "Adapter"
    # Only where there is one, so that versions from before keep their hash.
    mark = "\nchat template" if has_template else ""
    text = f"{source.uri}\n{source.digest or ''}\n{credential or ''}{mark}"
    wanted = content_hash(text.encode())
    for known in (status.current_revision, status.candidate_revision):
        if known is not None and known.source_hash == wanted and known.digest:
            if known.signature == source.signature:
                return known
            # What is signed anew is no other version.
            return known.model_copy(update={"signature": source.signature})
    if source.digest is not None:
        revision = pinned_revision(namespace, name, source.digest)
    else:
        revision = pending_revision(namespace, name, wanted)
    return RevisionStatus(
        id=revision,
        digest=source.digest,
        signature=source.signature,
        uri=source.uri,
        credential=credential,
        source_hash=wanted,
        chat_template=True if has_template else None,
    )


def measured_revision(adapter: LoraAdapter, pods: Sequence[PodView]) -> RevisionStatus:
    """Return the version the spec asks for, with all that pods have found out about it."""
    return _with_facts(_resolved(adapter, wanted_revision(adapter), pods), pods)


def is_rejected(adapter: LoraAdapter, revision: RevisionStatus) -> bool:
    """Whether a version was taken out again, and the source is still the same."""
    rejected = adapter.status.rejected_revision
    return rejected is not None and rejected.source_hash == revision.source_hash


def advance(
    adapter: LoraAdapter, pods: Sequence[PodView], now: str = "", *, held_back: bool = False
) -> Versions:
    """Return the versions after what the pods report has been taken into account.

    One that is held back stays a candidate without a share, and starts anew when it may. Where the
    content is the one that serves, and only what the spec says of it is refused, there is none.
    """
    before = adapter.status
    if before.current_revision is not None and is_rejected(adapter, wanted_revision(adapter)):
        serving_on = _with_facts(before.current_revision, pods)
        return Versions(serving_on, None, before.rejected_revision)
    wanted = measured_revision(adapter, pods)
    current = adapter.status.current_revision
    if current is not None and held_back:
        candidate = _settled(wanted) if current.id != wanted.id else None
        return Versions(_with_facts(current, pods), candidate)
    if current is not None and current.id != wanted.id:
        serving = taking_requests(pods)
        if serving and all(pod.serves(wanted.id) for pod in serving):
            moved = shift(adapter.spec.rollout, wanted, pods, now)
            if moved.candidate is None and moved.rejection is None:
                return Versions(_settled(wanted), None)
            return Versions(_with_facts(current, pods), moved.candidate, moved.rejection)
        return Versions(_with_facts(current, pods), wanted)
    if current is None and not any(pod.serves(wanted.id) for pod in taking_requests(pods)):
        return Versions(None, wanted)
    return Versions(_settled(wanted), None)


def _settled(revision: RevisionStatus) -> RevisionStatus:
    """Forget the steps that led here."""
    return revision.model_copy(update={"weight": None, "step": None, "step_since": None})


def _credential_of(adapter: LoraAdapter) -> str | None:
    ref = adapter.spec.source.credentials_secret_ref
    return credential_key(adapter.metadata.namespace, ref.name) if ref else None


def _resolved(
    adapter: LoraAdapter, wanted: RevisionStatus, pods: Sequence[PodView]
) -> RevisionStatus:
    """Pin a pending version as soon as a pod has found its digest."""
    if wanted.digest is not None:
        return wanted
    for pod in pods:
        report = pod.revision(wanted.id)
        if report is not None and report.digest is not None:
            metadata = adapter.metadata
            pinned = pinned_revision(metadata.namespace, metadata.name, report.digest)
            # A branch may move on; the commit that was read stays.
            uri = report.origin or wanted.uri
            found = {"id": pinned, "digest": report.digest, "uri": uri}
            return wanted.model_copy(update=found)
    return wanted


def _with_facts(revision: RevisionStatus, pods: Sequence[PodView]) -> RevisionStatus:
    """Add what the pods found out; what they have not (yet) said again stays as it was."""
    facts: dict[str, object] = {}
    for pod in pods:
        report = pod.revision(revision.id)
        if report is None:
            continue
        found = {
            "bytes": report.bytes,
            "rank": report.rank,
            "target_modules": report.target_modules or None,
        }
        facts |= {key: value for key, value in found.items() if value is not None}
    ready = sum(pod.serves(revision.id) for pod in taking_requests(pods))
    return revision.model_copy(update={**facts, "ready_replicas": ready})
