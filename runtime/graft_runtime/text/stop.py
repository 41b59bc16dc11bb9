"""Stop strings in a stream of text, whatever the pieces it arrives in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Matched:
    """What a piece of text became: text to give out, and the stop string if one was completed."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Finds the stop string that is completed first.

    Without `keep`, the match and everything after it are cut off, and text is held back only while
    it may still become a match. With `keep`, the match stays in the text and nothing is held back.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        """Prepare a search.

        Args:
            stops: Non-empty strings; none at all means nothing ever matches.
            keep: Whether the matched text stays in the output.
        """
        self._stops = tuple(stops)
        self._keep = keep
        self._reach = max(map(len, self._stops), default=1) - 1
        """How much text before a new piece can be part of a match that ends in it."""
        self._buffer = ""

    def push(self, text: str) -> Matched:
        """Add text. After a match, nothing more may be pushed."""
        if not self._stops:
            return Matched(text)
        known = len(self._buffer)
        self._buffer += text
        match = self._first_completed()
        if match is not None:
            return self._matched(*match, known)
        if self._keep:
            self._buffer = self._buffer[max(0, len(self._buffer) - self._reach) :]
            return Matched(text)
        held = self._held()
        given = self._buffer[: len(self._buffer) - held]
        self._buffer = self._buffer[len(given) :]
        return Matched(given)

    def flush(self) -> str:
        """Return what was held back, when the text has ended without a match."""
        rest = "" if self._keep else self._buffer
        self._buffer = ""
        return rest

    def _matched(self, end: int, stop: str, known: int) -> Matched:
        text = self._buffer[known:end] if self._keep else self._buffer[: end - len(stop)]
        self._buffer = ""
        return Matched(text, stop)

    def _first_completed(self) -> tuple[int, str] | None:
        """Return where the match that ends first ends; of those ending there, the longest."""
        found = [
            (start + len(stop), -len(stop), stop)
            for stop in self._stops
            if (start := self._buffer.find(stop)) >= 0
        ]
        if not found:
            return None
        end, _, stop = min(found)
        return end, stop

    def _held(self) -> int:
        """Return the length of the longest end of the buffer that begins a stop string."""
        for length in range(min(self._reach, len(self._buffer)), 0, -1):
            tail = self._buffer[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
