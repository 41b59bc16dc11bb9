"""A launcher without a model, whose output depends on everything that must be right.

It keeps a cache of its own, written and read only through the plan's slot mapping and block tables,
and the next token is a hash of what it reads there. A block given to two requests, a stale block
after preemption, a wrong position or a wrong adapter slot therefore changes the output.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from graft_runtime.engine.plan import StepPlan, StepResult

VOCAB = 97


def next_token(tokens: list[int], slot_key: int) -> int:
    """Return the token that follows ``tokens``; the oracle of every test that uses this model."""
    return zlib.crc32(repr((tokens, slot_key)).encode()) % VOCAB


@dataclass
class Handle:
    """A step that has run."""

    value: StepResult

    def result(self) -> StepResult:
        return self.value


@dataclass
class EchoModel:
    """Stands in for `Runner`. ``slot_keys`` says which adapter's content a slot holds."""

    block_size: int
    slot_keys: dict[int, int] = field(default_factory=dict)
    poison: int | None = None
    """A token id that makes a step fail when it is computed."""
    cache: dict[int, tuple[int, int]] = field(default_factory=dict)
    largest_step: int = 0

    def launch(self, plan: StepPlan) -> Handle:
        self.largest_step = max(self.largest_step, len(plan.token_ids_T))
        if self.poison is not None and self.poison in plan.token_ids_T:
            message = "poisoned"
            raise RuntimeError(message)
        for token, position, slot in zip(
            plan.token_ids_T.tolist(),
            plan.positions_T.tolist(),
            plan.slot_mapping_T.tolist(),
            strict=True,
        ):
            self.cache[slot] = (token, position)
        ends = {end - 1: row for row, end in enumerate(plan.query_starts[1:].tolist())}
        tokens = [self._sample(plan, ends[index]) for index in plan.logits_rows_S.tolist()]
        return Handle(StepResult(np.array(tokens, dtype=np.int64), None))

    def _sample(self, plan: StepPlan, row: int) -> int:
        start, end = plan.block_starts[row : row + 2].tolist()
        blocks = plan.block_ids_N[start:end].tolist()
        context = []
        for position in range(int(plan.seq_lens_R[row])):
            block = blocks[position // self.block_size]
            token, written_at = self.cache[block * self.block_size + position % self.block_size]
            assert written_at == position, "a block holds another request's tokens"
            context.append(token)
        return next_token(context, self.slot_keys.get(int(plan.adapter_slots_R[row]), 0))
