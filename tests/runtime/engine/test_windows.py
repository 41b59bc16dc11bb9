"""Blocks that have fallen behind the window of every layer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_runtime.engine.batch import Batch
from graft_runtime.engine.kv_cache import RELEASED, blocks_for
from graft_runtime.engine.plan import build_plan
from tests.support.engine_bench import BLOCK_SIZE, MAX_MODEL_LEN, Bench

WINDOW = 8
POISON = 1_000
IN_SIGHT = blocks_for(WINDOW, BLOCK_SIZE) + 3
"""Blocks of a decode at most: the window's, what sticks out at both ends, and one that a launched
step was still told of."""


def live(bench: Bench, name: str) -> list[int]:
    """Return the blocks of a running request that it still has."""
    request = bench.engine._scheduler.get(name)
    assert request is not None
    return [block for block in request.blocks if block != RELEASED]


def test_a_long_output_keeps_no_more_blocks_than_its_window_sees() -> None:
    bench = Bench(window=WINDOW)
    name = bench.submit([1, 2, 3], max_tokens=44, ignore_eos=True)
    most = 0
    while bench.engine.has_work:
        bench.step()
        bench.engine.check_integrity()
        most = max(most, bench.engine.stats().kv_blocks_used)
    bench.drain()
    bench.assert_all_right()
    assert len(bench.tokens[name]) == 44
    assert most <= IN_SIGHT < blocks_for(47, BLOCK_SIZE)


def test_without_a_window_every_block_is_kept_to_the_end() -> None:
    bench = Bench()
    name = bench.submit([1, 2, 3], max_tokens=44, ignore_eos=True)
    while len(bench.tokens[name]) < 43:
        bench.step()
    assert len(live(bench, name)) == blocks_for(46, BLOCK_SIZE)


def test_a_pool_that_holds_windows_serves_what_whole_contexts_would_not_fit() -> None:
    """Four outputs of 40 tokens: 40 blocks of context, in a pool of 24, and nobody gives way."""
    for window, preempts in ((WINDOW, False), (None, True)):
        bench = Bench(window=window, num_blocks=4 * IN_SIGHT)
        for start in range(1, 5):
            bench.submit([start], max_tokens=40, ignore_eos=True)
        bench.drain()
        bench.assert_all_right()
        assert bool(bench.engine.stats().preemptions) == preempts


def test_a_block_is_kept_until_the_step_that_was_told_of_it_has_retired() -> None:
    bench = Bench(window=WINDOW)
    bench.submit([1, 2, 3], max_tokens=44, ignore_eos=True)
    scheduler = bench.engine._scheduler
    seen = 0
    while bench.engine.has_work:
        told = {
            block
            for batch in scheduler._launched
            for row in batch.rows
            for block in row.table
            if block != RELEASED
        }
        bench.step()
        for batch in scheduler._launched:
            behind = {block for table in batch.held for block in table}
            seen += bool(behind)
            assert behind <= told
            assert all(scheduler.pool._holders[block] for block in behind)
    assert seen


def test_a_plan_names_a_block_that_is_there_in_place_of_each_that_is_not() -> None:
    bench = Bench(window=WINDOW)
    bench.submit([1, 2, 3], max_tokens=44, ignore_eos=True)
    released = []

    def check(batch: Batch) -> None:
        (request,) = batch.requests()
        (table,) = build_plan(batch, BLOCK_SIZE).block_tables
        first = request.num_released
        assert table == [request.blocks[first]] * first + request.blocks[first:]
        released.append(first)

    bench.on_schedule(check)
    bench.drain()
    assert max(released) > 1


@pytest.mark.parametrize("window", [1, 2, 4, 5, 8, 13])
def test_a_long_prompt_gives_back_what_its_chunks_have_left_behind(window: int) -> None:
    bench = Bench(window=window, max_batch_tokens=6)
    name = bench.submit(list(range(1, 41)), max_tokens=6, ignore_eos=True)
    while not bench.tokens[name]:
        bench.step()
    assert len(live(bench, name)) <= blocks_for(window, BLOCK_SIZE) + 2
    bench.drain()
    bench.assert_all_right()


def test_a_preempted_request_starts_again_from_the_end_of_its_window() -> None:
    bench = Bench(window=WINDOW, max_running=1)
    low = bench.submit(list(range(1, 21)), max_tokens=20, priority=1, ignore_eos=True)
    while len(bench.tokens[low]) < 8:
        bench.step()
    scheduler = bench.engine._scheduler
    # The start of the sequence is forgotten, as if others had needed its blocks.
    while scheduler.pool._cached:
        scheduler.pool._evict()
    bench.submit([4, 5], max_tokens=2, ignore_eos=True)
    before = bench.model.tokens_computed
    bench.drain()
    bench.assert_all_right()
    assert bench.engine.stats().preemptions == 1
    # A row each for what was left of its output, the other request, and less than two blocks again.
    assert bench.model.tokens_computed - before <= 12 + 4 + 2 * BLOCK_SIZE


def test_a_prompt_is_found_again_by_its_end_when_its_start_is_forgotten() -> None:
    bench = Bench(window=WINDOW)
    prompt = list(range(1, 31))
    bench.submit(prompt, max_tokens=2, ignore_eos=True)
    bench.drain()
    pool = bench.engine._scheduler.pool
    for _ in range(3):
        pool._evict()  # released first, so forgotten first
    again = bench.submit([*prompt, 40, 41], max_tokens=8, ignore_eos=True)
    bench.step()
    assert len(live(bench, again)) <= IN_SIGHT
    bench.drain()
    bench.assert_all_right()
    assert bench.cached[again] == 28


def test_answers_to_one_prompt_share_its_end() -> None:
    bench = Bench(window=WINDOW)
    prompt = list(range(1, 31))
    first = bench.submit(prompt, max_tokens=9, ignore_eos=True)
    while not bench.tokens[first]:
        bench.step()
    others = [bench.submit(prompt, max_tokens=9, ignore_eos=True) for _ in range(3)]
    bench.drain()
    bench.assert_all_right()
    assert [bench.cached[name] for name in others] == [28, 28, 28]
    assert bench.engine.stats().prompt_tokens == 30 + 3 * 2


def test_a_failed_step_is_computed_again_from_what_was_kept() -> None:
    bench = Bench(window=WINDOW)
    names = [bench.submit([start] * 9, max_tokens=30, ignore_eos=True) for start in range(1, 4)]
    bench.model.poison = POISON
    doomed = []
    for _ in range(6):
        for _ in range(3):
            bench.step()
        doomed.append(bench.submit([POISON], max_tokens=3))
    bench.drain()
    assert all(bench.finished[name].finish_reason == "error" for name in doomed)
    assert [bench.tokens[name] for name in names] == [bench.expected(name) for name in names]


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 20),
    asked=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2)),
        min_size=1,
        max_size=10,
    ),
    num_blocks=st.integers(MAX_MODEL_LEN // BLOCK_SIZE, 24),
)
def test_any_window_in_any_pool_gives_everybody_their_tokens(
    window: int, asked: list[tuple[int, int, int]], num_blocks: int
) -> None:
    bench = Bench(window=window, num_blocks=num_blocks)
    for length, max_tokens, priority in asked:
        bench.submit(list(range(1, length + 1)), max_tokens, priority=priority, ignore_eos=True)
        bench.step()
        bench.engine.check_integrity()
    bench.drain()
    bench.assert_all_right()
