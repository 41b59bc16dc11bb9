"""What a step computes for each of its requests, as it was when the step was chosen.

The scheduler makes them; the plan and the outputs are read from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from graft_runtime.engine.request import Request

NOTHING: Final = range(0)


class Row(NamedTuple):
    """One request's part of a step, as it was when the step was chosen."""

    request: Request
    start: int
    """Position of its first token."""
    num_tokens: int
    samples: bool
    """Whether this part reaches the last token, so that a new one is sampled."""
    scored: range
    """Positions of the prompt's tokens whose scores this part brings."""
    pooled: range
    """Positions of the tokens whose hidden states it adds up."""
    slot: int
    table: list[int]
    """The request's blocks. It may have lost them since: until the step retires they are here."""
    epoch: int

    @property
    def is_current(self) -> bool:
        """Whether the request still is where this part left it."""
        request = self.request
        return not request.has_ended and request.epoch == self.epoch


@dataclass(eq=False)
class Batch:
    """The rows of one step, from its launch until it retires."""

    rows: list[Row] = field(default_factory=list)
    held: list[list[int]] = field(default_factory=list)
    """Tables of requests that lost their blocks while this step was to use them."""

    @cached_property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(row.num_tokens for row in self.rows)

    def first_time(self) -> list[str]:
        """Return which requests are launched for the first time, and note that they have been."""
        new = [row.request for row in self.rows if not row.request.has_started]
        for request in new:
            request.has_started = True
        return [request.request_id for request in new]


def decode_row(request: Request) -> Row:
    """Return `row_of` one token for a plain request that has one left; it runs for every row."""
    return Row(
        request,
        request.num_computed,
        1,
        True,
        NOTHING,
        NOTHING,
        request.slot,
        request.blocks,
        request.epoch,
    )


def row_of(request: Request, num_tokens: int) -> Row:
    """Return the part of a step that computes a request's next tokens."""
    start = request.num_computed
    scored = NOTHING
    if request.is_scoring:
        first = max(start, request.num_scored) + 1
        scored = range(first, min(start + num_tokens + 1, request.num_prompt))
    samples = num_tokens == request.num_remaining
    pooled = range(0)
    if request.sampling.pooling == "mean":
        pooled = range(start, start + num_tokens)
    elif request.sampling.pooling == "last" and samples:
        pooled = range(start + num_tokens - 1, start + num_tokens)
    slot, table, epoch = request.slot, request.blocks, request.epoch
    return Row(request, start, num_tokens, samples, scored, pooled, slot, table, epoch)
