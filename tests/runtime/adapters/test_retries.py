"""When an adapter that failed is tried again, and that nothing is left of one that is given up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from graft_protocol.desired import AdapterEntry
from graft_protocol.reasons import Reason
from graft_runtime.adapters.manager import AdapterManager
from graft_runtime.adapters.revision import retry_seconds
from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.engine.residency import Residency, SlotLoad
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    AdapterResidency,
    PrepareAdapter,
    RegisterAdapter,
    ReleaseAdapter,
    UnregisterAdapter,
)

LONGEST = (1, 2, 4, 8, 16, 32, 60, 60, 60)


def entry(version: int) -> AdapterEntry:
    return AdapterEntry(
        revision=f"ns/a{version}@{version:012d}",
        served_name=f"a{version}",
        uri=f"s3://b/{version}",
        digest=f"sha256:{version:064d}",
    )


def manager_of(pod: str, *entries: AdapterEntry) -> AdapterManager:
    manager = AdapterManager(pod, 60.0)
    manager.loader_started()
    manager.engine_started()
    manager.set_desired(entries, 0.0)
    list(manager.take_commands())
    return manager


def test_retries_come_at_growing_intervals() -> None:
    one = entry(1)
    manager = manager_of("pod-0", one)
    now, pauses = 0.0, []
    for _ in LONGEST:
        manager.on_refused(AdapterRefused(one.revision, Reason.SOURCE_UNAVAILABLE, ""), now)
        deadline = manager.next_deadline()
        assert deadline is not None
        manager.tick(deadline - 0.01)
        assert list(manager.take_commands()) == []
        manager.tick(deadline)
        assert [type(command) for command in manager.take_commands()] == [PrepareAdapter]
        pauses.append(deadline - now)
        now = deadline
    assert all(most / 2 < pause <= most for pause, most in zip(pauses, LONGEST, strict=True))


def test_pods_that_failed_together_do_not_come_back_together() -> None:
    one = entry(1)
    deadlines = set()
    for number in range(20):
        manager = manager_of(f"pod-{number}", one)
        manager.on_refused(AdapterRefused(one.revision, Reason.SOURCE_UNAVAILABLE, ""), 0.0)
        deadlines.add(manager.next_deadline())
    assert len(deadlines) == 20


@given(failures=st.integers(0, 10**9), who=st.text(max_size=20))
def test_a_retry_is_neither_early_nor_late_however_often_it_failed(failures: int, who: str) -> None:
    longest = 60.0 if failures > 5 else float(2**failures)
    assert longest / 2 < retry_seconds(failures, who) <= longest


def test_the_pauses_of_one_pod_are_not_of_one_length() -> None:
    assert len({retry_seconds(failures, "pod-0 a") for failures in range(10, 30)}) == 20


class NoSlots:
    """Device memory that takes nothing."""

    free_pages = 8

    def pages_needed(self, rank: int) -> int:
        assert rank
        return 1

    def begin_load(self, source: SlotSource) -> SlotLoad:
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"{source} is damaged")

    def release(self, slot: int) -> None:
        raise AssertionError(f"slot {slot} was never filled")

    def check_integrity(self) -> None:
        """Nothing can be lost."""


class Wired:
    """A manager and an engine's residency that hear of each other at once."""

    def __init__(self) -> None:
        self.events: list[AdapterResidency] = []
        self.residency = Residency(NoSlots(), self.events.append)
        self.manager = manager_of("pod-0")
        self.pinned: set[str] = set()

    def settle(self) -> None:
        """Pass on what each of them says until both are silent; the loader prepares everything."""
        for command in self._commands():
            match command:
                case PrepareAdapter(revision):
                    self.pinned.add(revision)
                    path = str(Path("/slots") / revision)
                    self.manager.on_prepared(
                        AdapterPrepared(revision, command.digest or "", 1, 8, (), path)
                    )
                case ReleaseAdapter(revision):
                    self.pinned.discard(revision)
                case RegisterAdapter():
                    self.residency.register(command)
                case UnregisterAdapter(revision):
                    self.residency.unregister(revision)

    def _commands(
        self,
    ) -> Iterator[PrepareAdapter | ReleaseAdapter | RegisterAdapter | UnregisterAdapter]:
        while True:
            yield from self.manager.take_commands()
            self.residency.advance(frozenset())
            heard, self.events[:] = list(self.events), []
            for event in heard:
                self.manager.on_residency(event, 0.0)
            if not heard:
                return

    def sizes(self) -> list[int]:
        """Return the length of every table of both."""
        tables = (*vars(self.manager).values(), *vars(self.residency).values(), self.pinned)
        return [len(table) for table in tables if hasattr(table, "__len__")]


def test_ten_thousand_revisions_that_fail_and_are_removed_leave_nothing() -> None:
    wired = Wired()
    before = wired.sizes()
    for start in range(0, 10_000, 50):
        batch = [
            entry(number).model_copy(update={"pinned": True}) for number in range(start, start + 50)
        ]
        wired.manager.set_desired(batch, 0.0)
        wired.settle()
        assert all(one.state == "Failed" for one in wired.manager.reports({}))
        wired.manager.set_desired([], 0.0)
        wired.settle()
    assert wired.sizes() == before
