"""Calls between ``<tool_call>`` and ``</tool_call>``, as Hermes and Qwen write them."""

from __future__ import annotations

from typing import Final

from graft_runtime.text.speech.call_object import CallObject
from graft_runtime.text.speech.events import Event, content, held_back

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"


class HermesParser:
    """Reads content with any number of calls in it. Spaces around calls belong to nobody."""

    def __init__(self) -> None:
        self._held = ""
        self._call: CallObject | None = None
        self._follows_call = False

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        self._held += text
        events: list[Event] = []
        goes_on = True
        while goes_on:
            said, goes_on = self._outside() if self._call is None else self._inside(self._call)
            events += said
        return events

    def flush(self) -> list[Event]:
        """Return the rest."""
        held, self._held = self._held, ""
        if self._call is not None and not self._call.has_ended:
            return self._marked(self._call, self._call.flush())
        if self._call is not None or self._follows_call:
            return content(held.strip())
        return content(held)

    def _outside(self) -> tuple[list[Event], bool]:
        """Read content; the second value tells whether there is more to read."""
        if self._follows_call:
            self._held = self._held.lstrip()
        text, opening, rest = self._held.partition(OPENING)
        if opening:
            self._held, self._call = rest, CallObject()
            self._follows_call = False
            return content(text.rstrip()), True
        # A call may begin in what is held back, and then the spaces before it do not count.
        certain = text[: len(text) - held_back(text, OPENING)].rstrip()
        self._held = text[len(certain) :]
        self._follows_call = self._follows_call and not certain
        return content(certain), False

    def _inside(self, call: CallObject) -> tuple[list[Event], bool]:
        """Read a call and its closing mark, which some models forget."""
        events: list[Event] = []
        if not call.has_ended:
            events = self._marked(call, call.push(self._held))
            self._held = call.rest
        if not call.has_ended:
            return events, False
        bare = self._held.lstrip()
        if call.is_call and CLOSING.startswith(bare) and bare != CLOSING:
            return events, False
        self._held = bare.removeprefix(CLOSING) if call.is_call else self._held
        self._follows_call = call.is_call
        self._call = None
        return events, bool(self._held)

    def _marked(self, call: CallObject, events: list[Event]) -> list[Event]:
        """Put the opening mark back before what was no call."""
        if call.has_ended and not call.is_call:
            return [*content(OPENING), *events]
        return events
