"""Where adapters lie on the device: slabs of rank-16 pages, and which pages are whose.

Knows no file and no request; `adapters/slots.py` fills it, the step kernels beside this file read.

Shape legend: P pages, G slices of a group, R = PAGE_RANK, I features in, o features out of one
slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from graft_runtime.layers.lora.layout import PAGE_RANK, AdaptableModel, LoraGroup, all_groups

GroupKey = tuple[int | None, str]
"""Layer (None for the output projection) and group name."""


@dataclass(frozen=True)
class LoraSlab:
    """Memory for one group of one layer. Its address never changes."""

    key: GroupKey
    group: LoraGroup
    a_PGRI: Tensor
    b_PRo: tuple[Tensor, ...]
    """Transposed B of each slice, apart: a product reads whole lines of memory."""

    @cached_property
    def widths(self) -> list[int]:
        """Width of each slice of the output."""
        return [part.out_features for part in self.group.slices]

    @cached_property
    def columns(self) -> list[tuple[int, int]]:
        """Where each slice of the output begins, and its width."""
        return list(zip(self.group.slice_starts, self.widths, strict=True))


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter whose weights are complete on the device."""

    pages: tuple[int, ...]
    rank: int
    touched: frozenset[GroupKey]
    """Groups it changes; its pages are zero in all others."""


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


def lora_bytes_per_page(model: AdaptableModel, dtype: torch.dtype) -> int:
    """Return the bytes one page takes over all groups."""
    per_rank = sum(
        group.in_features * len(group.slices) + group.out_features for _, group in all_groups(model)
    )
    return per_rank * PAGE_RANK * dtype.itemsize
