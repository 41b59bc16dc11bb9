"""Reads objects by name when they are asked for, and remembers what they said for a while.

By name, one at a time: that takes no right beyond the objects themselves. No list, no watch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
View = TypeVar("View")


class ReadThrough(Generic[Name, View]):
    """Reads each name at most once per `ttl_seconds`."""

    def __init__(
        self,
        fetch: Callable[[Name], Awaitable[View]],
        ttl_seconds: float,
        keeps: Callable[[View], bool] = lambda _: True,
    ) -> None:
        """Make a reader.

        Args:
            fetch: Reads one; whatever it raises reaches whoever asked.
            ttl_seconds: How long a view is remembered; so long a change takes to count.
            keeps: Whether a view is remembered at all.
        """
        self._fetch = fetch
        self._keeps = keeps
        self.ttl_seconds = ttl_seconds
        self._views: dict[Name, tuple[float, View]] = {}

    def invalidate(self, name: Name) -> None:
        """Forget what a name said."""
        self._views.pop(name, None)

    async def read_all(self, names: Iterable[Name]) -> dict[Name, View]:
        """Return the view of each; if one cannot be read, none is returned."""
        unique = list(dict.fromkeys(names))
        views = await asyncio.gather(*(self._read(name) for name in unique))
        return dict(zip(unique, views, strict=True))

    async def _read(self, name: Name) -> View:
        now = asyncio.get_running_loop().time()
        known = self._views.get(name)
        if known is not None and known[0] > now:
            return known[1]
        view = await self._fetch(name)
        if self._keeps(view):
            self._views[name] = (now + self.ttl_seconds, view)
        return view
