"""Adds adapters to the outputs of base layers, in plain torch; the reference for every kernel.

A step's rows are sorted into parts. An adapter with many rows is a part of its own. The others are
multiplied together, as one batched product with an adapter per matrix: each weight is read once and
no row meets weights that are not its own. Rows without an adapter are never read or written, so
nothing of an adapter can reach them.

Shape legend: T tokens (or rows of logits), n rows with an adapter, K adapters of
a part, M places for rows per adapter, q pages per adapter, G slices of a group, R = PAGE_RANK,
p = q * R ranks per adapter, C = G * p, L = K * M places, I/O features in/out, o features out of one
slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from graft_runtime.layers.lora.base import (
    Factors,
    GroupKey,
    LoraPool,
    LoraSlab,
    Pages,
    rows_by_slot,
)
from graft_runtime.layers.lora.layout import PAGE_RANK
from graft_runtime.layers.lora.native import NativeRows, kernel, native_rows

MIN_OWN_ROWS = 16
"""From this many rows on an adapter is multiplied alone: nothing is gained by company."""

MAX_PADDING = 4
"""Adapters are multiplied together if the fewest rows of one and the most are within this ratio."""

MAX_WINDOW_WASTE = 2
"""A window of neighbouring pages is read in place if at most this many times too large."""


@dataclass(frozen=True)
class Scattered:
    """Rows that have to be brought into their places and back."""

    rows_n: Tensor
    """Which of the T rows."""
    places_n: Tensor | None
    """Where among the K * M places each stands; None if they fill all, in order."""
    takes_KM: Tensor
    """For each place the row it takes; empty places take any."""


@dataclass(frozen=True)
class LoraPart:
    """Adapters that are multiplied together, each with its rows in ``M`` places."""

    rows: slice | Scattered
    """Which of the T rows; those of a slice fill all places, in order."""
    pages: Pages
    """The adapters' pages: a slice is read in place, a tensor gathers."""
    num_adapters: int
    """K, with the pages of others in between, whose places stay empty."""
    touched: frozenset[GroupKey]

    def add(self, slab: LoraSlab, x_TI: Tensor, out_TO: Tensor) -> None:
        """Add what its rows' adapters make of their inputs to the base output, in place."""
        count, rows = self.num_adapters, self.rows
        factors = slab.factors(self.pages, count)
        if isinstance(rows, slice):
            h_KMC = _shrink(factors, x_TI[rows])
            out_KMO = out_TO[rows].view(count, -1, out_TO.shape[1])
            for index, (start, width) in enumerate(slab.columns):
                h_KMp, b_Kpo = _of_slice(h_KMC, index, factors), factors.b_Kpo[index]
                out_KMO.narrow(2, start, width).baddbmm_(h_KMp, b_Kpo)
            return
        h_KMC = _shrink(factors, x_TI.index_select(0, rows.takes_KM))
        y_LO = out_TO.new_empty((rows.takes_KM.shape[0], out_TO.shape[1]))
        y_KMO = y_LO.view(count, -1, out_TO.shape[1])
        for index, (start, width) in enumerate(slab.columns):
            h_KMp, b_Kpo = _of_slice(h_KMC, index, factors), factors.b_Kpo[index]
            torch.bmm(h_KMp, b_Kpo, out=y_KMO.narrow(2, start, width))
        y_nO = y_LO if rows.places_n is None else y_LO.index_select(0, rows.places_n)
        out_TO.index_add_(0, rows.rows_n, y_nO)


@dataclass(frozen=True)
class PartedRows:
    """The adapted rows of one product."""

    parts: tuple[LoraPart | NativeRows, ...]

    def add(self, slab: LoraSlab, x_TI: Tensor, out_TO: Tensor) -> None:
        """Add ``scaling * B @ A @ x`` of each row's adapter to the base output, in place."""
        for part in self.parts:
            if slab.key in part.touched:
                part.add(slab, x_TI, out_TO)


@dataclass(frozen=True)
class _Member:
    """One adapter of a step."""

    pages: tuple[int, ...]
    rows: list[int]
    touched: frozenset[GroupKey]


def group_rows(pool: LoraPool, slots: Sequence[int], device: torch.device) -> PartedRows | None:
    """Split rows into parts, given the slot of each; 0 is no adapter. None when no row has one."""
    rows_of = rows_by_slot(slots)
    if not rows_of:
        return None
    parts: list[LoraPart | NativeRows] = []
    add = kernel() if pool.dtype is torch.bfloat16 else None
    if add is not None:
        few = {slot: rows for slot, rows in rows_of.items() if len(rows) < MIN_OWN_ROWS}
        parts += [native_rows(pool, few, add)] if few else []
        rows_of = {slot: rows for slot, rows in rows_of.items() if slot not in few}
    members = [
        _Member(adapter.pages, rows, adapter.touched)
        for adapter, rows in ((pool.adapter(slot), rows) for slot, rows in rows_of.items())
    ]
    parts += (_part(together, device) for together in _companies(members))
    return PartedRows(tuple(parts))


def _companies(members: list[_Member]) -> Iterator[list[_Member]]:
    """Divide adapters into companies of as many pages and about as many rows each."""
    few = [member for member in members if len(member.rows) < MIN_OWN_ROWS]
    yield from ([member] for member in members if len(member.rows) >= MIN_OWN_ROWS)
    few.sort(key=lambda member: (len(member.pages), len(member.rows)))
    for _, alike in groupby(few, key=lambda member: len(member.pages)):
        company: list[_Member] = []
        for member in alike:
            if company and len(member.rows) > MAX_PADDING * len(company[0].rows):
                yield company
                company = []
            company.append(member)
        yield company


def _part(members: list[_Member], device: torch.device) -> LoraPart:
    members.sort(key=lambda member: member.pages)
    order = _with_neighbours(members)
    rows = [row for member in members for row in member.rows]
    depth = max(len(member.rows) for member in members)
    pages = _index([page for member in order for page in member.pages], device)
    touched = frozenset[GroupKey]().union(*(member.touched for member in members))
    found = _index(rows, device)
    if isinstance(found, slice) and len(rows) == depth * len(order):
        return LoraPart(found, pages, len(order), touched)
    takes = [row for member in order for row in _padded(member.rows, depth, rows[0])]
    places = [
        index * depth + place
        for index, member in enumerate(order)
        for place in range(len(member.rows))
    ]
    scattered = Scattered(
        torch.tensor(rows, device=device),
        None if len(places) == len(takes) else torch.tensor(places, device=device),
        torch.tensor(takes, device=device),
    )
    return LoraPart(scattered, pages, len(order), touched)


def _padded(rows: list[int], depth: int, filler: int) -> list[int]:
    return rows + [filler] * (depth - len(rows))


def _with_neighbours(members: list[_Member]) -> list[_Member]:
    """Add the pages in between, with no rows, where that is cheaper than gathering."""
    first, last = members[0].pages, members[-1].pages
    window = range(first[0], last[0] + 1)
    if len(first) > 1 or len(window) > MAX_WINDOW_WASTE * len(members):
        return members
    of_page = {member.pages: member for member in members}
    return [of_page.get((page,), _Member((page,), [], frozenset())) for page in window]


def _index(numbers: list[int], device: torch.device) -> Pages:
    """Return a slice for numbers that ascend without gaps, else a tensor."""
    first = numbers[0]
    if numbers == list(range(first, first + len(numbers))):
        return slice(first, first + len(numbers))
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _shrink(factors: Factors, x_nI: Tensor) -> Tensor:
    """Multiply each place with its adapter's A; ``[K, M, C]``."""
    return torch.bmm(x_nI.view(factors.a_KIC.shape[0], -1, x_nI.shape[1]), factors.a_KIC)


def _of_slice(h_KMC: Tensor, index: int, factors: Factors) -> Tensor:
    """Return what one slice's B is multiplied with; ``[K, M, p]``."""
    num_slices = len(factors.b_Kpo)
    if num_slices == 1:
        return h_KMC
    if h_KMC.shape[2] == num_slices * PAGE_RANK:
        return h_KMC.narrow(2, index * PAGE_RANK, PAGE_RANK)
    h_KMqGR = h_KMC.view(*h_KMC.shape[:2], -1, num_slices, PAGE_RANK)
    return h_KMqGR[:, :, :, index].flatten(2)
