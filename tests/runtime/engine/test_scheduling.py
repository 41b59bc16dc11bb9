"""Who goes first: classes, fair share between tenants, chunks, preemption."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_runtime.engine.fair_share import OUTPUT_COST, PROMPT_COST, FairShare
from graft_runtime.engine.kv_cache import BlockPool
from graft_runtime.engine.request import Request
from graft_runtime.engine.scheduler import Scheduler, SchedulerLimits
from graft_runtime.engine.waiting import WaitingQueue
from graft_runtime.ipc.messages import Sampling
from tests.support.engine_bench import BLOCK_SIZE, MAX_MODEL_LEN, Bench


def order_of_first_tokens(bench: Bench) -> list[str]:
    order: list[str] = []
    while bench.engine.has_work:
        bench.step()
        order += [name for name in bench.tokens if bench.tokens[name] and name not in order]
    return order


def test_a_lower_class_number_goes_first_whatever_came_before() -> None:
    bench = Bench(max_running=1)
    for start, priority in enumerate([5, 0, -3, 5, 0], start=1):
        bench.submit([start, start], max_tokens=3, priority=priority)
    assert order_of_first_tokens(bench) == ["r2", "r1", "r4", "r0", "r3"]
    bench.assert_all_right()


def test_a_better_class_takes_the_seat_of_a_running_lower_one() -> None:
    bench = Bench(max_running=1)
    low = bench.submit([1, 2, 3], max_tokens=30, priority=9)
    for _ in range(4):
        bench.step()
    high = bench.submit([4, 5], max_tokens=3, priority=0)
    while high not in bench.finished:
        bench.step()
    assert low not in bench.finished
    assert bench.engine.stats().preemptions == 1
    bench.drain()
    bench.assert_all_right()


def test_a_better_class_takes_the_blocks_of_a_running_lower_one() -> None:
    bench = Bench(num_blocks=MAX_MODEL_LEN // BLOCK_SIZE)
    low = bench.submit([1] * 20, max_tokens=28, priority=1)
    for _ in range(14):
        bench.step()
    high = bench.submit([2] * 24, max_tokens=3)
    while high not in bench.finished:
        bench.step()
    assert low not in bench.finished
    bench.drain()
    bench.assert_all_right()


def test_equal_classes_never_displace_each_other() -> None:
    bench = Bench(max_running=1)
    bench.submit([1, 2, 3], max_tokens=20, priority=4)
    bench.step()
    bench.submit([4, 5], max_tokens=3, priority=4)
    bench.submit([4, 5], max_tokens=3, priority=7)
    bench.drain()
    assert bench.engine.stats().preemptions == 0


def test_tenants_take_turns_however_many_requests_one_sends() -> None:
    bench = Bench(max_running=1)
    crowd = [bench.submit([start, 1], max_tokens=4, tenant="crowd") for start in range(1, 9)]
    alone = bench.submit([9, 9], max_tokens=4, tenant="alone")
    order = order_of_first_tokens(bench)
    assert order.index(alone) <= 2
    assert [name for name in order if name != alone] == crowd, "within a tenant by arrival"


def test_a_tenant_gets_by_its_weight() -> None:
    bench = Bench(max_running=1)
    for start in range(1, 13):
        bench.submit([start, 1, 1], max_tokens=2, tenant="gold", tenant_weight=3.0, ignore_eos=True)
        bench.submit([start, 2, 2], max_tokens=2, tenant="lead", ignore_eos=True)
    first = order_of_first_tokens(bench)[:12]
    gold = sum(bench.asked[name].tenant == "gold" for name in first)
    assert gold in (8, 9, 10)


def test_a_tenant_that_was_away_has_saved_up_nothing() -> None:
    bench = Bench(max_running=1)
    for start in range(1, 9):
        bench.submit([start, 1], max_tokens=6, tenant="busy")
    for _ in range(20):
        bench.step()
    late = [bench.submit([start, 2], max_tokens=6, tenant="late") for start in range(1, 9)]
    order = [name for name in order_of_first_tokens(bench) if name in bench.asked]
    places = sorted(order.index(name) for name in late)
    assert places[1] - places[0] >= 2, "it takes turns, and does not catch up"


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 24), st.integers(1, 8)),
        min_size=12,
        max_size=24,
    ),
    st.integers(1, 4),
)
def test_the_gap_between_two_tenants_that_wait_is_bounded(
    asked: list[tuple[str, int, int]], max_running: int
) -> None:
    """The bound of arXiv:2401.00588, theorem 4.4: twice the larger of what a prompt and what all
    running requests can bring."""
    bench = Bench(max_running=max_running, max_batch_tokens=32, max_chunk_tokens=16)
    for number, (tenant, length, tokens) in enumerate(asked):
        prompt = [number % 90 + 1] * length
        bench.submit(prompt, max_tokens=tokens, tenant=tenant, ignore_eos=True)
    bound = 2 * max(PROMPT_COST * 24, OUTPUT_COST * max_running * (24 + 8))
    share, queue = bench.engine._scheduler._share, bench.engine._scheduler._waiting
    while bench.engine.has_work:
        bench.step()
        waiting = {request.tenant for request in queue.candidates()}
        if waiting == {"a", "b"}:
            assert abs(share.served("a") - share.served("b")) <= bound
    bench.assert_all_right()


def test_prompts_that_run_beside_decodes_share_one_cap() -> None:
    bench = Bench(max_batch_tokens=16, max_chunk_tokens=5)
    decoding = bench.submit([1], max_tokens=40, ignore_eos=True)
    bench.step()
    for start in range(2, 6):
        bench.submit([start] * 20, max_tokens=2)
    bench.model.largest_step = 0
    while bench.engine.has_work and len(bench.tokens[decoding]) < 30:
        bench.step()
    assert bench.model.largest_step <= 5 + 5, "five decodes at most, and five tokens of prompts"
    bench.drain()
    bench.assert_all_right()


def test_no_more_requests_run_than_leave_a_token_of_each_step_for_prompts() -> None:
    bench = Bench(max_batch_tokens=4, max_running=6)
    for start in range(1, 3):
        bench.submit([start], max_tokens=25, ignore_eos=True)
        bench.step()
    long = bench.submit([7] * 8, max_tokens=2, ignore_eos=True)
    bench.submit([8], max_tokens=2, ignore_eos=True)
    while long not in bench.finished:
        bench.step()
        assert bench.engine.stats().running <= 3
    assert len(bench.tokens["r0"]) < 20, "it did not wait for the others to end"
    bench.drain()
    bench.assert_all_right()


def test_a_preempted_request_had_gained_a_token_each_time() -> None:
    bench = Bench(num_blocks=12, max_chunk_tokens=1)
    gains: list[int] = []
    scheduler = bench.engine._scheduler
    preempt = scheduler._preempt

    def watched(request: Request) -> None:
        gains.append(request.length - request.length_at_admission)
        preempt(request)

    scheduler._preempt = watched  # type: ignore[method-assign] # a spy
    # The first grows until the pool is full while the second is computed token by token.
    bench.submit([1] * 16, max_tokens=30, ignore_eos=True)
    bench.step()
    bench.submit([2] * 22, max_tokens=20, ignore_eos=True)
    bench.drain()
    bench.assert_all_right()
    assert gains
    assert min(gains) >= 1


def test_a_preempted_request_finds_its_blocks_again() -> None:
    bench = Bench(max_running=1)
    low = bench.submit([1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=20, priority=1, ignore_eos=True)
    for _ in range(6):
        bench.step()
    bench.submit([4, 5], max_tokens=2, ignore_eos=True)
    before = bench.model.tokens_computed
    bench.drain()
    done = len(bench.tokens[low])
    # What is computed again lies in the last, unfinished block.
    assert bench.model.tokens_computed - before <= 2 + 2 + (done + 9) - 12
    bench.assert_all_right()


@pytest.mark.parametrize("salts", [("", "x"), ("x", "y")])
def test_a_prefix_is_shared_only_under_one_salt(salts: tuple[str, str]) -> None:
    bench = Bench()
    prompt = list(range(1, 21))
    for salt in salts:
        name = bench.submit(prompt, max_tokens=2, cache_salt=salt)
        bench.drain()
        assert bench.cached[name] == 0
        again = bench.submit(prompt, max_tokens=2, cache_salt=salt)
        bench.drain()
        assert bench.cached[again] == 16


def test_a_prefix_is_never_shared_between_tenants() -> None:
    bench = Bench()
    for tenant in ("a", "b"):
        name = bench.submit(list(range(1, 21)), max_tokens=2, tenant=tenant)
        bench.drain()
        assert bench.cached[name] == 0


def test_the_waiting_queue_forgets_what_is_removed() -> None:
    share = FairShare()
    queue = WaitingQueue(share)
    requests = [
        Request(f"r{number}", [1], 1, Sampling(max_tokens=1), None, number, tenant=f"t{number % 3}")
        for number in range(9)
    ]
    for request in requests:
        share.enter(request.tenant)
        queue.add(request)
    for request in requests[::2]:
        queue.remove(request)
    assert [request.arrival for request in queue.candidates()] == [1, 3, 5, 7]
    for request in requests[1::2]:
        queue.remove(request)
    assert (len(queue), list(queue.candidates())) == (0, [])


def test_tenants_without_requests_are_forgotten() -> None:
    share = FairShare()
    for number in range(1_000):
        share.enter(f"t{number}")
        share.charge(f"t{number}", 1.0)
        share.leave(f"t{number}")
    assert len(share._accounts) <= 1_000
    share.enter("busy")
    share.charge("busy", 1_000.0)
    share.enter("other")
    share.enter("another")
    assert len(share._accounts) <= 1_000


def test_a_request_preempted_under_a_launched_step_comes_back_when_that_has_retired() -> None:
    limits = SchedulerLimits(BLOCK_SIZE, max_batch_tokens=16, max_running=1, max_chunk_tokens=16)
    scheduler = Scheduler(limits, BlockPool(16), lambda _revision: None)

    def request(name: str, priority: int) -> Request:
        sampling = Sampling(max_tokens=9)
        made = Request(name, [1, 2, 3], 3, sampling, None, arrival=priority, priority=priority)
        scheduler.add(made)
        return made

    yielding = request("yields", priority=1)
    first = scheduler.schedule()
    yielding.append(4)
    scheduler.retire(first)
    second = scheduler.schedule()
    assert [row.request for row in second.rows] == [yielding]
    urgent = request("urgent", priority=0)
    third = scheduler.schedule()
    assert [row.request for row in third.rows] == [urgent]
    scheduler.remove(urgent)
    # There is room for it, but the token that the second step brings is not known yet.
    assert scheduler.schedule().rows == []
    yielding.append(5)
    scheduler.retire(second)
    scheduler.check_integrity()
    again = scheduler.schedule()
    assert [(row.request, row.start, row.num_tokens) for row in again.rows] == [(yielding, 4, 1)]
    scheduler.retire(third)
    scheduler.retire(again)
    scheduler.check_integrity()
