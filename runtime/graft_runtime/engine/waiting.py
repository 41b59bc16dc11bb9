"""The requests that wait, and which of them is next. The scheduler calls it.

Strict classes first; within a class those that ran before and were preempted, so that nobody is
sent back again and again; then the tenant that is owed most; then order of arrival.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from math import inf

from graft_runtime.engine.fair_share import FairShare
from graft_runtime.engine.request import Request


@dataclass(slots=True)
class _Class:
    """Waiting requests of one priority, each list by arrival."""

    resumed: list[Request] = field(default_factory=list)
    by_tenant: dict[str, list[Request]] = field(default_factory=dict)


class WaitingQueue:
    """Requests that hold nothing yet, or nothing any more."""

    def __init__(self, share: FairShare) -> None:
        self._share = share
        self._classes: dict[int, _Class] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def first_priority(self) -> float:
        """The class whose turn it is; infinity when nobody waits."""
        return min(self._classes, default=inf)

    def add(self, request: Request) -> None:
        """Queue a request."""
        insort(self._list_of(request), request, key=_arrival)
        self._size += 1

    def remove(self, request: Request) -> None:
        """Take a request out, from wherever it stands."""
        self._list_of(request).remove(request)
        self._size -= 1
        waiting = self._classes[request.priority]
        if not waiting.by_tenant.get(request.tenant, True):
            del waiting.by_tenant[request.tenant]
        if not waiting.resumed and not waiting.by_tenant:
            del self._classes[request.priority]

    def candidates(self) -> Iterator[Request]:
        """Yield requests, the next one first. The one just given may be removed meanwhile.

        What is charged between two requests counts for the choice of the second.
        """
        for priority in sorted(self._classes):
            waiting = self._classes[priority]
            yield from list(waiting.resumed)
            yield from self._by_share(waiting)

    def _by_share(self, waiting: _Class) -> Iterator[Request]:
        queues = {tenant: iter(list(queue)) for tenant, queue in waiting.by_tenant.items()}
        heads = [self._entry(next(queue)) for queue in queues.values()]
        heapify(heads)
        while heads:
            request = heads[0][2]
            yield request
            following = next(queues[request.tenant], None)
            if following is None:
                heappop(heads)
            else:
                heapreplace(heads, self._entry(following))

    def _entry(self, request: Request) -> tuple[float, int, Request]:
        return self._share.served(request.tenant), request.arrival, request

    def _list_of(self, request: Request) -> list[Request]:
        waiting = self._classes.setdefault(request.priority, _Class())
        if request.admitted:
            return waiting.resumed
        return waiting.by_tenant.setdefault(request.tenant, [])


def _arrival(request: Request) -> int:
    return request.arrival
