"""One call written as a JSON object, ``{"name": ..., "arguments": {...}}``, read as it arrives.

The name is told as soon as it is complete and the arguments while they are written, exactly as the
model writes them. What turns out to be something else comes back as text.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final

from graft_runtime.text.speech.events import CallArguments, CallBegun, Event, content
from graft_runtime.text.speech.json_value import ValueEnd

_ARGUMENT_KEYS: Final = ("arguments", "parameters")
_SPACE: Final = " \t\r\n"


class CallObject:
    """Reads one object. When it has ended, what came after it is in ``rest``."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        """Prepare.

        Args:
            names: The only names that make an object a call; None takes any.
        """
        self.has_ended = False
        self.is_call = False
        """Whether the name has been told."""
        self.rest = ""
        self._names = names
        self._raw = ""
        self._at = 0
        """The next character of ``_raw`` to read."""
        self._expects = "object"
        self._key = ""
        self._start = 0
        """Where the present key or value begins."""
        self._end = ValueEnd()
        self._name: str | None = None
        self._arguments: str | None = None
        """Complete ones."""
        self._num_told = 0
        """Characters of the arguments given out."""

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        self._raw += text
        events: list[Event] = []
        while not self.has_ended and self._at < len(self._raw):
            events += self._read(self._raw[self._at])
        if self._expects == "value" and self._key in _ARGUMENT_KEYS:
            events += self._tell(self._raw[self._start : self._at])
        return events

    def flush(self) -> list[Event]:
        """End an object that the model did not end: a told call stays one, cut off."""
        if self.has_ended:
            return content(self.rest)
        self.has_ended = True
        return [] if self.is_call else content(self._raw)

    def _read(self, character: str) -> list[Event]:
        """Read one character by what may stand here."""
        if self._expects == "value":
            return self._read_value(character)
        self._at += 1
        if self._expects == "key text":
            if self._end.read(character):
                self._key = _string(self._raw[self._start : self._at])
                self._expects = "colon"
            return []
        if character in _SPACE:
            return []
        match self._expects, character:
            case ("object", "{") | ("next", ","):
                self._expects = "key"
            case (("key" | "next"), "}"):
                return self._close()
            case "key", '"':
                self._begin("key text")
                self._end.read(character)
            case "colon", ":":
                self._expects = "value start"
            case "value start", _:
                self._begin("value")
                self._at -= 1
            case _:
                return self._give_up()
        return []

    def _begin(self, part: str) -> None:
        self._expects, self._start, self._end = part, self._at - 1, ValueEnd()

    def _read_value(self, character: str) -> list[Event]:
        if self._end.stops_before(character):
            return self._take_value()
        self._at += 1
        return self._take_value() if self._end.read(character) else []

    def _take_value(self) -> list[Event]:
        value = self._raw[self._start : self._at].strip()
        self._expects = "next"
        if self._key == "name":
            self._name = _string(value)
            if not self._name or (self._names is not None and self._name not in self._names):
                return self._give_up()
            return self._tell(self._arguments or "")
        if self._key in _ARGUMENT_KEYS:
            self._arguments = _arguments(value)
            return self._tell(self._arguments)
        return []

    def _tell(self, arguments: str) -> list[Event]:
        """Give out what is certain: the name, then the arguments so far."""
        if self._name is None:
            return []
        events: list[Event] = []
        if not self.is_call:
            self.is_call = True
            events.append(CallBegun(self._name))
        is_raw = arguments.startswith(("{", "["))  # anything else is read when it is complete
        if (is_raw or self._arguments is not None) and len(arguments) > self._num_told:
            events.append(CallArguments(arguments[self._num_told :]))
            self._num_told = len(arguments)
        return events

    def _close(self) -> list[Event]:
        if self._name is None:
            return self._give_up()
        self.has_ended, self.rest = True, self._raw[self._at :]
        return self._tell("{}") if self._arguments is None else []

    def _give_up(self) -> list[Event]:
        """Take all for text, unless a call has been told already: then only its end is wrong."""
        self.has_ended = True
        if self.is_call:
            self.rest = self._raw[self._at - 1 :]
            return []
        return content(self._raw)


def _string(text: str) -> str:
    """Return a JSON string's value, "" for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""


def _arguments(value: str) -> str:
    """Return arguments as JSON text: some models write them inside a string, or none as null."""
    if value.startswith('"'):
        return _string(value)
    return "{}" if value == "null" else value
