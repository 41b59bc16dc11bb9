"""Requests that decode in step with one another: each step computes one token of each of them.

While a request belongs, nothing is read of it or written to it when a step is launched: it has come
as many steps further as there were since it joined. It is told when it leaves, which it does before
anything unusual is done to it.
The scheduler owns the cohort. Never sees a tensor or a clock.

Shape legend: D members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final, NamedTuple, TypeVar

import numpy as np

from graft_runtime.engine.batch import NOBODY, Decodes, Members
from graft_runtime.engine.kv_cache import readable
from graft_runtime.engine.request import Request
from graft_runtime.sampling.batch import IntArray

T = TypeVar("T")

_BASE, _ROOM, _BLOCK, _SLOT, _ROPE, _LIMIT, _IS_USUAL = range(7)
"""Rows of the columns: the position of the next token less the number of steps so far, how many
tokens the member's blocks hold, and the block of its latest token; the others as in `Members`."""
_NO_COLUMNS: Final[IntArray] = np.zeros((7, 0), dtype=np.int64)

_slot = attrgetter("slot")


class _Lists(NamedTuple):
    """What is kept of each member beside the columns, in their order; see `Members`."""

    requests: list[Request]
    ids: list[str]
    histories: list[list[int]]
    epochs: list[int]
    tables: list[list[int]]


class Cohort:
    """Its members are ordered by the slots of their adapters."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._steps = 0
        self._columns = _NO_COLUMNS
        self._members = NOBODY
        self._tables: list[list[int]] = []
        """As plans have them: never changed, only replaced."""
        self._tenants: Counter[str] = Counter()
        self._stop_ids: Counter[frozenset[int]] = Counter()
        self._left: list[int] = []
        """Places of members that have left and are still in the columns."""
        self._marched = NOBODY
        """Who was in the latest step."""

    def __len__(self) -> int:
        return len(self._members.requests) - len(self._left)

    def join(self, requests: Sequence[Request]) -> None:
        """Take in requests that have one token left to launch, and the block for it."""
        if not requests:
            return
        self._close_ranks()
        new = sorted(requests, key=_slot)
        columns = np.array([self._column(request) for request in new], dtype=np.int64).T
        places = np.searchsorted(self._columns[_SLOT], columns[_SLOT], side="right")
        self._columns = np.insert(self._columns, places, columns, axis=1)
        lists = self._copies()
        for place, request in zip(reversed(places.tolist()), reversed(new), strict=True):
            lists.requests.insert(place, request)
            lists.ids.insert(place, request.request_id)
            lists.histories.insert(place, request.tokens)
            lists.epochs.insert(place, request.epoch)
            lists.tables.insert(place, readable(request.blocks, request.num_released))
            request.in_cohort = True
            self._tenants[request.tenant] += 1
            self._stop_ids[request.stop_ids] += 1
        self._set_members(lists)

    def leave(self, request: Request) -> None:
        """Let a member go, and tell it how far it has come."""
        place = self._members.places[request]
        self._tell(request, int(self._columns[_BASE, place]))
        self._left.append(place)

    def dissolve(self) -> None:
        """Let all members go."""
        self._close_ranks()
        bases = self._columns[_BASE].tolist()
        for request, base in zip(self._members.requests, bases, strict=True):
            self._tell(request, base)
        self._columns, self._members, self._tables = _NO_COLUMNS, NOBODY, []

    def complete(self) -> list[Request]:
        """Return the members whose last token has been launched, whatever it will be."""
        lengths_D = self._columns[_BASE] + (self._steps + 1)
        places = np.flatnonzero(lengths_D >= self._columns[_LIMIT]).tolist()
        return self._present(places)

    def short(self) -> list[Request]:
        """Return the members whose next token needs another block."""
        starts_D = self._columns[_BASE] + self._steps
        return self._present(np.flatnonzero(self._columns[_ROOM] <= starts_D).tolist())

    def widen(self, requests: Sequence[Request]) -> None:
        """Note that members have got another block each."""
        self.retable(requests)
        for request in requests:
            self._columns[_ROOM, self._members.places[request]] += self._block_size

    def retable(self, requests: Iterable[Request]) -> None:
        """Note that members' tables have changed."""
        self._tables = self._tables.copy()  # steps are under way with the other list
        for request in requests:
            place = self._members.places[request]
            self._tables[place] = readable(request.blocks, request.num_released)

    def march(self) -> Decodes:
        """Return the next step's rows."""
        self._close_ranks()
        starts_D = self._columns[_BASE] + self._steps
        for place in np.flatnonzero(starts_D % self._block_size == 0).tolist():
            block = self._tables[place][starts_D[place] // self._block_size]
            self._columns[_BLOCK, place] = block
        self._steps += 1
        members, marched = self._members, self._marched
        self._marched = members
        blocks_D = self._columns[_BLOCK].copy()
        return Decodes(members, starts_D, blocks_D, self._tables, members is marched)

    def _column(self, request: Request) -> tuple[int, ...]:
        start, size = request.num_computed, self._block_size
        return (
            start - self._steps,
            len(request.blocks) * size,
            request.blocks[start // size],
            request.slot,
            request.rope_variant,
            request.max_length,
            not request.is_followed and not request.epoch,
        )

    def _present(self, places: Sequence[int]) -> list[Request]:
        requests = [self._members.requests[place] for place in places]
        return [request for request in requests if request.in_cohort]

    def _close_ranks(self) -> None:
        """Take those out of the columns that have left."""
        if not self._left:
            return
        lists = self._copies()
        self._columns = np.delete(self._columns, self._left, axis=1)
        for place in sorted(self._left, reverse=True):
            for each in lists:
                del each[place]
        self._left = []
        self._set_members(lists)

    def _copies(self) -> _Lists:
        """Return lists to change: steps are under way with the others."""
        now = self._members
        return _Lists(
            now.requests.copy(),
            now.ids.copy(),
            now.histories.copy(),
            now.epochs.copy(),
            self._tables.copy(),
        )

    def _set_members(self, lists: _Lists) -> None:
        columns = self._columns
        self._tables = lists.tables
        self._members = Members(
            lists.requests,
            lists.ids,
            lists.histories,
            lists.epochs,
            slots_D=columns[_SLOT],
            rope_variants_D=columns[_ROPE],
            limits_D=columns[_LIMIT],
            is_usual_D=columns[_IS_USUAL].astype(bool),
            stop_ids=frozenset().union(*self._stop_ids),
            tenants=dict(self._tenants),
        )

    def _tell(self, request: Request, base: int) -> None:
        request.num_computed = base + self._steps
        request.length = request.num_computed + 1
        request.in_cohort = False
        _discount(self._tenants, request.tenant)
        _discount(self._stop_ids, request.stop_ids)


def _discount(counter: Counter[T], key: T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
