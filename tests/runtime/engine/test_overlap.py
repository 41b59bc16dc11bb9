"""Steps launched on top of steps that have not retired."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from graft_runtime.engine import engine
from graft_runtime.engine.batch import Batch
from tests.support.echo_model import next_token
from tests.support.engine_bench import Bench

POISON = 1_000


def in_flight(bench: Bench) -> set[str]:
    flight = bench.engine._flight
    return set() if flight is None else {row.request.request_id for row in flight.batch.rows}


def test_a_step_is_launched_before_the_tokens_of_the_last_one_are_known() -> None:
    bench = Bench()
    name = bench.submit([1, 2, 3], max_tokens=6)
    bench.step()
    assert bench.tokens[name] == []
    for known in range(1, 6):
        bench.step()
        assert len(bench.tokens[name]) == known
        assert in_flight(bench) == {name}
    bench.drain()
    bench.assert_all_right()


def test_no_row_is_launched_beyond_the_last_token_that_was_asked_for() -> None:
    bench = Bench()
    bench.submit([1, 2, 3], max_tokens=4)
    bench.drain()
    assert bench.engine.stats().steps == 4
    bench.assert_all_right()


def test_what_was_computed_beyond_a_stop_token_is_dropped() -> None:
    bench = Bench()
    prompt = [1, 2, 3]
    second = next_token([*prompt, next_token(prompt, 0)], 0)
    name = bench.submit(prompt, max_tokens=9, stop_token_ids=(second,))
    bench.drain()
    assert bench.tokens[name] == [next_token(prompt, 0), second]
    assert bench.finished[name].finish_reason == "stop"
    assert bench.engine.stats().steps == 3, "the stop was seen one step late"
    assert bench.engine.stats().generation_tokens == 2


def test_an_aborted_requests_blocks_are_kept_until_its_step_has_retired() -> None:
    bench = Bench()
    name = bench.submit([1, 2, 3, 4, 5], max_tokens=9)
    bench.step()
    bench.engine.abort(name)
    assert bench.engine.stats().kv_blocks_used == 2
    bench.engine.check_integrity()
    bench.drain()
    assert bench.tokens[name] == []


def test_an_aborted_requests_slot_is_kept_until_its_step_has_retired() -> None:
    bench = Bench(num_pages=1)
    old, new = bench.register(71), bench.register(72)
    name = bench.submit([1, 2], max_tokens=9, adapter=old)
    while not in_flight(bench):
        bench.step()
    bench.engine.abort(name)
    assert bench.engine._scheduler.slots_in_use() == {1}, "the slot could be filled anew"
    bench.engine.unregister(old)
    assert bench.slots.keys == {1: 71}
    bench.submit([1, 2], max_tokens=3, adapter=new)
    bench.drain()
    assert bench.slots.keys == {1: 72}


def test_a_preempted_request_gets_the_token_that_was_on_its_way() -> None:
    bench = Bench(num_blocks=12)
    for start in range(6):
        bench.submit([start + 1] * 6, max_tokens=30)
    seen = 0
    while bench.engine.has_work:
        before = bench.engine.stats().preemptions
        bench.step()
        bench.engine.check_integrity()
        seen += bench.engine.stats().preemptions > before
    assert seen
    bench.assert_all_right()


def test_a_failed_step_takes_back_what_was_launched_upon_it() -> None:
    bench = Bench()
    names = [bench.submit([start, start], max_tokens=8) for start in range(1, 5)]
    for _ in range(3):
        bench.step()
    bench.model.poison = POISON
    doomed = bench.submit([3, POISON], max_tokens=5)
    bench.drain()
    assert bench.finished[doomed].finish_reason == "error"
    assert [bench.tokens[name] for name in names] == [bench.expected(name) for name in names]
    assert bench.engine.stats().generation_tokens == sum(len(bench.tokens[name]) for name in names)


@pytest.mark.parametrize("phase", ["build_plan", "build_sample_plan"])
def test_a_step_that_cannot_be_launched_fails_only_its_culprit(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    names = [bench.submit([start, start], max_tokens=6) for start in range(1, 4)]
    doomed = bench.submit([9, 9], max_tokens=6)
    bench.step()
    build = getattr(engine, phase)

    def picky(batch: Batch, *rest: object) -> object:
        if any(request.request_id == doomed for request in batch.requests()):
            raise RuntimeError("unfit")
        return build(batch, *rest)

    monkeypatch.setattr(engine, phase, picky)
    bench.drain()
    assert bench.finished[doomed].finish_reason == "error"
    assert [bench.tokens[name] for name in names] == [bench.expected(name) for name in names]


class OverlapMachine(RuleBasedStateMachine):
    """Arrivals, cancellations, failures and adapter changes between launches and retirements."""

    window: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(window=self.window, num_blocks=13, num_pages=1, max_running=4)
        self.bench.model.poison = POISON
        self.aborted: set[str] = set()
        self.revisions = [self.bench.register(key) for key in (201, 202)]

    @rule(
        prompt=st.lists(st.integers(1, 9), min_size=1, max_size=25),
        tokens=st.integers(1, 20),
        adapter=st.sampled_from([None, None, 0, 1]),
        priority=st.integers(0, 2),
        is_poisoned=st.sampled_from([False] * 7 + [True]),
    )
    def submit(
        self,
        prompt: list[int],
        tokens: int,
        adapter: int | None,
        priority: int,
        is_poisoned: bool,
    ) -> None:
        prompt = [*prompt, POISON] if is_poisoned else prompt
        revision = None if adapter is None else self.revisions[adapter]
        self.bench.submit(prompt, tokens, adapter=revision, priority=priority)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = [name for name in self.bench.asked if name not in self.bench.finished]
        if alive:
            name = data.draw(st.sampled_from(alive))
            self.bench.engine.abort(name)
            self.aborted.add(name)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.bench.step()

    @invariant()
    def nothing_is_lost(self) -> None:
        self.bench.engine.check_integrity()

    @invariant()
    def what_a_launched_step_names_is_nobody_elses(self) -> None:
        scheduler = self.bench.engine._scheduler
        named = {slot for slot in scheduler.slots_in_use() if slot}
        assert named <= self.bench.slots.keys.keys()
        owners: dict[int, str] = {}
        for batch in scheduler._launched:
            for row in batch.rows:
                first_written = row.start // 4
                for block in row.table[first_written:]:
                    owner = owners.setdefault(block, row.request.request_id)
                    assert owner == row.request.request_id, "two requests write to one block"

    def teardown(self) -> None:
        self.bench.drain()
        for name, asked in self.bench.asked.items():
            expected = self.bench.expected(name)
            if name in self.aborted:
                assert self.bench.tokens[name] == expected[: len(self.bench.tokens[name])]
            elif POISON in asked.token_ids:
                assert self.bench.finished[name].finish_reason == "error"
            else:
                assert self.bench.tokens[name] == expected


TestOverlapMachine = OverlapMachine.TestCase
TestOverlapMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class WindowedOverlapMachine(OverlapMachine):
    """The same where no layer sees further than a window, so that blocks are given back early."""

    window: int | None = 6


TestWindowedOverlapMachine = WindowedOverlapMachine.TestCase
TestWindowedOverlapMachine.settings = TestOverlapMachine.settings
