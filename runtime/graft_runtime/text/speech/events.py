"""The kinds of thing that a model says, and what reads them out of its text.

Knows no surface and no tokens. `readers` chooses the parsers; the surfaces turn events into their
own forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A tool is called; its arguments follow."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the last begun call's arguments, as JSON text."""

    text: str


Event = Content | Thought | CallBegun | CallArguments


class Parser(Protocol):
    """Reads text piece by piece. Whatever the pieces, the events together say the same."""

    def push(self, text: str) -> list[Event]:
        """Read more text; what may still become something else is held back."""

    def flush(self) -> list[Event]:
        """Return what was held back, when the text has ended."""


def content(text: str) -> list[Event]:
    """Return text as events: one, or none if it is empty."""
    return [Content(text)] if text else []


def held_back(text: str, marker: str) -> int:
    """Return the length of the longest end of a text that a marker begins with."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0
