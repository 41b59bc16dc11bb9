"""Which adapters are on the device. Decides loads and evictions; copies in bounded slices.

The scheduler asks `slot_for` before it lets a request run and otherwise never hears of adapters.
Nothing here blocks: a load advances by a slice between two steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.messages import AdapterResidency, RegisterAdapter, ResidencyState

logger = logging.getLogger(__name__)

SLICE_BYTES = 8 * 2**20
"""Most bytes copied to the device between two steps, so that a load never holds one up for long."""


class SlotLoad(Protocol):
    """A copy under way; see `graft_runtime.adapters.slots`."""

    @property
    def slot(self) -> int:
        """The slot being filled."""

    def advance(self, max_bytes: int) -> bool:
        """Copy a bounded slice; True when all is there."""

    def cancel(self) -> None:
        """Give the pages back unused."""


class Slots(Protocol):
    """The device memory for adapters; see `graft_runtime.adapters.slots.SlotPool`."""

    @property
    def free_pages(self) -> int:
        """Pages in no slot."""

    def pages_needed(self, rank: int) -> int:
        """Return the pages an adapter of this rank takes."""

    def begin_load(self, path: Path) -> SlotLoad:
        """Take pages for a slot file; raises ReasonedError when it cannot be used."""

    def release(self, slot: int) -> None:
        """Give a slot's pages back."""

    def check_integrity(self) -> None:
        """Raise if pages are lost or shared."""


class Place(Enum):
    """Where a registered adapter's weights are."""

    DISK = auto()
    COPYING = auto()
    DEVICE = auto()
    FAILED = auto()


@dataclass(slots=True)
class Adapter:
    """One registered revision."""

    revision: str
    path: Path
    rank: int
    pinned: bool
    place: Place = Place.DISK
    slot: int = 0
    load: SlotLoad | None = None
    num_requests: int = 0
    """Requests that name it and have not ended, running or waiting."""
    wanted_since: int | None = None
    """Order in which it was asked for, by a request or for prefetching; None while nobody waits."""
    closing: bool = False
    """Whether it takes no further requests into a batch, so that another gets its pages."""
    leaving: bool = False
    last_used: int = 0


Report = Callable[[AdapterResidency], None]


class Residency:
    """The registered adapters of one engine."""

    def __init__(self, slots: Slots, report: Report) -> None:
        self._slots = slots
        self._report = report
        self._adapters: dict[str, Adapter] = {}
        self._clock = 0

    def register(self, message: RegisterAdapter) -> None:
        """Make a revision known. Repeating it is harmless."""
        known = self._adapters.get(message.revision)
        if known is not None and known.place is not Place.FAILED:
            known.pinned, known.leaving = message.pinned, False
            self._tell(known, "resident" if known.place is Place.DEVICE else "registered")
            return
        adapter = Adapter(message.revision, Path(message.path), message.rank, message.pinned)
        if known is not None:  # a second try: requests that waited for the first now wait for it
            adapter.num_requests = known.num_requests
        self._adapters[message.revision] = adapter
        if message.prefetch and self._fits(adapter):
            adapter.wanted_since = self._tick()
        else:
            self._tell(adapter, "registered")

    def unregister(self, revision: str) -> None:
        """Take no new requests for a revision and forget it once the present ones have ended."""
        adapter = self._adapters.get(revision)
        if adapter is None:
            self._report(AdapterResidency(revision, "removed"))
            return
        adapter.leaving = True
        self._forget_if_unused(adapter)

    def knows(self, revision: str) -> bool:
        """Whether a request for this revision can be taken."""
        adapter = self._adapters.get(revision)
        return adapter is not None and not adapter.leaving and adapter.place is not Place.FAILED

    def failed(self, revision: str) -> bool:
        """Whether requests that wait for this revision wait in vain."""
        adapter = self._adapters.get(revision)
        return adapter is None or adapter.place is Place.FAILED

    def acquire(self, revision: str) -> None:
        """Count a request in. Its adapter stays known until `give_back`."""
        self._adapters[revision].num_requests += 1

    def give_back(self, revision: str) -> None:
        """Count a request out."""
        adapter = self._adapters[revision]
        adapter.num_requests -= 1
        self._forget_if_unused(adapter)

    def slot_for(self, revision: str) -> int | None:
        """Return the slot in which a revision may run now, else ask for a load and return None."""
        adapter = self._adapters[revision]
        if adapter.place is Place.DEVICE and not adapter.closing:
            adapter.last_used = self._tick()
            return adapter.slot
        if adapter.wanted_since is None:
            adapter.wanted_since = self._tick()
        return None

    @property
    def is_copying(self) -> bool:
        """Whether a load is under way, so that the next step should come soon."""
        return any(adapter.load is not None for adapter in self._adapters.values())

    @property
    def has_work(self) -> bool:
        """Whether anything is under way or waits for its turn."""
        return self.is_copying or bool(self._queue())

    def advance(self, slots_in_use: AbstractSet[int]) -> None:
        """Start the loads for which there is room or can be made, then copy one slice.

        Args:
            slots_in_use: Slots named by running requests; they are not touched.
        """
        for adapter in self._queue():
            if not adapter.num_requests and not self._fits(adapter):
                adapter.wanted_since = None  # nobody waits: not worth anyone's eviction
                self._tell(adapter, "registered")
                continue
            self._make_room(adapter, slots_in_use)
            if not self._fits(adapter):
                self._close_one()
                break  # strictly in order, so that a large adapter is not starved by small ones
            self._start(adapter)
        for adapter in self._adapters.values():
            if adapter.load is not None:
                self._copy_slice(adapter)
                return

    def check_integrity(self) -> None:
        """Check the slots underneath.

        Raises:
            GraftRuntimeError: Pages are lost or shared.
        """
        self._slots.check_integrity()

    def _fits(self, adapter: Adapter) -> bool:
        return self._slots.pages_needed(adapter.rank) <= self._slots.free_pages

    def _queue(self) -> list[Adapter]:
        """Return what waits for a load, the longest waiting first."""
        waiting = [
            (adapter.wanted_since, adapter)
            for adapter in self._adapters.values()
            if adapter.place is Place.DISK and adapter.wanted_since is not None
        ]
        return [adapter for _, adapter in sorted(waiting, key=lambda pair: pair[0])]

    def _make_room(self, adapter: Adapter, slots_in_use: AbstractSet[int]) -> None:
        """Evict idle adapters, the longest unused first, if that is enough to let one in."""
        idle = [one for one in self._evictable() if one.slot not in slots_in_use]
        idle.sort(key=lambda one: (one.num_requests > 0, one.last_used))
        room = self._slots.free_pages + sum(self._slots.pages_needed(one.rank) for one in idle)
        if self._slots.pages_needed(adapter.rank) > room:
            return
        for one in idle:
            if self._fits(adapter):
                return
            self._evict(one)

    def _evictable(self) -> list[Adapter]:
        return [
            adapter
            for adapter in self._adapters.values()
            if adapter.place is Place.DEVICE and not adapter.pinned
        ]

    def _close_one(self) -> None:
        """Let the longest unused adapter drain, or a stream of requests would keep it for ever."""
        candidates = self._evictable()
        if candidates and not any(adapter.closing for adapter in candidates):
            min(candidates, key=lambda adapter: adapter.last_used).closing = True

    def _start(self, adapter: Adapter) -> None:
        adapter.wanted_since = None
        try:
            adapter.load = self._slots.begin_load(adapter.path)
        except ReasonedError as error:
            self._fail(adapter, error.reason, error.message)
            return
        adapter.place = Place.COPYING
        self._tell(adapter, "loading")

    def _copy_slice(self, adapter: Adapter) -> None:
        load = adapter.load
        try:
            if load is None or not load.advance(SLICE_BYTES):
                return
        except ReasonedError as error:
            adapter.load = None
            self._fail(adapter, error.reason, error.message)
            return
        adapter.slot, adapter.load, adapter.last_used = load.slot, None, self._tick()
        adapter.place = Place.DEVICE
        self._tell(adapter, "resident")

    def _evict(self, adapter: Adapter) -> None:
        self._slots.release(adapter.slot)
        adapter.slot, adapter.place, adapter.closing = 0, Place.DISK, False
        self._tell(adapter, "registered")

    def _fail(self, adapter: Adapter, reason: Reason, message: str) -> None:
        adapter.place = Place.FAILED
        self._report(AdapterResidency(adapter.revision, "failed", reason.value, message))

    def _forget_if_unused(self, adapter: Adapter) -> None:
        if not adapter.leaving or adapter.num_requests:
            return
        if adapter.load is not None:
            adapter.load.cancel()
        if adapter.place is Place.DEVICE:
            self._slots.release(adapter.slot)
        del self._adapters[adapter.revision]
        self._tell(adapter, "removed")

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _tell(self, adapter: Adapter, state: ResidencyState) -> None:
        logger.info("adapter", extra={"revision": adapter.revision, "residency": state})
        self._report(AdapterResidency(adapter.revision, state))
