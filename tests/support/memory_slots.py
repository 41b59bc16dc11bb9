"""Device slots without a device: pages are counted, a load takes as many advances as asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.errors import GraftRuntimeError, ReasonedError


@dataclass
class MemoryLoad:
    """A copy that takes ``left`` more calls."""

    owner: MemorySlots
    slot: int
    left: int
    is_ready: bool = True

    def advance(self, max_bytes: int) -> bool:
        assert max_bytes > 0
        self.left -= 1
        return self.left <= 0

    def cancel(self) -> None:
        self.owner.release(self.slot)


@dataclass
class MemorySlots:
    """Stands in for `SlotPool`. The file name of a slot file is its content: an integer."""

    num_pages: int
    pages_per_slot: int = 1
    advances: int = 2
    keys: dict[int, int] = field(default_factory=dict)
    """What each taken slot holds."""
    broken: set[str] = field(default_factory=set)

    @property
    def free_pages(self) -> int:
        return self.num_pages - len(self.keys) * self.pages_per_slot

    def pages_needed(self, rank: int) -> int:
        assert rank > 0
        return self.pages_per_slot

    def begin_load(self, source: SlotSource) -> MemoryLoad:
        (path,) = (share.path for share in source.shares)
        if path.name in self.broken:
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, "not a slot file")
        if self.free_pages < self.pages_per_slot:
            raise ReasonedError(Reason.INSUFFICIENT_CAPACITY, "no pages")
        slot = next(index for index in range(1, self.num_pages + 1) if index not in self.keys)
        self.keys[slot] = int(path.name)
        return MemoryLoad(self, slot, self.advances)

    def release(self, slot: int) -> None:
        del self.keys[slot]

    def check_integrity(self) -> None:
        if self.free_pages < 0:
            message = "more pages in slots than there are"
            raise GraftRuntimeError(message)
