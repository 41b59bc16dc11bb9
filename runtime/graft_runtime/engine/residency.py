"""Which adapters are on the device. Decides loads and evictions; copies in bounded slices.

The scheduler asks `slot_for` before it lets a request run and otherwise never hears of adapters.
Nothing here blocks: a load advances by a slice between two steps. Revisions of the same bytes share
one copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from pathlib import Path
from typing import Protocol

from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_source import SlotShare, SlotSource
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.messages import AdapterResidency, RegisterAdapter, ResidencyState

logger = logging.getLogger(__name__)

SLICE_BYTES = 16 * 2**20
NUM_SLICES = 2
"""Slices copied to the device between two steps, each of another load: enough for a crowd of cold
adapters, and so few bytes that they never hold a step up for long."""
MAX_LOADS = 4
"""Loads under way: some are copied while the next ones' files are read."""


class SlotLoad(Protocol):
    """A copy under way; see `graft_runtime.adapters.slots`."""

    @property
    def slot(self) -> int:
        """The slot being filled."""

    @property
    def is_ready(self) -> bool:
        """Whether `advance` would copy something now, without waiting for a disk."""

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

    def begin_load(self, source: SlotSource) -> SlotLoad:
        """Take pages for a source; raises ReasonedError when it cannot be used."""

    def release(self, slot: int) -> None:
        """Give a slot's pages back."""

    def check_integrity(self) -> None:
        """Raise if pages are lost or shared."""


class Place(Enum):
    """Where weights are."""

    DISK = auto()
    COPYING = auto()
    DEVICE = auto()
    FAILED = auto()


@dataclass(slots=True, eq=False)
class Weights:
    """One content, whatever it is called."""

    source: SlotSource
    rank: int
    holders: list[Adapter] = field(default_factory=list)
    """The revisions that mean it."""
    place: Place = Place.DISK
    slot: int = 0
    load: SlotLoad | None = None
    num_requests: int = 0
    """Requests that need it and have not ended, running or waiting."""
    asked: bool = False
    """Whether a request could run now if it were on the device."""
    closing: bool = False
    """Whether it takes no further requests into a batch, so that another gets its pages."""
    last_used: int = 0

    @property
    def pinned(self) -> bool:
        """Whether eviction leaves it where it is."""
        return any(holder.pinned for holder in self.holders)


@dataclass(slots=True, eq=False)
class Adapter:
    """One registered revision."""

    revision: str
    weights: Weights
    pinned: bool
    num_requests: int = 0
    leaving: bool = False


Report = Callable[[AdapterResidency], None]


class Residency:
    """The registered adapters of one engine."""

    def __init__(self, slots: Slots, report: Report) -> None:
        self._slots = slots
        self._report = report
        self._adapters: dict[str, Adapter] = {}
        self._weights: dict[SlotSource, Weights] = {}
        # In order of wish, of beginning and of nothing. Few of thousands are in any of them.
        self._wanted: dict[Weights, None] = {}
        self._loading: dict[Weights, None] = {}
        self._resident: dict[Weights, None] = {}
        self._clock = 0

    def register(self, message: RegisterAdapter) -> None:
        """Make a revision known. Repeating it is harmless."""
        adapter = self._adapters.get(message.revision) or self._add(message)
        weights = adapter.weights
        adapter.pinned, adapter.leaving = message.pinned, False
        if weights.place is Place.FAILED:  # a second try, for all who wait
            weights.place = Place.DISK
        if weights.place is Place.DEVICE:
            self._tell(adapter, "resident")
        elif not message.prefetch or not (weights in self._loading or self._fits(weights)):
            self._tell(adapter, "registered")
        elif weights.place is Place.DISK:
            self._want(weights)

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
        return adapter is not None and not adapter.leaving and not self.failed(revision)

    def failed(self, revision: str) -> bool:
        """Whether requests that wait for this revision wait in vain."""
        adapter = self._adapters.get(revision)
        return adapter is None or adapter.weights.place is Place.FAILED

    def acquire(self, revision: str) -> None:
        """Count a request in. Its adapter stays known until `give_back`, and may be on its way."""
        adapter = self._adapters[revision]
        adapter.num_requests += 1
        adapter.weights.num_requests += 1
        if adapter.weights.place is Place.DISK:
            self._want(adapter.weights)

    def give_back(self, revision: str) -> None:
        """Count a request out."""
        adapter = self._adapters[revision]
        adapter.num_requests -= 1
        adapter.weights.num_requests -= 1
        if not adapter.weights.num_requests:
            adapter.weights.asked = False
        self._forget_if_unused(adapter)

    def slot_for(self, revision: str) -> int | None:
        """Return the slot in which a revision may run now, else ask for a load and return None."""
        weights = self._adapters[revision].weights
        if weights.place is Place.DEVICE and not weights.closing:
            weights.last_used = self._tick()
            return weights.slot
        weights.asked = True
        if weights.place is Place.DISK:
            self._want(weights)
        return None

    @property
    def is_copying(self) -> bool:
        """Whether a load could advance at once, so that the next step should come soon."""
        return any(weights.load is not None and weights.load.is_ready for weights in self._loading)

    @property
    def num_waiting(self) -> int:
        """Requests whose adapter is on its way to the device."""
        return sum(one.num_requests for one in (*self._wanted, *self._loading))

    @property
    def has_work(self) -> bool:
        """Whether anything is under way or waits for its turn."""
        return bool(self._loading or self._wanted)

    def advance(self, slots_in_use: AbstractSet[int]) -> None:
        """Start the loads for which there is room or can be made, then copy a slice of some.

        Args:
            slots_in_use: Slots named by running requests; they are not touched.
        """
        while len(self._loading) < MAX_LOADS and self._start_next(slots_in_use):
            pass
        ready = ((one, one.load) for one in self._loading if one.load and one.load.is_ready)
        for weights, load in list(islice(ready, NUM_SLICES)):
            self._copy_slice(weights, load)

    def check_integrity(self) -> None:
        """Check the slots underneath.

        Raises:
            GraftRuntimeError: Pages are lost or shared.
        """
        self._slots.check_integrity()

    def _add(self, message: RegisterAdapter) -> Adapter:
        shares = tuple(SlotShare(Path(part.path), part.weight) for part in message.merged)
        source = SlotSource(shares) if shares else SlotSource.of(message.path)
        weights = self._weights.get(source)
        if weights is None:
            weights = self._weights[source] = Weights(source, message.rank)
        adapter = Adapter(message.revision, weights, message.pinned)
        weights.holders.append(adapter)
        self._adapters[message.revision] = adapter
        return adapter

    def _want(self, weights: Weights) -> None:
        self._wanted.setdefault(weights)

    def _start_next(self, slots_in_use: AbstractSet[int]) -> bool:
        """Begin one load; False when none is wanted or the first has to wait for room."""
        # What could run now goes before what will be asked for, and that before what may be.
        for weights in sorted(self._wanted, key=lambda one: (not one.asked, not one.num_requests)):
            if weights.num_requests:
                self._make_room(weights, slots_in_use)
            if self._fits(weights):
                self._start(weights)
                return True
            if weights.asked and not self._can_ever_fit(weights):
                message = "pinned adapters leave no room for it on the device"
                self._fail(weights, Reason.INSUFFICIENT_CAPACITY, message)
                continue
            if weights.asked:
                self._close_enough(weights)
            self._forget_idle_wishes()
            return False  # strictly in order, so that small ones do not starve a large one
        self._reopen()
        return False

    def _forget_idle_wishes(self) -> None:
        """What nobody asks for is not worth anyone's eviction, nor its owner's waiting."""
        for weights in [one for one in self._wanted if not one.num_requests]:
            del self._wanted[weights]
            self._tell_all(weights, "registered")

    def _fits(self, weights: Weights) -> bool:
        return self._pages(weights) <= self._slots.free_pages

    def _pages(self, weights: Weights) -> int:
        return self._slots.pages_needed(weights.rank)

    def _can_ever_fit(self, weights: Weights) -> bool:
        movable = [one for one in (*self._resident, *self._loading) if not one.pinned]
        room = self._slots.free_pages + sum(map(self._pages, movable))
        return self._pages(weights) <= room

    def _make_room(self, weights: Weights, slots_in_use: AbstractSet[int]) -> None:
        """Evict idle adapters, the longest unused first, if that is enough to let one in."""
        idle = [one for one in self._evictable() if one.slot not in slots_in_use]
        if not weights.asked:
            idle = [one for one in idle if not one.num_requests]
        idle.sort(key=lambda one: (one.num_requests > 0, one.last_used))
        if self._pages(weights) > self._slots.free_pages + sum(map(self._pages, idle)):
            return
        for one in idle:
            if self._fits(weights):
                return
            self._evict(one)

    def _evictable(self) -> list[Weights]:
        return [weights for weights in self._resident if not weights.pinned]

    def _close_enough(self, weights: Weights) -> None:
        """Let the longest unused adapters drain, or streams of requests keep them for ever."""
        room = self._slots.free_pages
        for one in sorted(self._evictable(), key=lambda one: (not one.closing, one.last_used)):
            if room >= self._pages(weights):
                return
            one.closing = True
            room += self._pages(one)

    def _reopen(self) -> None:
        """Nobody waits for room any more."""
        for weights in self._resident:
            weights.closing = False

    def _start(self, weights: Weights) -> None:
        del self._wanted[weights]
        try:
            weights.load = self._slots.begin_load(weights.source)
        except ReasonedError as error:
            self._fail(weights, error.reason, error.message)
            return
        weights.place = Place.COPYING
        self._loading[weights] = None
        self._tell_all(weights, "loading")

    def _copy_slice(self, weights: Weights, load: SlotLoad) -> None:
        try:
            if not load.advance(SLICE_BYTES):
                return
        except ReasonedError as error:
            self._fail(weights, error.reason, error.message)
            return
        del self._loading[weights]
        self._resident[weights] = None
        weights.slot, weights.load, weights.last_used = load.slot, None, self._tick()
        weights.place, weights.asked, weights.closing = Place.DEVICE, False, False
        self._tell_all(weights, "resident")

    def _evict(self, weights: Weights) -> None:
        self._slots.release(weights.slot)
        del self._resident[weights]
        weights.slot, weights.place, weights.closing = 0, Place.DISK, False
        if weights.num_requests:
            self._want(weights)
        self._tell_all(weights, "registered")

    def _fail(self, weights: Weights, reason: Reason, message: str) -> None:
        self._wanted.pop(weights, None)
        self._loading.pop(weights, None)
        weights.place, weights.load = Place.FAILED, None
        for adapter in weights.holders:
            self._report(AdapterResidency(adapter.revision, "failed", reason.value, message))

    def _forget_if_unused(self, adapter: Adapter) -> None:
        if not adapter.leaving or adapter.num_requests:
            return
        weights = adapter.weights
        weights.holders.remove(adapter)
        del self._adapters[adapter.revision]
        if not weights.holders:
            self._drop(weights)
        self._tell(adapter, "removed")

    def _drop(self, weights: Weights) -> None:
        if weights.load is not None:
            weights.load.cancel()
        if weights.place is Place.DEVICE:
            self._slots.release(weights.slot)
        del self._weights[weights.source]
        for some in (self._wanted, self._loading, self._resident):
            some.pop(weights, None)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _tell_all(self, weights: Weights, state: ResidencyState) -> None:
        for adapter in weights.holders:
            self._tell(adapter, state)

    def _tell(self, adapter: Adapter, state: ResidencyState) -> None:
        logger.info("adapter", extra={"revision": adapter.revision, "residency": state})
        self._report(AdapterResidency(adapter.revision, state))
