"""Calls as JSON objects one after the other, in a list or with marks between them.

Llama 3 and older Mistral models write them so, and so do all models that are forced to call.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from graft_runtime.text.speech.call_object import CallObject
from graft_runtime.text.speech.events import Event, content

_BETWEEN: Final = " \t\r\n;,[]"


class CallList:
    """Reads objects until one of them is no call: that one and all after it are content."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        """Prepare.

        Args:
            names: The only names that make an object a call; None takes any.
        """
        self._names = names
        self._call: CallObject | None = None
        self._held = ""
        self._before = ""
        """What stood before the first object, in case that is none."""
        self._is_content = False

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        self._held += text
        events: list[Event] = []
        while self._held and not self._is_content:
            if self._call is None or self._call.has_ended:
                bare = self._held.lstrip(_BETWEEN)
                if not bare:
                    return events
                before = "" if self._call else self._held[: len(self._held) - len(bare)]
                self._call, self._held, self._before = CallObject(self._names), bare, before
            events += self._read(self._call)
        if self._is_content:
            events += content(self._held)
            self._held = ""
        return events

    def flush(self) -> list[Event]:
        """Return the rest; marks after the last call belong to nobody."""
        if self._call is None:
            return content(self._held)
        if self._call.has_ended:
            return []
        events = self._call.flush()
        return events if self._call.is_call else [*content(self._before), *events]

    def _read(self, call: CallObject) -> list[Event]:
        events = call.push(self._held)
        self._held = call.rest
        if call.has_ended and not call.is_call:
            self._is_content = True
            return [*content(self._before), *events]
        return events
