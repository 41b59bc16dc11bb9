"""Counts of penalised requests' tokens, kept on the device from step to step."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_runtime.engine.counts import CountSlots
from graft_runtime.engine.request import Request
from graft_runtime.engine.runner import Runner
from graft_runtime.engine.sampling_plan import build_sampling
from graft_runtime.engine.token_rules import TokenRules
from graft_runtime.ipc.messages import Sampling
from graft_runtime.sampling.counts import CountTable
from tests.support.bigram import bigram_engine
from tests.support.sampling import VOCAB, random_logits

PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.2,
}


def start(slots: CountSlots, prompt: list[int]) -> Request:
    sampling = Sampling(max_tokens=100, **PENALTIES)
    rules = TokenRules.of(sampling, prompt, frozenset(), slots)
    return Request("r", list(prompt), len(prompt), sampling, None, 0, rules=rules)


def expected(request: Request, logits: torch.Tensor) -> torch.Tensor:
    """Apply the definitions to one row."""
    scores = logits.clone()
    output = request.tokens[request.num_prompt :]
    for token in set(request.tokens):
        value = scores[token]
        value = value / 1.3 if value > 0 else value * 1.3
        scores[token] = value - 0.2 * output.count(token) - 0.4 * (token in output)
    return scores


STEPS = st.lists(st.sampled_from(["step", "step", "step", "come", "go", "lose"]), max_size=40)


@given(actions=STEPS, seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_device_always_knows_what_the_host_counts(actions: list[str], seed: int) -> None:
    """Requests come, decode, end and lose a step, in any order; slots are taken over."""
    chance = random.Random(seed)
    slots, table = CountSlots(), CountTable(torch.device("cpu"))
    running: list[Request] = []
    for step, action in enumerate(["come", *actions]):
        if action == "come":
            running.append(start(slots, chance.choices(range(VOCAB), k=chance.randint(1, 30))))
        elif action == "go" and running:
            ended = running.pop(chance.randrange(len(running)))
            assert ended.rules is not None
            ended.rules.release()
        elif action == "lose":
            build_sampling(running)  # it never reaches the device
            for one in running:
                one.forget_sent()
        chosen = [one for one in running if chance.random() < 0.7]
        penalties = build_sampling(chosen).penalties
        if penalties is None:
            continue
        logits = random_logits(len(chosen), seed=step)
        scores = logits.clone()
        table.penalise(scores, penalties, penalties.rows_Q)
        for row, one in enumerate(chosen):
            torch.testing.assert_close(scores[row], expected(one, logits[row]))
            one.append(chance.randrange(VOCAB))


def test_a_step_sends_one_token_per_row_and_not_the_whole_context() -> None:
    slots = CountSlots()
    requests = [start(slots, list(range(40))) for _ in range(3)]
    sent = []
    for token in (3, 3, 45):
        penalties = build_sampling(requests).penalties
        assert penalties is not None
        sent.append(len(penalties.changed_ids_E))
        for one in requests:
            one.append(token)
    assert sent == [120, 3, 3]


def test_a_slot_is_given_to_the_next_request() -> None:
    slots = CountSlots()
    requests = [start(slots, [1]) for _ in range(3)]
    taken = [one.rules.counts.slot for one in requests if one.rules and one.rules.counts]
    assert taken == [0, 1, 2]
    assert requests[1].rules is not None
    requests[1].rules.release()
    another = start(slots, [1])
    assert another.rules is not None
    assert another.rules.counts is not None
    assert another.rules.counts.slot == 1


def test_penalised_requests_are_the_same_alone_in_company_and_after_preemption() -> None:
    roomy, tight = (bigram_engine(VOCAB, frozenset(), num_blocks=n) for n in (256, 20))
    for number in range(10):
        penalties = PENALTIES if number % 3 else {}
        for run in (roomy, tight):
            run.submit(f"r{number}", [number, 4], max_tokens=50, seed=number, **penalties)
    alone = bigram_engine(VOCAB, frozenset())
    alone.submit("r7", [7, 4], max_tokens=50, seed=7, **PENALTIES)
    for run in (roomy, tight, alone):
        run.finish()
    assert tight.engine.stats().preemptions > 0
    for number in range(10):
        assert tight.tokens(f"r{number}") == roomy.tokens(f"r{number}")
    assert alone.tokens("r7") == roomy.tokens("r7")
    assert not roomy.engine._count_slots._num_made > 10


def test_a_step_that_fails_loses_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of a failed step were sent and may not have arrived."""
    whole = bigram_engine(VOCAB, frozenset())
    broken = bigram_engine(VOCAB, frozenset())
    real = Runner._sample
    calls = [0]

    def sometimes(self: Runner, *arguments: object) -> object:
        calls[0] += 1
        if calls[0] % 7 == 3:
            message = "spurious"
            raise RuntimeError(message)
        return real(self, *arguments)  # type: ignore[arg-type] # passed through

    for run in (whole, broken):
        for number in range(3):
            run.submit(f"r{number}", [number], max_tokens=40, seed=number, **PENALTIES)
    whole.finish()
    monkeypatch.setattr(Runner, "_sample", sometimes)
    broken.finish()
    assert calls[0] > 40
    for number in range(3):
        assert broken.tokens(f"r{number}") == whole.tokens(f"r{number}")
