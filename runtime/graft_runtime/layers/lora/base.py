"""Where adapters lie on the device: slabs of rank-16 pages, and which pages are whose.

Knows no file and no request; `adapters/slots.py` fills it, the step kernels beside this file read.

Shape legend: P pages, K adapters, p ranks of an adapter's pages together, G slices of a group,
R = PAGE_RANK, C = G * p, T tokens or rows of logits, I/O features in/out, o features out of one
slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from graft_runtime.layers.lora.layout import PAGE_RANK, AdaptableModel, LoraGroup, all_groups

GroupKey = tuple[int | None, str]
"""Layer (None for the output projection) and group name."""


Pages = slice | Tensor
"""Which pages: a slice is read in place, a tensor gathers."""

MAX_WINDOWS = 256
"""Windows of a slab that are remembered; a batch uses few, and its adapters change slowly."""


@dataclass(frozen=True)
class Factors:
    """What each of K adapters multiplies with."""

    a_KIC: Tensor
    b_Kpo: tuple[Tensor, ...]
    """Of each slice."""


@dataclass(frozen=True)
class LoraSlab:
    """Memory for one group of one layer. Its address never changes."""

    key: GroupKey
    group: LoraGroup
    a_PGRI: Tensor
    b_PRo: tuple[Tensor, ...]
    """Transposed B of each slice, apart: a product reads whole lines of memory."""
    _windows: dict[tuple[int, int, int], Factors] = field(
        default_factory=dict, compare=False, repr=False
    )
    """Views of neighbouring pages. Making them anew in every step costs as much as a product."""

    @cached_property
    def widths(self) -> list[int]:
        """Width of each slice of the output."""
        return [part.out_features for part in self.group.slices]

    @cached_property
    def columns(self) -> list[tuple[int, int]]:
        """Where each slice of the output begins, and its width."""
        return list(zip(self.group.slice_starts, self.widths, strict=True))

    @cached_property
    def description(self) -> Tensor:
        """Where its memory is, as `native.c` reads it: int64 numbers.

        Address of A, I, G; then for each slice the address of its B, where its columns begin, and
        how many there are.
        """
        words = [self.a_PGRI.data_ptr(), self.group.in_features, len(self.b_PRo)]
        for b_PRo, (start, width) in zip(self.b_PRo, self.columns, strict=True):
            words += [b_PRo.data_ptr(), start, width]
        return torch.tensor(words)

    def factors(self, pages: Pages, num_adapters: int) -> Factors:
        """Return the factors of adapters whose pages, equally many for each, follow one another."""
        if not isinstance(pages, slice):
            return self._factors(pages, num_adapters)
        key = (pages.start, pages.stop, num_adapters)
        found = self._windows.get(key)
        if found is None:
            if len(self._windows) >= MAX_WINDOWS:
                self._windows.clear()
            found = self._windows[key] = self._factors(pages, num_adapters)
        return found

    def _factors(self, pages: Pages, num_adapters: int) -> Factors:
        a_KCI = _of_pages(self.a_PGRI, pages).view(num_adapters, -1, self.group.in_features)
        b_Kpo = tuple(
            _of_pages(b_PRo, pages).view(num_adapters, -1, width)
            for b_PRo, width in zip(self.b_PRo, self.widths, strict=True)
        )
        return Factors(a_KCI.transpose(1, 2), b_Kpo)


def _of_pages(slab_P: Tensor, pages: Pages) -> Tensor:
    # Indexing with a tensor would copy number by number, five times slower.
    return slab_P[pages] if isinstance(pages, slice) else slab_P.index_select(0, pages)


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter whose weights are complete on the device."""

    pages: tuple[int, ...]
    rank: int
    touched: frozenset[GroupKey]
    """Groups it changes; its pages are zero in all others."""


class LoraRows(Protocol):
    """The adapted rows of one product, sorted as a backend's kernels want them."""

    def add(self, slab: LoraSlab, x_TI: Tensor, out_TO: Tensor) -> None:
        """Add ``scaling * B @ A @ x`` of each row's adapter to the base output, in place.

        Features of a row lie beside one another in memory.

        Args:
            slab: Of the layer and group whose product this is; rows of adapters that leave it
                alone stay as they are.
            x_TI: Inputs of all rows, adapted or not, in the slab's dtype.
            out_TO: The base layer's outputs, of the same dtype, changed in place.

        Source: LoRA, arXiv:2106.09685 section 4.1; many adapters in one product after
        arXiv:2310.18547.
        """


@dataclass(frozen=True)
class LoraBatch:
    """The adapted rows of one step; None where no row has an adapter."""

    tokens: LoraRows | None
    """Among the T tokens."""
    logits: LoraRows | None
    """Among the rows whose logits are wanted."""


class LoraPool:
    """All slabs of a model and the table of slots."""

    def __init__(
        self, model: AdaptableModel, *, num_pages: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pages = num_pages
        self.dtype = dtype
        self.slabs: dict[GroupKey, LoraSlab] = {}
        for layer, group in all_groups(model):
            a_PGRI = torch.zeros(group.a_shape(num_pages), dtype=dtype, device=device)
            b_PRo = tuple(
                torch.zeros((num_pages, PAGE_RANK, part.out_features), dtype=dtype, device=device)
                for part in group.slices
            )
            key = (layer, group.name)
            self.slabs[key] = LoraSlab(key, group, a_PGRI, b_PRo)
        self._resident: dict[int, ResidentAdapter] = {}

    def bind(self, slot: int, adapter: ResidentAdapter) -> None:
        """Let rows that name this slot use the adapter."""
        self._resident[slot] = adapter

    def unbind(self, slot: int) -> None:
        """Forget the slot's adapter. The caller knows that no launched step names it."""
        del self._resident[slot]

    def adapter(self, slot: int) -> ResidentAdapter:
        """Return what is bound to a slot; a slot that is not bound is a caller's bug."""
        return self._resident[slot]

    @property
    def slots(self) -> frozenset[int]:
        """The bound slots."""
        return frozenset(self._resident)


def rows_by_slot(slots: Sequence[int]) -> dict[int, list[int]]:
    """Return each slot's rows, given the slot of every row; rows of slot 0 have no adapter."""
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot:
            rows_of.setdefault(slot, []).append(row)
    return rows_of


def lora_bytes_per_page(model: AdaptableModel, dtype: torch.dtype) -> int:
    """Return the bytes one page takes over all groups."""
    per_rank = sum(
        group.in_features * len(group.slices) + group.out_features for _, group in all_groups(model)
    )
    return per_rank * PAGE_RANK * dtype.itemsize
