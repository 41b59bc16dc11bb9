"""Where a runner's work is done: in order, and without holding up who asked for it.

A GPU queues work by itself, so it is handed over on the spot. A CPU does it in a thread of its own:
torch lets go of the interpreter while it computes, and the engine schedules the next step and
answers for the last one meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Lane(Protocol):
    """Does work in the order in which it is handed over."""

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Hand over work; what it returns or raises is in the future."""


class InlineLane:
    """Does work at once."""

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Hand over work; what it returns or raises is in the future."""
        future: Future[T] = Future()
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - whoever waits for the result is told
            future.set_exception(error)
        return future


class ThreadLane:
    """Does work in one thread."""

    def __init__(self) -> None:
        # What was set for this thread does not hold for others.
        self._thread = ThreadPoolExecutor(
            1, "forward", torch.set_num_threads, (torch.get_num_threads(),)
        )

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Hand over work; what it returns or raises is in the future."""
        return self._thread.submit(work)


def create_lane(device: torch.device) -> Lane:
    """Return the lane that suits a device."""
    return ThreadLane() if device.type == "cpu" else InlineLane()
