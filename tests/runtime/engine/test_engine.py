"""The engine's loop, over a model whose output shows every mistake in blocks and slots."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.engine_bench import BLOCK_SIZE, MAX_MODEL_LEN, Bench


def test_requests_of_all_lengths_in_one_batch_get_their_own_tokens() -> None:
    bench = Bench()
    for length in (1, 3, 4, 5, 16, 30):
        bench.submit(list(range(1, length + 1)), max_tokens=9)
        bench.step()
    bench.drain()
    bench.assert_all_right()


def test_a_step_never_exceeds_the_token_budget() -> None:
    bench = Bench()
    for start in range(8):
        bench.submit(list(range(start, start + 30)), max_tokens=4)
    bench.drain()
    bench.assert_all_right()
    assert bench.model.largest_step == 16


def test_preempted_requests_keep_their_tokens() -> None:
    bench = Bench(num_blocks=12)
    for start in range(6):
        bench.submit([start + 1] * 6, max_tokens=30, ignore_eos=False)
    bench.drain()
    bench.assert_all_right()
    assert bench.engine.stats().preemptions == sum(bench.preempted.values()) > 0
    # Who is preempted and computed again has not started twice.
    assert sorted(bench.started) == sorted(bench.tokens)


def test_every_step_tells_what_it_computed() -> None:
    bench = Bench()
    for length in (3, 16, 30):
        bench.submit(list(range(1, length + 1)), max_tokens=5)
    bench.drain()
    bench.assert_all_right()
    stats = bench.engine.stats()
    assert len(bench.steps) == stats.steps
    assert sum(step.prompt_tokens for step in bench.steps) == stats.prompt_tokens
    # A step that was launched before an end was known computes one token that nobody gets.
    assert stats.generation_tokens <= sum(step.output_tokens for step in bench.steps)
    assert not any(step.failed for step in bench.steps)


def test_who_waits_for_an_adapter_is_counted_apart() -> None:
    bench = Bench(num_pages=1)
    first, second = bench.register(31), bench.register(32)
    bench.drain()
    bench.submit([1, 2], max_tokens=20, adapter=first)
    bench.submit([1, 2], max_tokens=4, adapter=second)
    assert bench.engine.stats().deferred == 1
    bench.drain()
    bench.assert_all_right()
    assert bench.engine.stats().deferred == 0


def test_a_shared_prefix_is_computed_once_and_reported() -> None:
    bench = Bench()
    prefix = list(range(1, 21))
    first = bench.submit([*prefix, 30], max_tokens=4)
    bench.drain()
    assert bench.engine.stats().prompt_tokens == 21
    second = bench.submit([*prefix, 31, 32], max_tokens=4)
    bench.drain()
    bench.assert_all_right()
    assert (bench.cached[first], bench.cached[second]) == (0, 20)
    assert bench.engine.stats().prompt_tokens == 21 + 2
    assert bench.engine.stats().prefix_hits == 20


def test_a_prompt_seen_before_still_computes_its_last_token() -> None:
    bench = Bench()
    names = []
    for _ in range(2):
        names.append(bench.submit([1, 2, 3, 4, 5, 6, 7, 8], max_tokens=3))
        bench.drain()
    bench.assert_all_right()
    assert [bench.cached[name] for name in names] == [0, 4]


def test_a_prefix_is_never_shared_between_adapters_or_versions() -> None:
    bench = Bench()
    prompt = list(range(1, 21))
    for adapter in (None, bench.register(71), bench.register(72)):
        name = bench.submit(prompt, max_tokens=4, adapter=adapter)
        bench.drain()
        assert bench.cached[name] == 0
    bench.assert_all_right()


def test_a_pool_that_holds_one_request_still_serves_many() -> None:
    bench = Bench(num_blocks=MAX_MODEL_LEN // BLOCK_SIZE)
    for start in range(4):
        bench.submit([start + 2] * 20, max_tokens=40)
    bench.drain()
    bench.assert_all_right()


def test_each_adapter_changes_only_its_own_rows() -> None:
    bench = Bench()
    revisions = [bench.register(key) for key in (11, 12, 13)]
    for revision in (None, *revisions, None, *revisions):
        bench.submit([5, 6, 7], max_tokens=8, adapter=revision)
    bench.drain()
    bench.assert_all_right()
    assert len({tuple(bench.tokens[name]) for name in bench.asked}) == 4


def test_a_registered_adapter_comes_to_the_device_without_any_request() -> None:
    bench = Bench(num_pages=1)
    first, second = bench.register(14), bench.register(15)
    bench.drain()
    assert bench.residency[-1] == (first, "resident")
    assert (second, "registered") in bench.residency


def test_more_adapters_than_pages_take_turns() -> None:
    bench = Bench(num_pages=2)
    revisions = [bench.register(key) for key in range(21, 28)]
    for turn in range(3):
        for revision in revisions:
            bench.submit([turn + 1, 2], max_tokens=6, adapter=revision)
    bench.drain()
    bench.assert_all_right()


def test_the_same_bytes_under_two_names_run_side_by_side_on_room_for_one() -> None:
    bench = Bench(num_pages=1)
    names = [bench.register(31), bench.register(31, name="b")]
    requests = [bench.submit([1, 2], max_tokens=9, adapter=name) for name in names]
    while not bench.finished:
        bench.step()
        assert len(bench.slots.keys) <= 1
    assert all(len(bench.tokens[request]) >= 8 for request in requests)
    bench.drain()
    bench.assert_all_right()


def test_a_stream_of_requests_for_one_adapter_does_not_starve_another() -> None:
    bench = Bench(num_pages=1)
    busy, patient = bench.register(31), bench.register(32)
    bench.submit([1], max_tokens=12, adapter=busy)
    for _ in range(4):
        bench.step()
    waiting = bench.submit([2], max_tokens=3, adapter=patient)
    for turn in range(60):
        bench.submit([turn % 7 + 1], max_tokens=12, adapter=busy)
        bench.step()
    assert waiting in bench.finished
    bench.drain()
    bench.assert_all_right()


def test_a_request_holds_its_version_while_the_name_moves_on() -> None:
    bench = Bench()
    old = bench.register(41)
    bench.drain()
    running = bench.submit([9, 9], max_tokens=10, adapter=old)
    bench.step()
    bench.engine.unregister(old)
    new = bench.register(42)
    bench.submit([9, 9], max_tokens=10, adapter=new)
    assert (old, "removed") not in bench.residency
    bench.drain()
    bench.assert_all_right()
    assert bench.residency[-1] == (old, "removed") or (old, "removed") in bench.residency
    assert running in bench.finished


def test_an_unregistered_adapter_takes_no_new_requests() -> None:
    bench = Bench()
    revision = bench.register(51)
    bench.drain()
    bench.engine.unregister(revision)
    name = bench.submit([1], max_tokens=1, adapter=revision)
    bench.drain()
    assert bench.finished[name].finish_reason == "error"


def test_a_broken_slot_file_fails_only_the_requests_that_wait_for_it() -> None:
    bench = Bench()
    bench.slots.broken.add("61")
    bad, good = bench.register(61), bench.register(62)
    doomed = bench.submit([1, 2], max_tokens=3, adapter=bad)
    fine = [bench.submit([1, 2], max_tokens=3, adapter=one) for one in (good, None)]
    bench.drain()
    assert bench.finished[doomed].finish_reason == "error"
    assert (bad, "failed") in bench.residency
    assert [bench.tokens[name] for name in fine] == [bench.expected(name) for name in fine]


def test_a_request_that_breaks_a_step_fails_alone() -> None:
    bench = Bench()
    bench.model.poison = 1_000
    names = [bench.submit([start, start], max_tokens=5) for start in range(1, 5)]
    doomed = bench.submit([3, 1_000], max_tokens=5)
    bench.drain()
    assert bench.finished[doomed].finish_reason == "error"
    assert [bench.tokens[name] for name in names] == [bench.expected(name) for name in names]


@pytest.mark.parametrize("prompt", [[], list(range(MAX_MODEL_LEN))])
def test_a_prompt_that_can_never_run_is_answered_at_once(prompt: list[int]) -> None:
    bench = Bench()
    name = bench.submit(prompt, max_tokens=1)
    bench.step()
    assert bench.finished[name].finish_reason == "error"
    assert not bench.engine.has_work


class EngineMachine(RuleBasedStateMachine):
    """Any order of arrivals, cancellations, adapter changes and steps ends clean and right."""

    window: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(window=self.window, num_blocks=14, num_pages=2, max_running=4)
        self.revisions: list[str] = []
        self.aborted: set[str] = set()
        self.next_key = 100

    @rule(prompt=st.lists(st.integers(1, 9), min_size=1, max_size=30), tokens=st.integers(1, 12))
    def submit_to_base(self, prompt: list[int], tokens: int) -> None:
        self.bench.submit(prompt, tokens)

    @rule(data=st.data(), prompt=st.lists(st.integers(1, 9), min_size=1, max_size=9))
    def submit_to_adapter(self, data: st.DataObject, prompt: list[int]) -> None:
        if self.revisions:
            self.bench.submit(prompt, 5, adapter=data.draw(st.sampled_from(self.revisions)))

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = [name for name in self.bench.asked if name not in self.bench.finished]
        if alive:
            name = data.draw(st.sampled_from(alive))
            self.bench.engine.abort(name)
            self.aborted.add(name)

    @rule(prefetch=st.booleans())
    def register(self, prefetch: bool) -> None:
        self.revisions.append(self.bench.register(self.next_key, prefetch=prefetch))
        self.next_key += 1

    @rule(data=st.data())
    def unregister(self, data: st.DataObject) -> None:
        if self.revisions:
            revision = data.draw(st.sampled_from(self.revisions))
            self.revisions.remove(revision)
            self.bench.engine.unregister(revision)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.bench.step()

    @invariant()
    def nothing_is_lost(self) -> None:
        self.bench.engine.check_integrity()

    def teardown(self) -> None:
        self.bench.drain()
        for name in self.bench.asked:
            expected = self.bench.expected(name)
            if name in self.aborted:
                assert self.bench.tokens[name] == expected[: len(self.bench.tokens[name])]
            else:
                assert self.bench.tokens[name] == expected


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class WindowedEngineMachine(EngineMachine):
    """The same where no layer sees further than a window, so that blocks are given back early."""

    window: int | None = 6


TestWindowedEngineMachine = WindowedEngineMachine.TestCase
TestWindowedEngineMachine.settings = TestEngineMachine.settings
