"""Decodes are kept as columns: what is read from them is what is read from rows."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from graft_runtime.engine.batch import Batch
from graft_runtime.engine.outputs import RowOutput, StepOutput, step_output
from graft_runtime.engine.plan import StepPlan, StepResult, build_plan
from graft_runtime.engine.report import step_facts
from tests.support.engine_bench import BLOCK_SIZE, Bench

LAUNCHES = 60


def by_rows(batch: Batch) -> Batch:
    return Batch(batch.rows)


def assert_same_plan(one: StepPlan, other: StepPlan) -> None:
    for field in fields(StepPlan):
        mine, others = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == others.dtype, field.name
            assert mine.tolist() == others.tolist(), field.name
        else:
            assert mine == others, field.name


def assert_as_requests_are(batch: Batch) -> None:
    """Compare the latest step's rows, once its tokens are being sampled, with their requests."""
    for row in batch.rows:
        request = row.request
        if row.is_current:
            assert row.slot == request.slot
            assert row.table == request.blocks[: len(row.table)]
            if not request.in_cohort:
                assert row.start + row.num_tokens == request.num_computed
    assert batch.decodes.members.rope_variants_D.tolist() == [
        request.rope_variant for request in batch.decodes.requests
    ]
    assert batch.end_lengths.tolist() == [len(request.tokens) for request in batch.ending]


def crowd(**limits: int) -> Bench:
    """Prompts of many lengths that come while others decode, with adapters, scored prompts."""
    bench = Bench(max_batch_tokens=24, **limits)
    revisions = [None, bench.register(81), bench.register(82)]
    for number in range(12):
        bench.submit(
            [number + 1] * (1 + 3 * number % 11),
            max_tokens=9 + number,
            adapter=revisions[number % 3],
            ignore_eos=True,
            prompt_logprobs=0 if number == 7 else None,
        )
    return bench


@pytest.mark.parametrize("num_blocks", [64, 20])
def test_rows_that_are_columns_are_planned_as_the_same_rows_by_themselves_are(
    num_blocks: int,
) -> None:
    bench = crowd(num_blocks=num_blocks)
    carried = set()

    def check(batch: Batch) -> None:
        plan = build_plan(batch, BLOCK_SIZE)
        assert_same_plan(plan, build_plan(by_rows(batch), BLOCK_SIZE))
        if len(plan.carried_C):
            carried.add(batch.decodes.are_carried)

    bench.on_schedule(check)
    mixtures = set()
    for _ in range(LAUNCHES):
        bench.step()
        flight = bench.engine._flight
        if flight is None:
            continue
        batch = flight.batch
        mixtures.add((bool(batch.decodes), bool(batch.others)))
        assert step_facts(batch, failed=False) == step_facts(by_rows(batch), failed=False)
        assert batch.ending == by_rows(batch).ending
        assert list(batch.requests()) == list(by_rows(batch).requests())
        for request in bench.engine._scheduler.requests():
            assert batch.names(request) == by_rows(batch).names(request)
        assert_as_requests_are(batch)
    assert mixtures >= {(True, False), (True, True), (False, True)}
    assert carried == {True, False}
    assert bool(bench.engine.stats().preemptions) == (num_blocks == 20)


def test_each_row_gets_the_token_that_was_sampled_for_it() -> None:
    bench = crowd()
    batch = Batch()
    while not (batch.decodes and batch.others):
        bench.step()
        flight = bench.engine._flight
        assert flight is not None
        batch = flight.batch
    count = len(batch.ending)
    # The second one ended after the launch: nothing was sampled for it.
    sampled = np.array([row for row in range(count) if row != 1])
    result = StepResult(sampled + 100, None)
    columns = step_output(batch, sampled, result)
    rows = step_output(by_rows(batch), sampled, result)
    assert columns.decoded_D is not None
    tokens = [RowOutput(token) for token in columns.decoded_D.tolist()] + columns.rows
    assert StepOutput(None, tokens) == rows
    assert [one.token for one in rows.rows[:3]] == [100, -1, 102]


def test_a_request_that_goes_on_is_told_of_by_name_and_token_alone() -> None:
    bench = Bench()
    names = [bench.submit([start, 2], max_tokens=6, ignore_eos=True) for start in (1, 2)]
    reports = []
    while bench.engine.has_work:
        reports.append(bench.engine.step())
    first, *further, last = [report for report in reports if report.outputs]
    assert [output.request_id for output in first.said] == names
    for report in further:
        assert (report.said, report.more_ids) == ([], names)
        assert not report.is_silent
    assert [output.finish_reason for output in last.said] == ["length", "length"]


def test_how_often_a_request_gave_way_is_told_with_all_its_later_tokens() -> None:
    bench = Bench(max_running=1)
    low = bench.submit([1, 2, 3], max_tokens=12, priority=9, ignore_eos=True)
    for _ in range(4):
        bench.step()
    bench.submit([4, 5], max_tokens=3, priority=0)
    told = []
    while bench.engine.has_work:
        gave_way = bool(bench.engine.stats().preemptions)
        outputs = bench.engine.step().outputs
        told += [each.num_preemptions for each in outputs if each.request_id == low and gave_way]
    assert len(told) > 5
    assert set(told) == {1}
