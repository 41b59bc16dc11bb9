"""Device memory for adapters: pages handed out to slots, filled from slot files slice by slice.

Knows nothing of names, requests or downloads. The engine's residency drives it between steps, and
releases a slot only when no launched step names it.

Shape legend: P pages, G slices of a group, R = PAGE_RANK, I/O features in/out.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_file import SlotFile
from graft_runtime.errors import GraftRuntimeError, ReasonedError
from graft_runtime.layers.lora.base import LoraPool, ResidentAdapter
from graft_runtime.layers.lora.layout import AdaptableModel, layout_hash, pages_for


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
    ) -> None:
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

    def begin_load(self, path: Path) -> SlotLoad:
        """Check a slot file and take pages for it; nothing is copied yet.

        Raises:
            ReasonedError: InsufficientCapacity when pages lack, to be retried after a release;
                else the file does not fit this model and has to be converted again.
        """
        file = SlotFile(path)
        try:
            file.check(self.lora, self._layout)
            slot = self._take(file.header.pages)
        except BaseException:
            file.close()
            raise
        return SlotLoad(self, file, slot, self._pages_of[slot])

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


class SlotLoad:
    """A copy from a slot file to device pages, done in slices between steps."""

    def __init__(self, pool: SlotPool, file: SlotFile, slot: int, pages: tuple[int, ...]) -> None:
        self._pool = pool
        self._file = file
        self._slot = slot
        self._pages = pages
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

    def advance(self, max_bytes: int) -> bool:
        """Copy at most about ``max_bytes`` and return whether the adapter is complete.

        Raises:
            ReasonedError: NonFiniteWeights: the file was damaged after it was made. The pages are
                given back.
        """
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
            self._file.close()
            self._pool._abandon(self._slot)  # noqa: SLF001 - one class in two halves

    def _complete(self) -> None:
        self._state = "done"
        header = self._file.header
        adapter = ResidentAdapter(self._pages, header.rank, self._file.groups)
        self._file.close()
        self._pool._finish(self._slot, adapter)  # noqa: SLF001 - one class in two halves

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield flat device pages, each with what goes there; None is zeros."""
        for slab in self._pool.lora.slabs.values():
            a_PGRI, b_PRO = self._file.read(slab.key)
            targets = [(slab.a_PGRI, a_PGRI)]
            for part, (start, width) in zip(slab.b_PRo, slab.columns, strict=True):
                targets.append((part, None if b_PRO is None else b_PRO.narrow(2, start, width)))
            for target, source in targets:
                for index, page in enumerate(self._pages):
                    flat = None if source is None else source[index].flatten()
                    yield target[page].flatten(), flat

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

    def _refuse_non_finite(self, values: Tensor) -> None:
        # Zero times infinity would reach other adapters' rows of a shared product.
        if not bool(torch.isfinite(values).all()):
            self.cancel()
            message = f"{self._file.path.name} holds NaN or infinity"
            raise ReasonedError(Reason.NON_FINITE_WEIGHTS, message)
