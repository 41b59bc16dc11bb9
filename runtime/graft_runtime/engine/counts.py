"""Where the device counts penalised requests' tokens, and whose tokens it knows already.

The counts themselves are the device's alone (`graft_runtime.sampling.counts`): it is told a
request's tokens once, and adds those that it samples. The host counts nothing from step to step.

Shape legend: E distinct tokens of a request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graft_runtime.sampling.batch import IntArray


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


class Counts:
    """One request's counts on the device: where they are, and whether they are there."""

    def __init__(self, prompt: Sequence[int], slots: CountSlots) -> None:
        """Take no slot before one is needed."""
        self._slots = slots
        self._slot: int | None = None
        self.prompt_size = len(set(prompt))
        """How many distinct tokens the prompt has."""
        self.is_known = False
        """Whether the device has been told all tokens but those that it adds by itself."""

    @property
    def slot(self) -> int:
        """The request's place on the device. Whoever had it before has left counts in it."""
        if self._slot is None:
            self._slot = self._slots.take()
        return self._slot

    def release(self) -> None:
        """Give the slot back: the request has ended."""
        if self._slot is not None:
            self._slots.give_back(self._slot)
            self._slot = None


def count(tokens: Sequence[int], num_prompt: int) -> tuple[IntArray, IntArray]:
    """Return distinct tokens, and how often the output has each of them; [E] both.

    Args:
        tokens: Prompt and output.
        num_prompt: How many of them are the prompt.
    """
    ids_E, places = np.unique(np.array(tokens, dtype=np.int64), return_inverse=True)
    return ids_E, np.bincount(places[num_prompt:], minlength=len(ids_E))
