"""Tokens go to those that still want them, and to nobody else."""

from __future__ import annotations

import numpy as np

from graft_runtime.engine.batch import Batch
from graft_runtime.engine.delivery import Delivery
from graft_runtime.engine.outputs import NOT_FINITE
from graft_runtime.engine.plan import build_sample_plan
from graft_runtime.engine.sampling_plan import SamplingPlanner
from tests.support.engine_bench import Bench


def decoding(bench: Bench, count: int) -> Batch:
    """Return a launched step in which so many requests decode and nothing else is computed."""
    batch = Batch()
    while len(batch.decodes) < count or batch.others:
        bench.step()
        flight = bench.engine._flight
        assert flight is not None
        batch = flight.batch
    return batch


def test_what_was_sampled_for_a_request_that_has_ended_is_told_to_nobody() -> None:
    bench = Bench()
    names = [bench.submit([start], max_tokens=30, ignore_eos=True) for start in (1, 2, 3)]
    batch = decoding(bench, 3)
    gone, *others = batch.decodes.requests
    length = len(gone.tokens)
    bench.engine.abort(gone.request_id)
    delivery = Delivery()
    assert delivery.decoded(batch, np.array([7, 8, 9])) == []
    assert len(gone.tokens) == length
    assert [request.tokens[-1] for request in others] == [8, 9]
    assert delivery.report.more_ids == [name for name in names if name != gone.request_id]
    assert delivery.report.more_tokens == [8, 9]
    assert (delivery.report.said, delivery.counters.generation_tokens) == ([], 2)


def test_a_request_that_gets_no_token_ends_and_is_told_why() -> None:
    bench = Bench()
    for start in (1, 2):
        bench.submit([start], max_tokens=30, ignore_eos=True)
    batch = decoding(bench, 2)
    first, second = batch.decodes.requests
    length = len(first.tokens)
    delivery = Delivery()
    assert delivery.decoded(batch, np.array([NOT_FINITE, 8])) == [first]
    assert (len(first.tokens), second.tokens[-1]) == (length, 8)
    (said,) = delivery.report.said
    assert (said.request_id, said.finish_reason) == (first.request_id, "error")
    assert delivery.report.more_ids == [second.request_id]


def test_nothing_is_sampled_for_a_request_that_has_ended_since_the_launch() -> None:
    bench = Bench()
    for start in (1, 2, 3):
        bench.submit([start], max_tokens=30, ignore_eos=True)
    batch = decoding(bench, 3)
    first, gone, last = batch.decodes.requests
    bench.engine.abort(gone.request_id)
    plan = build_sample_plan(batch, SamplingPlanner())
    assert plan.rows_S.tolist() == [0, 2]
    assert plan.sampling.position_S.tolist() == [first.num_output, last.num_output]
