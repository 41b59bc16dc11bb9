"""The host's side of the penalties' counts: what a request's tokens are, and what is news of them.

The device keeps what it was told (`graft_runtime.sampling.counts`), in a slot per request.

Shape legend: E changed places.
"""

from __future__ import annotations

from collections.abc import Sequence


class CountSlots:
    """Numbers of places on the device, the lowest free one first."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._num_made = 0

    def take(self) -> int:
        """Return a slot that nobody has."""
        if self._free:
            return self._free.pop()
        self._num_made += 1
        return self._num_made - 1

    def give_back(self, slot: int) -> None:
        """Let others have it. Steps that name it still are ahead of theirs in the lane."""
        self._free.append(slot)
        self._free.sort(reverse=True)


News = list[int]
"""Places whose content has changed, of all requests: slot, place, token and count of each [E]."""


class Counts:
    """One request's distinct tokens, each with a place, and how often its output has them."""

    def __init__(self, prompt: Sequence[int], slots: CountSlots) -> None:
        """Count the prompt's tokens as not generated yet; take no slot before one is needed."""
        self._slots = slots
        self._slot: int | None = None
        self._ids = sorted(set(prompt))
        self._counts = [0] * len(self._ids)
        self._place = {id: place for place, id in enumerate(self._ids)}
        self._news: list[int] | None = None
        """Places that have changed since they were sent; None means all."""

    @property
    def size(self) -> int:
        """How many distinct tokens there are."""
        return len(self._ids)

    @property
    def slot(self) -> int:
        """The request's place on the device."""
        if self._slot is None:
            self._slot = self._slots.take()
            self._news = None
        return self._slot

    def add(self, token_id: int) -> None:
        """Count one more generated token."""
        place = self._place.setdefault(token_id, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token_id)
            self._counts.append(0)
        self._counts[place] += 1
        if self._news is not None:
            self._news.append(place)

    def tell(self, news: News) -> None:
        """Add the changed places to what is sent; they count as sent."""
        slot, ids, counts = self.slot, self._ids, self._counts
        # One that has changed twice is told twice, which does no harm.
        changed = range(len(ids)) if self._news is None else self._news
        for place in changed:
            news.extend((slot, place, ids[place], counts[place]))
        self._news = []

    def forget(self) -> None:
        """Count nothing as sent."""
        self._news = None

    def release(self) -> None:
        """Give the slot back; a request that goes on takes another and sends everything anew."""
        if self._slot is not None:
            self._slots.give_back(self._slot)
            self._slot = None
