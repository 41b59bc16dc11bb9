"""Who is on the device: sharing, turns, draining, and that nobody waits for nothing."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.engine.residency import MAX_LOADS, NUM_SLICES, Residency
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.messages import AdapterResidency, RegisterAdapter, SlotPart
from graft_runtime.layers.lora.layout import pages_for

NONE: AbstractSet[int] = frozenset()


@dataclass(eq=False)
class Load:
    """A copy that takes two calls once its file has been read."""

    owner: Pages
    slot: int
    left: int = 2
    is_ready: bool = True

    def advance(self, max_bytes: int) -> bool:
        assert self.is_ready
        assert max_bytes > 0
        self.left -= 1
        return self.left <= 0

    def cancel(self) -> None:
        self.owner.release(self.slot)


@dataclass(eq=False)
class Pages:
    """Device pages that are only counted; the file's name is the adapter's rank and content."""

    total: int
    taken: dict[int, int] = field(default_factory=dict)
    sources: dict[int, SlotSource] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    reads_at_once: bool = True

    @property
    def free_pages(self) -> int:
        return self.total - sum(self.taken.values())

    def pages_needed(self, rank: int) -> int:
        return pages_for(rank)

    def begin_load(self, source: SlotSource) -> Load:
        names = [share.path.name for share in source.shares]
        if self.broken.intersection(names):
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, "not a slot file")
        needed = sum(pages_for(int(name.split("-")[0])) for name in names)
        assert needed <= self.free_pages
        slot = next(number for number in range(1, 100) if number not in self.taken)
        self.taken[slot], self.sources[slot] = needed, source
        self.loads.append(Load(self, slot, is_ready=self.reads_at_once))
        return self.loads[-1]

    def release(self, slot: int) -> None:
        del self.taken[slot], self.sources[slot]

    def check_integrity(self) -> None:
        assert self.free_pages >= 0


class Bench:
    """A residency and what it reported."""

    def __init__(self, pages: int) -> None:
        self.pages = Pages(pages)
        self.events: list[AdapterResidency] = []
        self.residency = Residency(self.pages, self.events.append)

    def register(
        self, name: str, content: str = "", *, prefetch: bool = False, pinned: bool = False
    ) -> None:
        content = content or f"16-{name}"
        rank = int(content.split("-")[0])
        self.residency.register(
            RegisterAdapter(name, content, rank, prefetch=prefetch, pinned=pinned)
        )

    def load(self, name: str, in_use: AbstractSet[int] = NONE) -> int:
        """Ask as the scheduler does until there is a slot."""
        for _ in range(20):
            slot = self.residency.slot_for(name)
            if slot is not None:
                return slot
            self.residency.advance(in_use)
        raise AssertionError(f"{name} does not come: {self.states()}")

    def wants(self, *names: str) -> None:
        for name in names:
            self.residency.acquire(name)

    def states(self) -> dict[str, str]:
        return {event.revision: event.state for event in self.events}

    def advance(self, times: int = 10, in_use: AbstractSet[int] = NONE) -> None:
        for _ in range(times):
            self.residency.advance(in_use)


def test_the_same_bytes_under_two_names_are_one_copy() -> None:
    bench = Bench(4)
    bench.register("a", "16-same")
    bench.register("b", "16-same")
    bench.wants("a", "b")
    assert bench.load("a") == bench.load("b")
    assert bench.pages.free_pages == 3
    assert bench.states() == {"a": "resident", "b": "resident"}
    bench.residency.give_back("a")
    bench.residency.unregister("a")
    assert bench.states() == {"a": "removed", "b": "resident"}
    assert bench.residency.slot_for("b") is not None
    bench.residency.unregister("b")
    assert bench.pages.free_pages == 3, "a request still uses it"
    bench.residency.give_back("b")
    assert bench.pages.free_pages == 4


def test_a_second_name_of_resident_bytes_serves_at_once() -> None:
    bench = Bench(1)
    bench.register("a", "16-same", prefetch=True)
    bench.advance()
    bench.register("b", "16-same", prefetch=True)
    assert bench.states()["b"] == "resident"


def test_pinning_one_name_keeps_the_copy_for_all() -> None:
    bench = Bench(1)
    bench.register("a", "16-same")
    bench.register("b", "16-same", pinned=True)
    bench.wants("a")
    bench.load("a")
    bench.residency.give_back("a")
    bench.register("c")
    bench.wants("c")
    assert bench.residency.slot_for("c") is None
    bench.advance()
    assert bench.states()["c"] == "failed"
    assert bench.events[-1].reason == Reason.INSUFFICIENT_CAPACITY
    assert bench.residency.slot_for("a") is not None
    bench.residency.unregister("b")
    bench.register("c")  # the second try
    bench.load("c")


def test_a_broken_file_fails_every_name_of_it_and_nothing_else() -> None:
    bench = Bench(2)
    bench.pages.broken.add("16-bad")
    for name, content in {"a": "16-bad", "b": "16-bad", "c": "16-good"}.items():
        bench.register(name, content)
    bench.wants("a", "b", "c")
    bench.load("c")
    assert bench.states() == {"a": "failed", "b": "failed", "c": "resident"}
    assert bench.residency.failed("b")
    assert not bench.residency.knows("b")
    bench.pages.broken.clear()
    bench.register("a", "16-bad")
    assert bench.residency.knows("b")
    bench.load("b")


def test_a_load_begins_when_a_request_arrives_not_when_its_turn_comes() -> None:
    bench = Bench(2)
    bench.register("a")
    bench.wants("a")
    bench.advance()
    assert bench.states() == {"a": "resident"}


def test_what_only_comes_soon_neither_evicts_what_is_wanted_nor_drains_it() -> None:
    bench = Bench(1)
    bench.register("a")
    bench.register("b")
    bench.wants("a", "b")
    slot = bench.load("a", in_use={1})
    bench.advance(in_use={slot})
    assert bench.residency.slot_for("a") == slot


def test_an_adapter_of_many_pages_gets_them_from_busy_small_ones() -> None:
    bench = Bench(4)
    for name in "abcd":
        bench.register(name)
    bench.register("large", "64-large")
    bench.wants(*"abcd", "large")
    running = {name: bench.load(name) for name in "abcd"}
    in_use = set(running.values())
    assert bench.residency.slot_for("large") is None
    for name, slot in running.items():
        bench.advance(in_use=in_use)
        assert bench.residency.slot_for(name) is None, "no new request keeps it any more"
        in_use.remove(slot)
        bench.residency.give_back(name)
    assert bench.load("large", in_use)


def test_draining_ends_when_nobody_wants_the_room_any_more() -> None:
    bench = Bench(1)
    bench.register("a")
    bench.register("b")
    bench.wants("a", "b")
    slot = bench.load("a")
    bench.residency.slot_for("b")
    bench.advance(in_use={slot})
    assert bench.residency.slot_for("a") is None
    bench.residency.give_back("b")
    bench.residency.unregister("b")
    bench.advance(in_use={slot})
    assert bench.residency.slot_for("a") == slot


def test_a_wish_that_nobody_asked_for_does_not_wait_behind_one_that_has_no_room() -> None:
    bench = Bench(2)
    bench.register("a")
    bench.wants("a")
    slot = bench.load("a")
    bench.register("large", "32-large")
    bench.register("early", prefetch=True)
    bench.wants("large")
    bench.residency.slot_for("large")
    bench.advance(in_use={slot})
    assert bench.states()["early"] == "registered"


def test_a_file_that_is_still_being_read_holds_up_no_other() -> None:
    names = "abcdefgh"[: MAX_LOADS + 1]
    bench = Bench(len(names))
    bench.pages.reads_at_once = False
    for name in names:
        bench.register(name)
    bench.wants(*names)
    bench.advance()
    assert len(bench.pages.loads) == MAX_LOADS
    assert (bench.residency.has_work, bench.residency.is_copying) == (True, False)
    bench.pages.loads[1].is_ready = True
    assert (bench.residency.has_work, bench.residency.is_copying) == (True, True)
    bench.advance()
    assert bench.states() == dict.fromkeys(names, "loading") | {"b": "resident"}


def test_between_two_steps_several_adapters_come_nearer() -> None:
    names = "abcdefgh"[:NUM_SLICES]
    bench = Bench(len(names))
    for name in names:
        bench.register(name)
    bench.wants(*names)
    bench.advance(times=2)
    assert bench.states() == dict.fromkeys(names, "resident")


def test_a_load_that_nobody_wants_any_more_gives_its_pages_back() -> None:
    bench = Bench(1)
    bench.register("a", prefetch=True)
    bench.advance(1)
    assert bench.pages.free_pages == 0
    bench.residency.unregister("a")
    assert bench.pages.free_pages == 1
    assert not bench.residency.has_work


def test_a_mixture_has_pages_of_all_its_parts_and_is_no_copy_of_one() -> None:
    bench = Bench(4)
    bench.register("a")
    parts = (SlotPart("16-a", 0.5), SlotPart("32-b", 0.5))
    bench.residency.register(RegisterAdapter("mix", "", 48, merged=parts, prefetch=False))
    bench.wants("a", "mix")
    slots = bench.load("a"), bench.load("mix")
    assert [bench.pages.taken[slot] for slot in slots] == [1, 3]


RANKS = {"a": "16-a", "b": "16-b", "c": "32-c", "d": "48-d", "twin": "16-a", "e": "16-e"}


class Turns(RuleBasedStateMachine):
    """Requests come, run and go in any order; all of them run in the end."""

    @initialize(pages=st.integers(3, 5))
    def start(self, pages: int) -> None:
        self.bench = Bench(pages)
        self.waiting: list[str] = []
        self.running: list[tuple[str, int]] = []
        for name, content in RANKS.items():
            self.bench.register(name, content, prefetch=name == "e")

    @rule(name=st.sampled_from(sorted(RANKS)))
    def arrive(self, name: str) -> None:
        if self.bench.residency.knows(name):
            self.bench.wants(name)
            self.waiting.append(name)

    @rule()
    def step(self) -> None:
        in_use = {slot for _, slot in self.running}
        self.bench.residency.advance(in_use)
        for name in list(self.waiting):
            slot = self.bench.residency.slot_for(name)
            if slot is not None:
                self.waiting.remove(name)
                self.running.append((name, slot))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.running) - 1))
        self.bench.residency.give_back(self.running.pop(index)[0])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        self.bench.residency.give_back(self.waiting.pop(index))

    @rule(name=st.sampled_from(sorted(RANKS)))
    def forget_and_know_again(self, name: str) -> None:
        self.bench.residency.unregister(name)
        self.bench.register(name, RANKS[name])

    @invariant()
    def running_requests_have_their_own_weights(self) -> None:
        for name, slot in getattr(self, "running", ()):
            assert self.bench.pages.sources[slot] == SlotSource.of(Path(RANKS[name]))

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for _ in range(100):
            if not self.waiting:
                break
            self.step()
            if self.running:
                self.bench.residency.give_back(self.running.pop(0)[0])
        assert not self.waiting, f"{self.waiting} never ran"
        for name, _ in self.running:
            self.bench.residency.give_back(name)
        for name in RANKS:
            self.bench.residency.unregister(name)
        assert self.bench.pages.free_pages == self.bench.pages.total
        assert not self.bench.residency.has_work


Turns.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestTurns = Turns.TestCase


@pytest.mark.parametrize("wish", [True, False])
def test_registering_twice_is_harmless(wish: bool) -> None:
    bench = Bench(1)
    for _ in range(3):
        bench.register("a", prefetch=wish)
    bench.advance()
    assert bench.states()["a"] == ("resident" if wish else "registered")
