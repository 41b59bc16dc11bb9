"""Biases, bans, allowed sets and penalties, from a request's parameters to changed logits.

What is tested is the whole way: parameters, a request's rules, flat arrays, scores.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from graft_runtime.engine.counts import CountSlots
from graft_runtime.engine.request import Request
from graft_runtime.engine.sampling_plan import SamplingPlanner, build_sampling
from graft_runtime.engine.token_rules import TokenRules
from graft_runtime.ipc.messages import Sampling, Watermark
from graft_runtime.sampling.batch import IntArray
from graft_runtime.sampling.counts import CountTable, penalise
from graft_runtime.sampling.edits import apply_edits
from graft_runtime.sampling.sampler import NO_TOKEN, sample
from tests.support.sampling import VOCAB, random_logits

PROMPT = [3, 4, 5, 3]
OUTPUT = [5, 7, 7, 9]
STOP = frozenset({1, 2})


def request(
    prompt: list[int] = PROMPT,
    output: list[int] = OUTPUT,
    slots: CountSlots | None = None,
    **parameters: Any,
) -> Request:
    """Return a request that has generated ``output``."""
    sampling = Sampling(max_tokens=100, **parameters)
    made = Request(
        "r",
        list(prompt),
        len(prompt),
        sampling,
        None,
        0,
        stop_ids=STOP,
        rules=TokenRules.of(sampling, prompt, STOP, CountSlots() if slots is None else slots),
    )
    for token in output:
        made.append(token)
    return made


def edited(requests: list[Request], logits: Tensor) -> Tensor:
    """Return the scores after a step of a device that knows nothing yet."""
    made = build_sampling(requests)
    scores = logits.clone()
    rows = np.arange(len(requests))
    if made.edits is not None:
        apply_edits(scores, made.edits, rows)
    if made.penalties is not None:
        counted = CountTable(torch.device("cpu")).look_up(made.penalties, made.position_S)
        penalise(scores, counted, made.penalties, rows)
    return scores


def edited_one(made: Request, logits: Tensor) -> Tensor:
    return edited([made], logits)


def transformed(made: Request, logits: Tensor, *processors: Any) -> Tensor:
    scores: Tensor = LogitsProcessorList(processors)(torch.tensor([made.tokens]), logits.clone())
    return scores


def test_a_request_without_rules_has_none() -> None:
    assert request(temperature=0.3, top_k=4).rules is None
    assert build_sampling([request(), request()]).edits is None


def test_penalties_alone_edit_no_single_token() -> None:
    made = build_sampling([request(repetition_penalty=1.3), request(presence_penalty=0.5)])
    assert made.edits is None
    assert made.penalties is not None


@pytest.mark.parametrize("penalty", [0.5, 1.3, 2.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    logits = random_logits(1)
    made = request(repetition_penalty=penalty)
    expected = transformed(made, logits, RepetitionPenaltyLogitsProcessor(penalty))
    assert torch.equal(edited_one(made, logits), expected)


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.4), (-1.5, 2.0)])
def test_presence_and_frequency_count_the_output_alone(presence: float, frequency: float) -> None:
    logits = random_logits(1)
    made = request(presence_penalty=presence, frequency_penalty=frequency)
    expected = logits[0].clone()
    for token in set(OUTPUT):
        expected[token] -= presence + frequency * OUTPUT.count(token)
    torch.testing.assert_close(edited_one(made, logits)[0], expected)


def test_all_penalties_together_follow_their_definitions() -> None:
    logits = random_logits(1)
    output = list(np.random.default_rng(0).integers(0, VOCAB, 300))
    made = request(
        output=[int(token) for token in output],
        repetition_penalty=1.7,
        presence_penalty=0.3,
        frequency_penalty=0.2,
    )
    expected = logits[0].clone()
    for token in {*PROMPT, *made.tokens}:
        value = expected[token]
        value = value / 1.7 if value > 0 else value * 1.7
        count = output.count(token)
        expected[token] = value - 0.2 * count - 0.3 * (count > 0)
    torch.testing.assert_close(edited_one(made, logits)[0], expected)


def test_a_bias_is_transformers_sequence_bias() -> None:
    logits = random_logits(1)
    made = request(logit_bias={4: 2.5, 9: -100.0})
    processor = SequenceBiasLogitsProcessor({(4,): 2.5, (9,): -100.0})
    assert torch.equal(edited_one(made, logits), transformed(made, logits, processor))


@pytest.mark.parametrize("output", [[], [7], [8], [7, 8], [8, 7], [6, 7, 8]])
def test_bad_words_are_transformers(output: list[int]) -> None:
    logits = random_logits(1)
    words = [[11], [7, 12], [7, 8, 13], [5, 3, 14], [3, 7, 15]]
    made = request(output=output, bad_words=tuple(tuple(word) for word in words))
    expected = transformed(made, logits, NoBadWordsLogitsProcessor(words))
    assert torch.equal(edited_one(made, logits), expected)
    assert bool(expected[0, 11].isneginf())


@pytest.mark.parametrize("count", [0, 3, 4, 5])
def test_min_tokens_is_transformers(count: int) -> None:
    logits = random_logits(1)
    made = request(min_tokens=count)
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), count, sorted(STOP))
    assert torch.equal(edited_one(made, logits), transformed(made, logits, processor))


def test_only_allowed_tokens_are_left() -> None:
    logits = random_logits(1)
    scores = edited_one(request(allowed_token_ids=(4, 8)), logits)[0]
    assert scores.isfinite().nonzero()[:, 0].tolist() == [4, 8]
    assert torch.equal(scores[[4, 8]], logits[0, [4, 8]])


def test_the_allowed_set_is_transformers_constraint() -> None:
    logits = random_logits(1)
    made = request(allowed_token_ids=(4, 8, 30))
    processor = PrefixConstrainedLogitsProcessor(lambda _batch, _tokens: [4, 8, 30], num_beams=1)
    torch.testing.assert_close(edited_one(made, logits), transformed(made, logits, processor))


@pytest.mark.parametrize("count", [2, 9])
def test_all_rules_and_all_narrowing_are_transformers_in_its_order(count: int) -> None:
    """The distribution that is drawn from, as `generate` would make it."""
    logits = random_logits(1, seed=3)
    words = [[11], [7, 9, 8]]
    made = request(
        seed=5,
        logit_bias={4: 2.5, 9: -3.0, 30: 1.5},
        repetition_penalty=1.3,
        bad_words=tuple(tuple(word) for word in words),
        min_tokens=count,
        temperature=2.0,
        top_k=30,
        top_p=0.95,
        min_p=0.02,
        typical_p=0.9,
        logprobs=True,
        top_logprobs=VOCAB,
        processed_logprobs=True,
    )
    expected = transformed(
        made,
        logits,
        SequenceBiasLogitsProcessor({(4,): 2.5, (9,): -3.0, (30,): 1.5}),
        RepetitionPenaltyLogitsProcessor(1.3),
        NoBadWordsLogitsProcessor(words),
        MinNewTokensLengthLogitsProcessor(len(PROMPT), count, sorted(STOP)),
        TemperatureLogitsWarper(2.0),
        TopKLogitsWarper(30),
        TopPLogitsWarper(0.95),
        MinPLogitsWarper(0.02),
        TypicalLogitsWarper(0.9),
    ).log_softmax(dim=-1)[0]
    sampled = sample(logits, build_sampling([made]))
    assert sampled.top_ids_SK is not None
    assert sampled.top_logprobs_SK is not None
    drawn_from = torch.full((VOCAB,), float("-inf"))
    drawn_from[sampled.top_ids_SK[0]] = sampled.top_logprobs_SK[0]
    assert 3 < int(expected.isfinite().sum()) < VOCAB - 20
    torch.testing.assert_close(drawn_from, expected)


MIXED: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4},
    {"logit_bias": {3: 5.0}, "min_tokens": 9},
    {"temperature": 0.0, "frequency_penalty": 1.0, "presence_penalty": 0.5},
    {"allowed_token_ids": (7, 8, 9), "temperature": 0.7},
    {"bad_words": ((9, 4), (8,)), "temperature": 0.0},
    {"temperature": 0.0},
    {"allowed_token_ids": (7,), "repetition_penalty": 2.0, "min_p": 0.2, "typical_p": 0.5},
]


def test_a_row_with_rules_is_the_same_alone_and_in_any_company() -> None:
    logits = random_logits(len(MIXED), seed=8)
    extra: dict[str, Any] = {"logprobs": True, "top_logprobs": 4, "processed_logprobs": True}
    slots = CountSlots()
    requests = [request(seed=row, slots=slots, **extra, **each) for row, each in enumerate(MIXED)]
    together = sample(logits, build_sampling(requests))
    assert together.logprobs_S is not None
    assert together.top_ids_SK is not None
    for row, made in enumerate(requests):
        alone = sample(logits[row : row + 1], build_sampling([made]))
        assert alone.logprobs_S is not None
        assert alone.top_ids_SK is not None
        assert alone.token_ids_S[0] == together.token_ids_S[row]
        assert alone.logprobs_S[0] == together.logprobs_S[row]
        assert torch.equal(alone.top_ids_SK[0], together.top_ids_SK[row])
    scores = edited(requests, logits)
    for row in (3, 5, 6):
        assert together.token_ids_S[row] == scores[row].argmax()


def test_rules_that_leave_no_token_fail_their_row_alone() -> None:
    logits = random_logits(3)
    stuck = request(allowed_token_ids=(1, 2), min_tokens=9)
    for temperature in (0.0, 1.0):
        free = request(temperature=temperature)
        stuck = request(allowed_token_ids=(1, 2), min_tokens=9, temperature=temperature)
        tokens = sample(logits, build_sampling([free, stuck, free])).token_ids_S.tolist()
        assert tokens[1] == NO_TOKEN
        assert tokens[0] >= 0
        assert tokens[2] >= 0


def test_the_callers_logits_are_left_alone() -> None:
    logits = random_logits(len(MIXED))
    before = logits.clone()
    sample(logits, build_sampling([request(**each) for each in MIXED]))
    assert torch.equal(logits, before)


def test_what_a_planner_keeps_between_steps_is_what_it_would_build_anew() -> None:
    made = [
        request(temperature=0.5, top_k=3, seed=9),
        request(temperature=0.0, bad_words=((7, 9, 8),), min_tokens=6),
        request(temperature=0.0, watermark=Watermark(context_width=2)),
        request(temperature=1.0, top_logprobs=2, logprobs=True),
    ]
    planner = SamplingPlanner()
    for running in (made, made, made[1:], made[1:], list(reversed(made)), []):
        assert_same(planner.build(list(running), lengths(running)), build_sampling(running))
        for one in running:
            one.append(8)


def lengths(requests: Sequence[Request]) -> IntArray:
    return np.array([len(each.tokens) for each in requests], dtype=np.int64)


def assert_same(one: object, other: object) -> None:
    """Compare dataclasses, tuples and arrays, field by field."""
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()
    elif is_dataclass(one) and not isinstance(one, type):
        assert type(one) is type(other)
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    else:
        assert one == other
