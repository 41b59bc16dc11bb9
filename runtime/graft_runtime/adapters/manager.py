"""The life of every revision in one pod: desired, fetched, registered, serving, drained, gone.

A pure state machine: events from the desired set, the loader and the engine go in, messages for the
loader and the engine come out. It does no I/O and reads no clock; `graft_runtime.pod` drives it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from graft_protocol.desired import AdapterEntry, Tier
from graft_protocol.reasons import REASONS, AdapterState, Reason
from graft_protocol.status import RevisionReport
from graft_runtime.adapters.revision import STATES, Part, Phase, Revision, report
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    AdapterResidency,
    PrepareAdapter,
    RegisterAdapter,
    ReleaseAdapter,
    SlotPart,
    UnregisterAdapter,
)
from graft_runtime.layers.lora.layout import PAGE_RANK, pages_for

Command = PrepareAdapter | ReleaseAdapter | RegisterAdapter | UnregisterAdapter


class AdapterManager:
    """All revisions of one pod."""

    def __init__(self, pod: str, drain_timeout_seconds: float) -> None:
        self._pod = pod
        self._drain_timeout_seconds = drain_timeout_seconds
        self._revisions: dict[str, Revision] = {}
        self._commands: deque[Command] = deque()
        self._load_seconds: list[float] = []
        self._loader_ready = False
        self._engine_ready = False

    # What the pod asks

    def take_commands(self) -> Iterator[Command]:
        """Yield the messages to send, in order, and forget them."""
        while self._commands:
            yield self._commands.popleft()

    def revisions(self) -> Iterable[Revision]:
        """Return all revisions, draining ones included."""
        return self._revisions.values()

    def get(self, revision: str) -> Revision | None:
        """Return one revision."""
        return self._revisions.get(revision)

    def reports(self, active: dict[str, int]) -> tuple[RevisionReport, ...]:
        """Describe every revision.

        Args:
            active: Running requests per revision.
        """
        return tuple(
            report(self._revisions[name], active.get(name, 0)) for name in sorted(self._revisions)
        )

    def count_states(self) -> Counter[AdapterState]:
        """Return how many revisions are in each state."""
        return Counter(STATES[revision.phase] for revision in self._revisions.values())

    def take_load_seconds(self) -> list[float]:
        """Return how long each new revision took to become available, once."""
        taken, self._load_seconds = self._load_seconds, []
        return taken

    def required_are_available(self) -> bool:
        """Whether no revision that readiness waits for is missing."""
        return all(
            revision.serves
            for revision in self._revisions.values()
            if revision.entry.required_for_readiness and revision.phase is not Phase.DRAINING
        )

    def expired(self, now: float) -> list[str]:
        """Return the draining revisions whose time is over: their requests are to be ended."""
        return [
            name
            for name, revision in self._revisions.items()
            if revision.drain_until is not None and revision.drain_until <= now
        ]

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do, if ever."""
        times = [revision.retry_at for revision in self._revisions.values()]
        times += [revision.drain_until for revision in self._revisions.values()]
        return min((time for time in times if time is not None), default=None)

    # What happens

    def set_desired(self, entries: Iterable[AdapterEntry], now: float) -> None:
        """Follow a new desired set: start what is new, drain what is gone."""
        wanted = {entry.revision: entry for entry in entries}
        for entry in wanted.values():
            self._want(entry, now)
        # Sums first: as long as their parts are known, so is how long they may go on.
        known = sorted(self._revisions.items(), key=lambda item: not item[1].parts)
        for name, revision in known:
            kept = all(
                part.revision in wanted and wanted[part.revision].access == part.access
                for part in revision.parts
            )
            if not (kept if revision.parts else name in wanted):
                self._unwant(name, revision, now)

    def derive(self, entry: AdapterEntry, parts: Sequence[Part]) -> None:
        """Serve the weighted sum of revisions that are prepared, for as long as these are desired.

        Repeating it is harmless, and tries again what has failed.
        """
        known = self._revisions.get(entry.revision)
        if known is not None and known.phase not in (Phase.FAILED, Phase.DRAINING):
            return
        sources = [self._revisions[part.revision].prepared for part in parts]
        files = [source for source in sources if source is not None]
        prepared = AdapterPrepared(
            revision=entry.revision,
            digest=entry.digest or "",
            bytes=sum(file.bytes for file in files),
            rank=sum(pages_for(file.rank) for file in files) * PAGE_RANK,
            target_modules=tuple(sorted({name for file in files for name in file.target_modules})),
            path="",
        )
        revision = Revision(entry, Phase.REGISTERING, prepared, Reason.LOADING, parts=tuple(parts))
        self._revisions[entry.revision] = revision
        if self._engine_ready:
            self._register(revision)

    def forget_derived(self, name: str, now: float) -> None:
        """Let a derived revision go."""
        revision = self._revisions.get(name)
        if revision is not None and revision.parts:
            self._unwant(name, revision, now)

    def loader_started(self) -> None:
        """The loader takes work: begin, or begin again, everything that is not prepared."""
        self._loader_ready = True
        for revision in self._revisions.values():
            if revision.phase in (Phase.WAITING, Phase.FETCHING):
                self._fetch(revision)

    def loader_stopped(self) -> None:
        """The loader is gone; what it was fetching waits for the next one."""
        self._loader_ready = False
        for revision in self._revisions.values():
            if revision.phase is Phase.FETCHING:
                revision.phase, revision.reason = Phase.WAITING, Reason.PENDING

    def engine_started(self) -> None:
        """A new engine knows no adapter: register everything that is prepared."""
        self._engine_ready = True
        for revision in self._revisions.values():
            if revision.phase is Phase.REGISTERING:
                self._register(revision)

    def engine_stopped(self) -> None:
        """The engine is gone and everything it held with it."""
        self._engine_ready = False
        for name, revision in list(self._revisions.items()):
            if revision.phase is Phase.DRAINING:
                self._forget(name)
            elif revision.phase is Phase.SERVING:
                revision.phase, revision.reason = Phase.REGISTERING, Reason.LOADING
                revision.tier = Tier.DISK

    def on_prepared(self, event: AdapterPrepared) -> None:
        """The loader has a revision's slot file ready."""
        revision = self._revisions.get(event.revision)
        if revision is None or revision.phase is not Phase.FETCHING:
            return  # no longer wanted, or asked for again since
        revision.prepared, revision.message = event, ""
        if revision.entry.digest is None:
            revision.phase, revision.reason = Phase.RESOLVED, Reason.PENDING
            revision.message = f"resolved to {event.digest}"
            return
        revision.tier = Tier.DISK
        revision.phase, revision.reason = Phase.REGISTERING, Reason.LOADING
        if self._engine_ready:
            self._register(revision)

    def on_progress(self, name: str, done_bytes: int, total_bytes: int) -> None:
        """The loader has fetched this much of a revision."""
        revision = self._revisions.get(name)
        if revision is not None and revision.phase is Phase.FETCHING:
            revision.message = f"{done_bytes} of {total_bytes} bytes"

    def on_refused(self, event: AdapterRefused, now: float) -> None:
        """The loader cannot make use of a revision."""
        revision = self._revisions.get(event.revision)
        if revision is not None and revision.phase is Phase.FETCHING:
            self._fail(revision, Reason(event.reason), event.message, now)

    def on_residency(self, event: AdapterResidency, now: float) -> None:
        """The engine tells where a revision is."""
        revision = self._revisions.get(event.revision)
        if revision is None:
            return
        if event.state == "removed":
            if revision.phase is Phase.DRAINING:
                self._forget(event.revision)
        elif event.state == "failed":
            self._lose(revision, event, now)
        elif event.state != "loading":
            if event.state == "resident":
                revision.failures = 0
            revision.tier = Tier.DEVICE if event.state == "resident" else Tier.DISK
            if revision.phase is Phase.REGISTERING:
                revision.phase, revision.reason = Phase.SERVING, Reason.AVAILABLE
                self._load_seconds.append(now - revision.wanted_at)

    def tick(self, now: float) -> None:
        """Retry what is due."""
        for revision in self._revisions.values():
            if revision.retry_at is not None and revision.retry_at <= now:
                revision.retry_at = None
                self._fetch(revision)

    # Steps

    def _want(self, entry: AdapterEntry, now: float) -> None:
        known = self._revisions.get(entry.revision)
        if known is None:
            known = self._revisions[entry.revision] = Revision(entry, wanted_at=now)
            self._fetch(known)
            return
        source_changed = _source(known.entry) != _source(entry)
        known.entry = entry
        if known.phase is Phase.DRAINING:
            # The engine may already have let go of it; registering is harmless if it has not.
            known.drain_until = None
            known.phase, known.reason = Phase.REGISTERING, Reason.LOADING
            if self._engine_ready:
                self._register(known)
        elif source_changed and known.phase in (Phase.FAILED, Phase.WAITING, Phase.FETCHING):
            known.failures, known.retry_at = 0, None
            self._fetch(known)

    def _unwant(self, name: str, revision: Revision, now: float) -> None:
        if revision.phase in (Phase.SERVING, Phase.REGISTERING) and self._engine_ready:
            revision.phase, revision.reason = Phase.DRAINING, Reason.DRAINING
            revision.drain_until = now + self._drain_seconds(revision)
            self._commands.append(UnregisterAdapter(name))
        elif revision.phase is not Phase.DRAINING:
            if self._engine_ready and revision.may_be_registered:
                # The engine keeps what it could not load, for a second try that will not come.
                self._commands.append(UnregisterAdapter(name))
            self._forget(name)

    def _drain_seconds(self, revision: Revision) -> float:
        """Return how long running requests may go on: those of a sum as long as on each part."""
        parts = [self._revisions[part.revision] for part in revision.parts] or [revision]
        asked = [part.entry.drain_timeout_seconds for part in parts]
        return min(self._drain_timeout_seconds if one is None else one for one in asked)

    def _fetch(self, revision: Revision) -> None:
        entry = revision.entry
        if entry.digest is None and entry.resolver != self._pod:
            return  # another pod finds the digest
        if not self._loader_ready:
            revision.phase, revision.reason = Phase.WAITING, Reason.PENDING
            return
        revision.phase, revision.reason = Phase.FETCHING, Reason.DOWNLOADING
        revision.message = ""
        self._commands.append(
            PrepareAdapter(
                entry.revision,
                entry.uri,
                entry.digest,
                entry.credential,
                chat_template=bool(entry.chat_template),
            )
        )

    def _register(self, revision: Revision) -> None:
        prepared, entry = revision.prepared, revision.entry
        if prepared is None:
            self._fetch(revision)
            return
        self._commands.append(
            RegisterAdapter(
                entry.revision,
                prepared.path,
                prepared.rank,
                prefetch=entry.tier is Tier.DEVICE or entry.pinned,
                pinned=entry.pinned,
                merged=self._slot_parts(revision),
            )
        )

    def _slot_parts(self, revision: Revision) -> tuple[SlotPart, ...]:
        files = [self._revisions[part.revision].prepared for part in revision.parts]
        pairs = zip(files, revision.parts, strict=True)
        return tuple(SlotPart(file.path, part.weight) for file, part in pairs if file is not None)

    def _fail(self, revision: Revision, reason: Reason, message: str, now: float) -> None:
        is_final = REASONS[reason].retry == "terminal" or bool(revision.parts)
        revision.fail(reason, message, None if is_final else now, self._pod)

    def _lose(self, revision: Revision, event: AdapterResidency, now: float) -> None:
        """Have made anew what the loader has checked and the engine cannot use: it was damaged."""
        if revision.phase not in (Phase.REGISTERING, Phase.SERVING):
            return  # on its way anew, or out
        reason = Reason(event.reason)
        if revision.parts:
            self._fail(revision, reason, event.message, now)
            return
        revision.fail(reason, event.message, now, self._pod)
        if revision.failures == 1 and REASONS[reason].retry == "terminal":
            revision.retry_at = None
            self._fetch(revision)

    def _forget(self, name: str) -> None:
        del self._revisions[name]
        self._commands.append(ReleaseAdapter(name))


def _source(entry: AdapterEntry) -> tuple[str | bool | None, ...]:
    return entry.uri, entry.credential, entry.resolver, entry.chat_template
