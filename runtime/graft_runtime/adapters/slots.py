"""Device memory for adapters: pages handed out to slots, filled from slot files slice by slice.

Knows nothing of names, requests or downloads. The engine's residency drives it between steps, and
releases a slot only when no launched step names it.

Shape legend: P pages, G slices of a group, R = PAGE_RANK, I/O features in/out, o
features out of one slice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_file import SlotFile
from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.errors import GraftRuntimeError, ReasonedError
from graft_runtime.layers.lora.base import GroupKey, LoraPool, LoraSlab, ResidentAdapter
from graft_runtime.layers.lora.layout import PAGE_RANK, AdaptableModel, layout_hash, pages_for

FileReader = Callable[[Path], Future[None]]
"""Reads a file into the page cache, elsewhere than on the engine's loop."""


class SlotError(GraftRuntimeError):
    """A slot is used that is not there, or pages do not add up. A bug of the runtime's own."""


class SlotPool:
    """All pages of one model, the free ones and those of each slot."""

    def __init__(
        self,
        arch: AdaptableModel,
        *,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
        reader: FileReader | None = None,
    ) -> None:
        """Take the memory.

        Args:
            arch: The model.
            num_pages: Rank-16 pages to take.
            dtype: The serving dtype.
            device: Where.
            reader: Brings a file into memory before it is copied; None copies at once.
        """
        self._reader = reader
        self.lora = LoraPool(arch, num_pages=num_pages, dtype=dtype, device=device)
        self.num_pages = num_pages
        self._layout = layout_hash(arch)
        # Lowest first: neighbouring pages are read in place, scattered ones are gathered.
        self._free = list(range(num_pages))
        self._pages_of: dict[int, tuple[int, ...]] = {}
        self._loading: set[int] = set()

    @property
    def free_pages(self) -> int:
        """Pages no slot holds."""
        return len(self._free)

    def pages_needed(self, rank: int) -> int:
        """Return the pages an adapter of this rank takes."""
        return pages_for(rank)

    def begin_load(self, source: SlotSource) -> SlotLoad:
        """Check the slot files and take pages for them; nothing is copied yet.

        Raises:
            ReasonedError: InsufficientCapacity when pages lack, to be retried after a release;
                else a file does not fit this model and has to be converted again.
        """
        parts: list[SlotFilePart] = []
        try:
            for share in source.shares:
                parts.append(SlotFilePart(SlotFile(share.path), share.weight))
                parts[-1].file.check(self.lora, self._layout)
            slot = self._take(sum(part.num_pages for part in parts))
        except BaseException:
            for part in parts:
                part.file.close()
            raise
        reading = [] if self._reader is None else [self._reader(part.file.path) for part in parts]
        return SlotLoad(self, parts, slot, self._pages_of[slot], reading)

    def release(self, slot: int) -> None:
        """Give a slot's pages back.

        Raises:
            SlotError: The slot is free already or still loading.
        """
        if slot in self._loading or slot not in self._pages_of:
            raise SlotError(f"slot {slot} holds no adapter")
        self.lora.unbind(slot)
        self._give_back(slot)

    def check_integrity(self) -> None:
        """Check that every page is free or in exactly one slot, and every slot accounted for.

        Raises:
            SlotError: It is not so.
        """
        held = [page for pages in self._pages_of.values() for page in pages]
        if sorted(held + self._free) != list(range(self.num_pages)):
            raise SlotError(f"pages {held} held and {self._free} free are not 0..{self.num_pages}")
        bound = self.lora.slots
        if bound != self._pages_of.keys() - self._loading or not self._loading <= set(
            self._pages_of
        ):
            raise SlotError(
                f"slots {sorted(bound)} are bound, {sorted(self._pages_of)} hold pages, "
                f"{sorted(self._loading)} are loading"
            )
        for slot in bound:
            if self.lora.adapter(slot).pages != self._pages_of[slot]:
                raise SlotError(f"slot {slot} is bound to pages it does not hold")

    def _take(self, count: int) -> int:
        if count > len(self._free):
            message = (
                f"the adapter takes {count} pages of rank 16; "
                f"{len(self._free)} of {self.num_pages} are free"
            )
            raise ReasonedError(Reason.INSUFFICIENT_CAPACITY, message)
        slot = 1
        while slot in self._pages_of:
            slot += 1
        self._pages_of[slot] = tuple(heapq.heappop(self._free) for _ in range(count))
        self._loading.add(slot)
        return slot

    def _give_back(self, slot: int) -> None:
        for page in self._pages_of.pop(slot):
            heapq.heappush(self._free, page)

    def _finish(self, slot: int, adapter: ResidentAdapter) -> None:
        self._loading.discard(slot)
        self.lora.bind(slot, adapter)

    def _abandon(self, slot: int) -> None:
        self._loading.discard(slot)
        self._give_back(slot)


@dataclass(frozen=True)
class SlotFilePart:
    """An open slot file, and what its update is multiplied with."""

    file: SlotFile
    weight: float

    @property
    def num_pages(self) -> int:
        """Pages it takes."""
        return self.file.header.pages


class SlotLoad:
    """A copy from slot files to device pages, done in slices between steps."""

    def __init__(
        self,
        pool: SlotPool,
        parts: Sequence[SlotFilePart],
        slot: int,
        pages: tuple[int, ...],
        reading: Sequence[Future[None]],
    ) -> None:
        self._pool = pool
        self._parts = parts
        self._slot = slot
        self._pages = pages
        self._reading = reading
        self._targets = self._pieces()
        self._piece: tuple[Tensor, Tensor | None] | None = None
        self._offset = 0
        self._state = "loading"

    @property
    def slot(self) -> int:
        """The slot, once `advance` has returned True.

        Raises:
            SlotError: The copy is not complete.
        """
        if self._state != "done":
            raise SlotError(f"slot {self._slot} is not loaded")
        return self._slot

    @property
    def is_ready(self) -> bool:
        """Whether the files are in memory, so that copying waits for no disk."""
        return all(one.done() for one in self._reading)

    def advance(self, max_bytes: int) -> bool:
        """Copy at most about ``max_bytes`` and return whether the adapter is complete.

        Raises:
            ReasonedError: NonFiniteWeights: the file was damaged after it was made, or its weight
                is too much for the dtype. The pages are given back.
        """
        self._refuse_unreadable()
        left = max_bytes
        while self._state == "loading" and left > 0:
            if self._piece is None:
                self._piece = next(self._targets, None)
                self._offset = 0
                if self._piece is None:
                    self._complete()
                    break
            left -= self._copy(*self._piece, left)
        return self._state == "done"

    def cancel(self) -> None:
        """Stop and give the pages back. Harmless once the load is complete or cancelled."""
        if self._state == "loading":
            self._state = "cancelled"
            self._close()
            self._pool._abandon(self._slot)  # noqa: SLF001 - one class in two halves

    def _close(self) -> None:
        for one in self._reading:
            one.cancel()
        for part in self._parts:
            part.file.close()

    def _complete(self) -> None:
        self._state = "done"
        ranks = [part.file.header.rank for part in self._parts]
        rank = ranks[0] if len(ranks) == 1 else len(self._pages) * PAGE_RANK
        touched = frozenset[GroupKey]().union(*(part.file.groups for part in self._parts))
        self._close()
        adapter = ResidentAdapter(self._pages, rank, touched)
        self._pool._finish(self._slot, adapter)  # noqa: SLF001 - one class in two halves

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield flat device pages, each with what goes there; None is zeros."""
        for slab in self._pool.lora.slabs.values():
            first = 0
            for part in self._parts:
                pages = self._pages[first : first + part.num_pages]
                yield from _pieces_of(slab, part, pages)
                first += part.num_pages

    def _copy(self, target: Tensor, source: Tensor | None, max_bytes: int) -> int:
        """Copy the next slice of a piece and return its bytes."""
        start = self._offset
        end = min(start + max(1, max_bytes // target.itemsize), target.numel())
        if source is None:
            target[start:end].zero_()
        else:
            self._refuse_non_finite(source[start:end])
            target[start:end].copy_(source[start:end])
        self._offset = end
        if end == target.numel():
            self._piece = None
        return (end - start) * target.itemsize

    def _refuse_unreadable(self) -> None:
        if self._state != "loading":
            return
        for one in self._reading:
            error = one.exception()
            if error is not None:
                self.cancel()
                message = f"a slot file cannot be read: {error}"
                raise ReasonedError(Reason.MALFORMED_ARTIFACT, message)

    def _refuse_non_finite(self, values: Tensor) -> None:
        # Such an adapter would answer with nothing but errors. The extremes tell, NaN being both:
        # looking at each number by itself takes ten times as long as copying it.
        if not all(math.isfinite(extreme.item()) for extreme in values.aminmax()):
            self.cancel()
            names = ", ".join(part.file.path.name for part in self._parts)
            raise ReasonedError(Reason.NON_FINITE_WEIGHTS, f"{names} holds NaN or infinity")


def _pieces_of(
    slab: LoraSlab, part: SlotFilePart, pages: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    a_PGRI, b_PRO = part.file.read(slab.key)
    for index, page in enumerate(pages):
        yield slab.a_PGRI[page].flatten(), None if a_PGRI is None else a_PGRI[index].flatten()
    for target, (start, width) in zip(slab.b_PRo, slab.columns, strict=True):
        for index, page in enumerate(pages):
            b_Ro = None if b_PRO is None else b_PRO[index].narrow(1, start, width)
            yield target[page].flatten(), None if b_Ro is None else _weighted(b_Ro, part.weight)


def _weighted(b_Ro: Tensor, weight: float) -> Tensor:
    if weight == 1.0:
        return b_Ro.flatten()
    return b_Ro.float().mul_(weight).to(b_Ro.dtype).flatten()
