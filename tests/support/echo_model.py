"""A launcher without a model, whose output depends on everything that must be right.

It keeps a cache of its own, written and read only through the plan's slot mapping and block tables,
and the next token is a hash of what it reads there. A block given to two requests, a stale block
after preemption, a wrong position or a wrong adapter slot therefore changes the output.

It works in order but as late as it may, as a device far behind its host would: what was taken from
a launched step too early is seen as well.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from graft_runtime.engine.plan import SamplePlan, StepPlan, StepResult

VOCAB = 97

T = TypeVar("T")


def next_token(tokens: list[int], slot_key: int) -> int:
    """Return the token that follows ``tokens``; the oracle of every test that uses this model."""
    return zlib.crc32(repr((tokens, slot_key)).encode()) % VOCAB


class Handle:
    """A launched step."""

    def __init__(self, model: EchoModel, plan: StepPlan) -> None:
        self._model = model
        self._plan = plan
        self._forward = model.later(lambda: model.forward(plan))
        self._sampled: Future[StepResult] | None = None

    def sample(self, plan: SamplePlan) -> None:
        self._sampled = self._model.later(lambda: self._model.sample(self._forward.result(), plan))

    def result(self) -> StepResult:
        assert self._sampled is not None
        self._model.catch_up(self._sampled)
        return self._sampled.result()

    def abandon(self) -> None:
        self._model.catch_up(self._forward)


@dataclass
class EchoModel:
    """Stands in for `Runner`. ``slot_keys`` says which adapter's content a slot holds."""

    block_size: int
    slot_keys: dict[int, int] = field(default_factory=dict)
    poison: int | None = None
    """A token id that makes a step fail when it is computed."""
    window: int | None = None
    """How many tokens the next one depends on; None is all."""
    cache: dict[int, tuple[int, int]] = field(default_factory=dict)
    largest_step: int = 0
    tokens_computed: int = 0
    most_in_flight: int = 0
    """Launched steps of which the result had not been asked for, at most."""
    _work: deque[tuple[Future[object], Callable[[], object]]] = field(default_factory=deque)
    _tokens: list[int] | None = None

    def launch(self, plan: StepPlan) -> Handle:
        handle = Handle(self, plan)
        self.largest_step = max(self.largest_step, len(plan.token_ids_T))
        self.tokens_computed += len(plan.token_ids_T)
        self.most_in_flight = max(self.most_in_flight, len(self._work))
        return handle

    def later(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._work.append((future, work))  # type: ignore[arg-type] # a queue of all kinds
        return future

    def catch_up(self, last: Future[T]) -> None:
        """Do what is queued up to and including ``last``."""
        while not last.done():
            future, work = self._work.popleft()
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)

    def forward(self, plan: StepPlan) -> list[int]:
        """Write the step's tokens; return what follows each row that reaches its last one."""
        before, self._tokens = self._tokens, None
        tokens = plan.token_ids_T.copy()
        for place, source in zip(plan.carried_C, plan.carried_from_C, strict=True):
            assert before is not None, "a token was to come from a step that brought none"
            tokens[place] = max(0, before[source])
        if self.poison is not None and self.poison in tokens:
            message = "poisoned"
            raise RuntimeError(message)
        for token, position, slot in zip(
            tokens.tolist(), plan.positions_T.tolist(), plan.slot_mapping_T.tolist(), strict=True
        ):
            self.cache[slot] = (token, position)
        ends = {end - 1: row for row, end in enumerate(plan.query_starts[1:].tolist())}
        return [self._next(plan, ends[index]) for index in plan.logits_rows_L.tolist()]

    def sample(self, logits: list[int], plan: SamplePlan) -> StepResult:
        self._tokens = [logits[row] for row in plan.rows_S.tolist()]
        return StepResult(np.array(self._tokens, dtype=np.int64), None)

    def _next(self, plan: StepPlan, row: int) -> int:
        blocks = plan.block_tables[row]
        context = []
        length = int(plan.seq_lens_R[row])
        window = length if self.window is None else self.window
        first = length - int(plan.query_starts[row + 1] - plan.query_starts[row])
        for position in range(max(0, first + 1 - window), length):  # all that the row's tokens see
            block = blocks[position // self.block_size]
            token, written_at = self.cache[block * self.block_size + position % self.block_size]
            assert written_at == position, "a block holds another request's tokens"
            context.append(token)
        return next_token(context[-window:], self.slot_keys.get(int(plan.adapter_slots_R[row]), 0))
