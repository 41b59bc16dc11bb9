"""Calls after ``[TOOL_CALLS]``, as Mistral's models write them.

Older ones write a list of objects after one mark, newer ones a mark, the name and the arguments for
each call, perhaps with ``[ARGS]`` between the two.
"""

from __future__ import annotations

from typing import Final

from graft_runtime.text.speech.call_list import CallList
from graft_runtime.text.speech.events import (
    CallArguments,
    CallBegun,
    Event,
    content,
    held_back,
)
from graft_runtime.text.speech.json_value import ValueEnd

MARK: Final = "[TOOL_CALLS]"
ARGUMENTS_MARK: Final = "[ARGS]"
_CALL_ID_MARK: Final = "[CALL_ID]"


class MistralParser:
    """Reads content, then calls to the end."""

    def __init__(self) -> None:
        self._held = ""
        self._state = "content"
        self._list = CallList()
        self._end = ValueEnd()

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        self._held += text
        events: list[Event] = []
        state = ""
        while state != self._state:
            state = self._state
            events += self._step()
        return events

    def flush(self) -> list[Event]:
        """Return the rest."""
        held, self._held = self._held, ""
        match self._state:
            case "list":
                return self._list.flush()
            case "content":
                return content(held)
            case "form" | "name":
                return content(MARK + held) if held.strip() else []
            case _:
                return []

    def _step(self) -> list[Event]:
        match self._state:
            case "content":
                return self._read_content()
            case "form":
                return self._choose_form()
            case "name":
                return self._read_name()
            case "arguments":
                return self._read_arguments()
            case "list":
                text, self._held = self._held, ""
                return self._list.push(text)
            case _:
                return self._read_mark()

    def _read_content(self) -> list[Event]:
        text, mark, rest = self._held.partition(MARK)
        if mark:
            self._held, self._state = rest, "form"
            return content(text.rstrip())
        certain = text[: len(text) - held_back(text, MARK)].rstrip()
        self._held = text[len(certain) :]
        return content(certain)

    def _choose_form(self) -> list[Event]:
        self._held = self._held.lstrip()
        if self._held:
            self._state = "list" if self._held[0] in "[{" else "name"
        return []

    def _read_name(self) -> list[Event]:
        name, brace, _ = self._held.partition("{")
        if not brace:
            return []
        self._held = self._held[len(name) :]
        self._state, self._end = "arguments", ValueEnd()
        for mark in (ARGUMENTS_MARK, _CALL_ID_MARK):
            name = name.partition(mark)[0]
        return [CallBegun(name.strip())]

    def _read_arguments(self) -> list[Event]:
        text, self._held = self._held, ""
        for index, character in enumerate(text):
            if self._end.read(character):
                self._held, self._state = text[index + 1 :], "mark"
                text = text[: index + 1]
                break
        return [CallArguments(text)] if text else []

    def _read_mark(self) -> list[Event]:
        """Look for another call; spaces and end marks between calls belong to nobody."""
        _, mark, rest = self._held.partition(MARK)
        if mark:
            self._held, self._state = rest, "form"
        return []
