"""Adds adapters to the outputs of base layers, in plain torch; the reference for every kernel.

Adapters with many rows in a step are done one by one. The others share one product with all their
pages, in which each row keeps only its own adapter's part. Rows without an adapter are never read
or written, so nothing of an adapter can reach them.

Shape legend: T tokens (or rows of logits), S rows of logits, n rows with an adapter, P pages,
G slices of a group, R = PAGE_RANK, C = P * R, I/O features in/out, o features out of one slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.lora.base import GroupKey, LoraPool, LoraSlab
from graft_runtime.layers.lora.layout import PAGE_RANK

MIN_OWN_ROWS = 16
"""From this many rows on an adapter is multiplied alone: shared products waste rows x pages."""

MAX_WINDOW_WASTE = 2
"""A window of neighbouring pages is read in place if at most this many times too large."""

Rows = slice | Tensor


@dataclass(frozen=True)
class LoraPart:
    """Rows that are multiplied with the same pages."""

    rows: Rows
    """Which of the T rows."""
    pages: Rows
    """Which of the slab's pages: a slice is read in place, a tensor gathers."""
    foreign_Pn: Tensor | None
    """True where a page is not the row's own; None when all pages are every row's."""
    touched: frozenset[GroupKey]


@dataclass(frozen=True)
class LoraRows:
    """The adapted rows of one product. Empty parts cost nothing."""

    parts: tuple[LoraPart, ...]

    def add(self, slab: LoraSlab, x_TI: Tensor, out_TO: Tensor) -> None:
        """Add ``scaling * B @ A @ x`` of each row's adapter to the base output, in place."""
        for part in self.parts:
            if slab.key in part.touched:
                _add_part(slab, part, x_TI, out_TO)


@dataclass(frozen=True)
class LoraBatch:
    """The adapted rows of one step."""

    tokens: LoraRows
    """Among the T tokens."""
    logits: LoraRows
    """Among the S rows whose logits are wanted."""


def prepare_lora(pool: LoraPool, batch: ForwardBatch) -> LoraBatch | None:
    """Sort a step's rows by adapter; None when no row has one."""
    if not any(batch.adapter_slots):
        return None
    slots_T: list[int] = []
    bounds = zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)
    for (start, end), slot in zip(bounds, batch.adapter_slots, strict=True):
        slots_T += [slot] * (end - start)
    slots_S = [slots_T[row] for row in batch.logits_rows_S.tolist()]
    device = batch.token_ids_T.device
    return LoraBatch(group_rows(pool, slots_T, device), group_rows(pool, slots_S, device))


def group_rows(pool: LoraPool, slots: Sequence[int], device: torch.device) -> LoraRows:
    """Split rows into parts, given the slot of each; 0 is no adapter."""
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot:
            rows_of.setdefault(slot, []).append(row)
    alone = [
        slot for slot, rows in rows_of.items() if len(rows) >= MIN_OWN_ROWS or len(rows_of) == 1
    ]
    parts = [_own_part(pool, slot, rows_of.pop(slot), device) for slot in alone]
    if len(rows_of) == 1:
        parts += [_own_part(pool, slot, rows, device) for slot, rows in rows_of.items()]
    elif rows_of:
        parts.append(_shared_part(pool, rows_of, device))
    return LoraRows(tuple(parts))


def _own_part(pool: LoraPool, slot: int, rows: list[int], device: torch.device) -> LoraPart:
    adapter = pool.adapter(slot)
    pages = list(adapter.pages)
    return LoraPart(_index(rows, device), _index(pages, device), None, adapter.touched)


def _shared_part(pool: LoraPool, rows_of: dict[int, list[int]], device: torch.device) -> LoraPart:
    owner = {page: slot for slot in rows_of for page in pool.adapter(slot).pages}
    window = range(min(owner), max(owner) + 1)
    pages = sorted(owner) if len(window) > MAX_WINDOW_WASTE * len(owner) else list(window)
    owner_of_row = sorted((row, slot) for slot, rows in rows_of.items() for row in rows)
    rows = [row for row, _ in owner_of_row]
    slot_n = torch.tensor([slot for _, slot in owner_of_row], device=device)
    slot_P1 = torch.tensor([owner.get(page, 0) for page in pages], device=device)[:, None]
    touched = frozenset[GroupKey]().union(*(pool.adapter(slot).touched for slot in rows_of))
    return LoraPart(_index(rows, device), _index(pages, device), slot_P1 != slot_n, touched)


def _index(numbers: list[int], device: torch.device) -> Rows:
    """Return a slice for numbers that ascend without gaps, else a tensor."""
    first = numbers[0]
    if numbers == list(range(first, first + len(numbers))):
        return slice(first, first + len(numbers))
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _add_part(slab: LoraSlab, part: LoraPart, x_TI: Tensor, out_TO: Tensor) -> None:
    x_nI = x_TI[part.rows]
    h_PGRn = _shrink(slab, part.pages, x_nI)
    if part.foreign_Pn is not None:
        h_PGRn.masked_fill_(part.foreign_Pn[:, None, None], 0.0)
    for index, out_To in enumerate(torch.split(out_TO, slab.widths, dim=1)):
        # A transposed left factor would cost twice the time.
        h_nC = h_PGRn[:, index].flatten(0, 1).T.contiguous()
        b_Co = _pages_of_b(slab, index, part.pages)
        if isinstance(part.rows, slice):
            out_To[part.rows].addmm_(h_nC, b_Co)
        else:
            out_To.index_add_(0, part.rows, h_nC @ b_Co)


def _shrink(slab: LoraSlab, pages: Rows, x_nI: Tensor) -> Tensor:
    """Multiply rows with the pages of A."""
    per_page = slab.a_PGRI.shape[1] * PAGE_RANK
    if isinstance(pages, slice):
        a_CI = slab.a_matrix[pages.start * per_page : pages.stop * per_page]
    else:
        a_CI = slab.a_PGRI[pages].flatten(0, 2)
    # The right factor is rearranged on every call, so the smaller one goes there.
    is_wide = x_nI.shape[0] > a_CI.shape[0]
    h_Cn = (x_nI @ a_CI.T).T if is_wide else a_CI @ x_nI.T
    return h_Cn.view(-1, slab.a_PGRI.shape[1], PAGE_RANK, x_nI.shape[0])


def _pages_of_b(slab: LoraSlab, index: int, pages: Rows) -> Tensor:
    b_Co = slab.b_slices[index]
    if isinstance(pages, slice):
        return b_Co[pages.start * PAGE_RANK : pages.stop * PAGE_RANK]
    return b_Co.view(-1, PAGE_RANK, b_Co.shape[1])[pages].flatten(0, 1)
