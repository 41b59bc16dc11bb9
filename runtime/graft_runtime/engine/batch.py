"""What a step computes for each of its requests, as it was when the step was chosen.

The scheduler makes them; the plan and the outputs are read from them. Most rows of most steps are
one more token for a request that wants nothing else, so these are kept as columns, and nothing is
made for each of them.

Shape legend: D rows of `Decodes`, L rows that reach their last token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from graft_runtime.engine.request import Request
from graft_runtime.sampling.batch import BoolArray, IntArray

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


@dataclass(frozen=True, eq=False)
class Members:
    """Requests that decode together, and what of them stays the same meanwhile."""

    requests: list[Request]
    """Each adapter's lie together: then nothing has to be gathered."""
    ids: list[str]
    histories: list[list[int]]
    """Their tokens."""
    epochs: list[int]
    """How often each was preempted before."""
    slots_D: IntArray
    rope_variants_D: IntArray
    """See `RopeSpec.variant`."""
    limits_D: IntArray
    """How long each one becomes at most."""
    is_usual_D: BoolArray
    """Whether a token is told to the client and is followed by nothing else on the host."""
    stop_ids: frozenset[int]
    """What ends any of them, and maybe not all."""
    tenants: dict[str, int]
    """How many are whose."""

    @cached_property
    def places(self) -> dict[Request, int]:
        """Where each is."""
        return {request: place for place, request in enumerate(self.requests)}


@dataclass(frozen=True, eq=False)
class Decodes:
    """Rows of one token that is output already, for requests that want nothing but one more."""

    members: Members
    starts_D: IntArray
    """See `Row`."""
    blocks_D: IntArray
    """Where each one's token goes."""
    tables: list[list[int]]
    """As `Row` has them; nobody changes these."""
    are_carried: bool = False
    """Whether the step before began with the same rows, and has not retired."""

    def __len__(self) -> int:
        return len(self.members.requests)

    @property
    def requests(self) -> list[Request]:
        """Whose rows they are."""
        return self.members.requests

    def row(self, at: int) -> Row:
        """Return one of them by itself."""
        members = self.members
        start, slot = int(self.starts_D[at]), int(members.slots_D[at])
        table, epoch = self.tables[at], members.epochs[at]
        return Row(members.requests[at], start, 1, True, NOTHING, NOTHING, slot, table, epoch)


def column(numbers: Iterable[int], count: int) -> IntArray:
    """Return so many numbers as an array."""
    return np.fromiter(numbers, dtype=np.int64, count=count)


def joined(decoded_D: IntArray, others: Sequence[int]) -> IntArray:
    """Return a column of all rows; most steps have no others."""
    return np.concatenate((decoded_D, np.array(others, dtype=np.int64))) if others else decoded_D


_NO_COLUMN: Final[IntArray] = np.zeros(0, dtype=np.int64)
NOBODY: Final = Members(
    [], [], [], [], _NO_COLUMN, _NO_COLUMN, _NO_COLUMN, _NO_COLUMN.astype(bool), frozenset(), {}
)
NO_DECODES: Final = Decodes(NOBODY, _NO_COLUMN, _NO_COLUMN, [])


@dataclass(eq=False)
class Batch:
    """The rows of one step, from its launch until it retires."""

    others: list[Row] = field(default_factory=list)
    """All that are not in ``decodes``; in the step they come after these."""
    decodes: Decodes = NO_DECODES
    held: list[list[int]] = field(default_factory=list)
    """Tables of requests that lost their blocks while this step was to use them."""
    ended: list[Request] = field(default_factory=list)
    """Its requests to whose clients nothing more is to be said since it was launched."""

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

    def names(self, request: Request) -> bool:
        """Tell whether a row is the request's, from since it was last preempted."""
        members = self.decodes.members
        place = members.places.get(request)
        if place is not None:
            return members.epochs[place] == request.epoch
        return any(row.request is request and row.epoch == request.epoch for row in self.others)

    def has(self, request: Request) -> bool:
        """Tell whether a row is the request's, whatever happened to it since."""
        if request in self.decodes.members.places:
            return True
        return any(row.request is request for row in self.others)

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
