"""What a step computes for each of its requests, as it was when the step was chosen.

The scheduler makes them; the plan and the outputs are read from them. Most rows of most steps are
one more token for a request that wants nothing else, so these are kept as columns, and nothing is
made for each of them.

Shape legend: D rows of `Decodes`, L rows that reach their last token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from graft_runtime.engine.request import Request
from graft_runtime.sampling.batch import IntArray

NOTHING: Final = range(0)

_slot = attrgetter("slot")
_start = attrgetter("num_computed")
_table = attrgetter("blocks")
_epoch = attrgetter("epoch")
_rope_variant = attrgetter("rope_variant")


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


@dataclass(frozen=True, eq=False)
class Decodes:
    """Rows of one token that is output already, for requests that want nothing but one more."""

    requests: list[Request]
    """Each adapter's lie together: then nothing has to be gathered."""
    starts_D: IntArray
    """See `Row`, as for the others."""
    slots_D: IntArray
    rope_variants_D: IntArray
    """See `RopeSpec.variant`."""
    tables: list[list[int]]
    epochs: list[int]

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Decodes:
        """Return the rows of such requests, each of which has one token left to launch."""
        ordered = sorted(requests, key=_slot)
        count = len(ordered)
        return cls(
            ordered,
            column(map(_start, ordered), count),
            column(map(_slot, ordered), count),
            column(map(_rope_variant, ordered), count),
            list(map(_table, ordered)),
            list(map(_epoch, ordered)),
        )

    def again(self) -> Decodes:
        """Return the rows of the same requests in the next step that has all of them.

        Only where each has got is new: what has lost its blocks is not in every step.
        """
        starts_D = column(map(_start, self.requests), len(self.requests))
        return replace(self, starts_D=starts_D)

    def __len__(self) -> int:
        return len(self.requests)

    @cached_property
    def places(self) -> dict[Request, int]:
        """Where each request's row is."""
        return {request: place for place, request in enumerate(self.requests)}

    def row(self, at: int) -> Row:
        """Return one of them by itself."""
        start, slot = int(self.starts_D[at]), int(self.slots_D[at])
        table, epoch = self.tables[at], self.epochs[at]
        return Row(self.requests[at], start, 1, True, NOTHING, NOTHING, slot, table, epoch)


def column(numbers: Iterable[int], count: int) -> IntArray:
    """Return so many numbers as an array."""
    return np.fromiter(numbers, dtype=np.int64, count=count)


def joined(decoded_D: IntArray, others: Sequence[int]) -> IntArray:
    """Return a column of all rows; most steps have no others."""
    return np.concatenate((decoded_D, np.array(others, dtype=np.int64))) if others else decoded_D


NO_DECODES: Final = Decodes.of(())


@dataclass(eq=False)
class Batch:
    """The rows of one step, from its launch until it retires."""

    others: list[Row] = field(default_factory=list)
    """All that are not in ``decodes``; in the step they come after these."""
    decodes: Decodes = NO_DECODES
    held: list[list[int]] = field(default_factory=list)
    """Tables of requests that lost their blocks while this step was to use them."""

    @property
    def num_rows(self) -> int:
        """How many requests the step computes something of."""
        return len(self.decodes) + len(self.others)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return len(self.decodes) + sum(row.num_tokens for row in self.others)

    @cached_property
    def rows(self) -> list[Row]:
        """All rows, in their order in the step; for what is rare."""
        return [*map(self.decodes.row, range(len(self.decodes))), *self.others]

    @cached_property
    def ending(self) -> list[Request]:
        """The requests whose last token is reached, in the order of the step's logits."""
        return [*self.decodes.requests, *(row.request for row in self.others if row.samples)]

    @property
    def end_lengths(self) -> IntArray:
        """How many tokens each ``ending`` one has by the time that the step samples; [L]."""
        ends = [row.start + row.num_tokens for row in self.others if row.samples]
        return joined(self.decodes.starts_D + 1, ends)

    def requests(self) -> Iterator[Request]:
        """Iterate over the requests, in the order of the rows."""
        yield from self.decodes.requests
        for row in self.others:
            yield row.request

    def ended(self) -> list[Request]:
        """Return the requests to whose clients nothing more is to be said."""
        ended = [request for request in self.decodes.requests if request.has_ended]
        return ended + [row.request for row in self.others if row.request.has_ended]

    def names(self, request: Request) -> bool:
        """Tell whether a row is the request's, from since it was last preempted."""
        place = self.decodes.places.get(request)
        if place is not None:
            return self.decodes.epochs[place] == request.epoch
        return any(row.request is request and row.epoch == request.epoch for row in self.others)

    def first_time(self) -> list[str]:
        """Return which requests are launched for the first time, and note that they have been."""
        # One that has output has been launched before.
        new = [row.request for row in self.others if not row.request.has_started]
        for request in new:
            request.has_started = True
        return [request.request_id for request in new]


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
