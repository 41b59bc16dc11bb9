"""Counts of penalised requests' tokens, kept by the device from step to step."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_runtime.engine.counts import CountSlots
from graft_runtime.engine.request import Request
from graft_runtime.engine.runner import Runner
from graft_runtime.engine.sampling_plan import SamplingPlanner, build_sampling
from graft_runtime.engine.token_rules import TokenRules
from graft_runtime.ipc.messages import Sampling, Watermark
from graft_runtime.sampling.batch import (
    ForcedTokens,
    Penalties,
    SamplingBatch,
    TokenMasks,
    WatermarkedRow,
)
from graft_runtime.sampling.counts import Counted, CountTable, penalise
from graft_runtime.sampling.sampler import NO_TOKEN, NOT_FINITE, sample
from tests.support.bigram import BigramEngine, bigram_engine
from tests.support.sampling import VOCAB, random_logits

CPU: Final = torch.device("cpu")
PENALTIES: Final[dict[str, Any]] = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.2,
}


def start(slots: CountSlots, prompt: list[int], **parameters: Any) -> Request:
    sampling = Sampling(**({"max_tokens": 100} | PENALTIES | parameters))
    rules = TokenRules.of(sampling, prompt, frozenset(), slots)
    return Request("r", list(prompt), len(prompt), sampling, None, 0, rules=rules)


def plan(planner: SamplingPlanner, requests: list[Request]) -> SamplingBatch:
    lengths = np.array([len(one.tokens) for one in requests], dtype=np.int64)
    return planner.build(list(requests), lengths)


def penalties_of(batch: SamplingBatch) -> Penalties:
    assert batch.penalties is not None
    return batch.penalties


def expected(request: Request, logits: torch.Tensor) -> torch.Tensor:
    """Apply the definitions to one row."""
    scores = logits.clone()
    output = request.tokens[request.num_prompt :]
    for token in set(request.tokens):
        value = scores[token]
        value = value / 1.3 if value > 0 else value * 1.3
        scores[token] = value - 0.2 * output.count(token) - 0.4 * (token in output)
    return scores


def held(counted: Counted, row: int) -> dict[int, int]:
    """Return how often the device has counted each token of a row."""
    size = int(counted.sizes_Q[row])
    ids = counted.ids_QK[row, :size].tolist()
    assert len(set(ids)) == size
    return dict(zip(ids, counted.counts_QK[row, :size].tolist(), strict=True))


def counted_by_hand(request: Request) -> dict[int, int]:
    output = Counter(request.tokens[request.num_prompt :])
    return {token: output[token] for token in request.tokens}


def wide_table() -> CountTable:
    """Return one that looks up what one on a GPU does, where sizes cannot be read."""
    table = CountTable(CPU)
    table._is_at_hand = False
    return table


ACTIONS = st.lists(
    st.sampled_from(["step", "step", "step", "come", "go", "break", "lose", "fail"]), max_size=40
)


@given(actions=ACTIONS, seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_device_always_knows_all_tokens(actions: list[str], seed: int) -> None:
    """Requests come, decode, end and lose a step, in any order; slots are taken over."""
    chance = random.Random(seed)
    slots, planner, tables = CountSlots(), SamplingPlanner(), (CountTable(CPU), wide_table())
    running: list[Request] = []
    for step, action in enumerate(["come", *actions]):
        if action == "come":
            running.append(start(slots, chance.choices(range(VOCAB), k=chance.randint(1, 30))))
        # Those that are left out are as if they were preempted.
        chosen = [one for one in running if chance.random() < 0.8]
        if not chosen:
            continue
        batch, logits = plan(planner, chosen), random_logits(len(chosen), seed=step)
        tokens = [chance.randrange(VOCAB) for _ in chosen]
        if action == "break":
            tokens[0] = chance.choice([NOT_FINITE, NO_TOKEN])
        if action != "lose":  # then it never reaches the device
            for table in tables:
                counted = table.look_up(penalties_of(batch), batch.position_S)
                scores = logits.clone()
                penalise(scores, counted, penalties_of(batch), np.arange(len(chosen)))
                for row, one in enumerate(chosen):
                    assert held(counted, row) == counted_by_hand(one)
                    torch.testing.assert_close(scores[row], expected(one, logits[row]))
                table.add(counted, torch.tensor(tokens))
        if action in {"lose", "fail"}:
            planner.forget(chosen)
            continue
        for one, token in zip(chosen, tokens, strict=True):
            one.append(token)
        ended = chosen[:1] if action in {"go", "break"} else []
        running = [one for one in running if one not in ended]
        for one in ended:
            assert one.rules is not None
            one.rules.release()


def test_numbers_are_bit_for_bit_the_same_however_wide_the_rows_are() -> None:
    slots, planner, narrow, wide = CountSlots(), SamplingPlanner(), CountTable(CPU), wide_table()
    requests = [start(slots, [1, 2, 3][:size]) for size in (1, 2, 3)]
    widths = []
    for step in range(30):
        logits, batch = random_logits(3, seed=step), plan(planner, requests)
        found = []
        for table in (narrow, wide):
            counted = table.look_up(penalties_of(batch), batch.position_S)
            scores = logits.clone()
            penalise(scores, counted, penalties_of(batch), np.arange(3))
            table.add(counted, torch.tensor([step % 4, 5, 1]))
            found.append(scores)
            widths.append(counted.ids_QK.shape[1])
        assert torch.equal(*found)
        for one, token in zip(requests, (step % 4, 5, 1), strict=True):
            one.append(token)
    assert widths[-2] < 6 < widths[-1] == 3 + 29


def test_tokens_are_told_once_and_again_when_a_step_has_failed() -> None:
    slots, planner = CountSlots(), SamplingPlanner()
    requests = [start(slots, list(range(40))) for _ in range(3)]
    sent = []
    for step, running in enumerate((3, 3, 3, 2, 2, 3, 3, 3)):
        if step == 6:
            planner.forget(requests)  # and the same ones go on
        told = penalties_of(plan(planner, requests[:running])).told
        sent.append(0 if told is None else len(told.ids_E))
        for one in requests[:running]:
            one.append(45)
    assert sent == [120, 0, 0, 0, 0, 0, 123, 0]


def test_the_plan_of_those_that_go_on_has_the_same_penalties() -> None:
    requests, planner = [start(CountSlots(), [1, 2])], SamplingPlanner()
    told, second, third = (penalties_of(plan(planner, requests)) for _ in range(3))
    assert told is not second
    assert second is third


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


def counts_after(requests: list[Request], batch: SamplingBatch, table: CountTable) -> list[Any]:
    """Return what the device has of each request after a step."""
    again = replace(penalties_of(batch), told=None)
    counted = table.look_up(again, batch.position_S + 1)
    return [held(counted, row) for row in range(len(requests))]


def test_no_token_is_not_counted() -> None:
    slots, table = CountSlots(), CountTable(CPU)
    requests = [
        start(slots, [3, 4], temperature=0.0),
        start(slots, [3, 4], temperature=0.0, allowed_token_ids=(7,), logit_bias={7: -np.inf}),
        start(slots, [3, 4], temperature=0.0),
    ]
    logits, batch = random_logits(3), build_sampling(requests)
    logits[0, 9] = torch.nan
    tokens = sample(logits, batch, table).token_ids_S.tolist()
    assert tokens[:2] == [NOT_FINITE, NO_TOKEN]
    nothing = {3: 0, 4: 0}
    assert counts_after(requests, batch, table) == [nothing, nothing, nothing | {tokens[2]: 1}]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_counted_is_what_is_given_out(temperature: float) -> None:
    """Forced tokens, grammars' masks and watermarks have the last word."""
    slots, table = CountSlots(), CountTable(CPU)
    requests = [start(slots, [3, 4], temperature=temperature, seed=row) for row in range(4)]
    only_eleven = np.array([[1 << 11, 0]], dtype=np.int32)
    mark = Watermark(bias=100.0, context_width=1, greenlist_ratio=0.1)
    plain = build_sampling(requests)
    asked = replace(
        plain,
        forced=ForcedTokens(np.array([1]), np.array([17])),
        masks=TokenMasks(np.array([2]), only_eleven),
        watermarked=(WatermarkedRow(3, mark, (4,)),),
    )
    logits = random_logits(4)
    logits[:, 9] = 30.0  # what each row had without them
    tokens = sample(logits, asked, table).token_ids_S.tolist()
    assert tokens[:3] == [9, 17, 11]
    assert tokens[3] != 9
    assert counts_after(requests, asked, table) == [{3: 0, 4: 0} | {token: 1} for token in tokens]


def test_a_step_reads_nothing_of_what_the_device_has() -> None:
    """On a device whose numbers do not exist, whatever would wait for them fails."""
    slots, planner, table = CountSlots(), SamplingPlanner(), CountTable(torch.device("meta"))
    requests = [start(slots, list(range(size)), temperature=size % 2) for size in (3, 4, 5)]
    for _ in range(3):
        batch = plan(planner, requests)
        assert sample(random_logits(3).to("meta"), batch, table).token_ids_S.is_meta
        for one in requests:
            one.append(1)


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


class Breaks:
    """Makes steps of an engine fail, before or after the device has counted their tokens."""

    def __init__(self, patch: pytest.MonkeyPatch, run: BigramEngine, every: int = 0) -> None:
        self._runner = run.engine._runner
        self._every = every
        self._doomed: dict[int, str] = {}
        self.num_sampled = 0
        self.due = ""
        """How the next step is to fail; decided when it is launched, whenever the lane runs it."""
        patch.setattr(self._runner, "launch_sampling", self._launch_sampling, raising=False)
        patch.setattr(self._runner, "_sample", self._sample, raising=False)

    def _launch_sampling(self, *arguments: Any) -> Any:
        self.num_sampled += 1
        if self._every and self.num_sampled % self._every == 3:
            self.due = "late" if self.num_sampled % 2 else "early"
        self._doomed[id(arguments[-1])], self.due = self.due, ""
        return Runner.launch_sampling(self._runner, *arguments)  # type: ignore[arg-type] # is one

    def _sample(self, *arguments: Any) -> Any:
        due = self._doomed.pop(id(arguments[-1]))
        if due == "early":
            raise RuntimeError(due)
        landing = Runner._sample(self._runner, *arguments)  # type: ignore[arg-type] # is one
        if due == "late":
            raise RuntimeError(due)
        return landing


@pytest.mark.parametrize("num_requests", [1, 3])
def test_a_step_that_fails_loses_no_count_and_adds_none_twice(
    num_requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed step's tokens may have been counted, and are not the requests'."""
    whole = bigram_engine(VOCAB, frozenset())
    broken = bigram_engine(VOCAB, frozenset())
    breaks = Breaks(monkeypatch, broken, every=7)
    for run in (whole, broken):
        for number in range(num_requests):
            run.submit(f"r{number}", [number], max_tokens=40, seed=number, **PENALTIES)
        run.finish()
    assert breaks.num_sampled > 45  # 40, and those that are run again
    for number in range(num_requests):
        assert broken.tokens(f"r{number}") == whole.tokens(f"r{number}")


LENGTH: Final = 24


def submit(run: BigramEngine, number: int) -> str:
    """Submit one of a few requests, each with a name of its own; every third is not penalised."""
    name, kind = f"r{number}", number % 6
    penalties = PENALTIES if kind % 3 else {}
    run.submit(name, [kind, 4], max_tokens=LENGTH, seed=kind, **penalties)
    return name


@cache
def alone(kind: int) -> list[int]:
    run = bigram_engine(VOCAB, frozenset())
    name = submit(run, kind)
    run.finish()
    return run.tokens(name)


EVENTS = st.lists(
    st.sampled_from(["step"] * 6 + ["submit", "submit", "abort", "early", "late"]),
    min_size=10,
    max_size=60,
)


@given(events=EVENTS, seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_nothing_that_happens_to_others_changes_a_penalised_request(
    events: list[str], seed: int
) -> None:
    """Others take over slots under launched steps, steps fail, and so few blocks make way."""
    chance, run, running = random.Random(seed), bigram_engine(VOCAB, frozenset(), num_blocks=12), []
    with pytest.MonkeyPatch.context() as patch:
        breaks = Breaks(patch, run)
        for number, event in enumerate(["submit", "submit", *events]):
            if event == "submit":
                running.append(submit(run, number))
            elif event == "abort" and running:
                run.engine.abort(running.pop(chance.randrange(len(running))))
            elif event in {"early", "late"}:
                breaks.due = event
                run.step()
                breaks.due = ""  # in case that it had nothing to sample
            run.step()
        run.finish()
    for name in run.outputs:
        tokens, whole = run.tokens(name), alone(int(name[1:]) % 6)
        assert tokens == (whole if name in running else whole[: len(tokens)])
