"""Thoughts that a model writes between ``<think>`` and ``</think>`` before it answers."""

from __future__ import annotations

from typing import Final

from graft_runtime.text.speech.events import Event, Thought, content, held_back

OPENING: Final = "<think>"
CLOSING: Final = "</think>"


def is_opened_by(prompt: str) -> bool:
    """Tell whether a prompt leaves off amid a thought, as some templates do."""
    return prompt.rstrip().endswith(OPENING)


class ThoughtSplitter:
    """Tells thoughts from the answer. Only what the text begins with can be a thought."""

    def __init__(self, *, is_open: bool) -> None:
        """Prepare.

        Args:
            is_open: Whether the prompt has opened a thought already.
        """
        self._held = ""
        self._state = "thinking" if is_open else "undecided"
        self._is_first = True
        """Whether nothing of the present part has been given out, so that spaces are dropped."""

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        self._held += text
        events: list[Event] = []
        if self._state == "undecided":
            self._decide()
        if self._state == "thinking":
            events += self._think()
        if self._state == "answering":
            events += content(self._given(self._held))
            self._held = ""
        return events

    def flush(self) -> list[Event]:
        """Return the rest; a thought may be cut off by the end of the output."""
        rest, self._held = self._held, ""
        if self._state == "thinking":
            rest = rest.rstrip()
            return [Thought(rest)] if rest else []
        return content(rest)

    def _decide(self) -> None:
        """See whether the text begins with a thought, as soon as that is certain."""
        start = self._held.lstrip()
        if start.startswith(OPENING):
            self._state = "thinking"
            self._held = start[len(OPENING) :]
        elif not OPENING.startswith(start):
            self._state = "answering"
            self._is_first = False

    def _think(self) -> list[Event]:
        thought, closing, rest = self._held.partition(CLOSING)
        if closing:
            self._held = rest
            text = self._given(thought.rstrip())
            self._state = "answering"
            self._is_first = True
            return [Thought(text)] if text else []
        # Spaces before the closing mark belong to nobody.
        end = len(thought.rstrip())
        end = min(end, len(thought) - held_back(thought, CLOSING))
        end = len(thought[:end].rstrip())
        text, self._held = self._given(thought[:end]), thought[end:]
        return [Thought(text)] if text else []

    def _given(self, text: str) -> str:
        """Return text without the spaces that a part begins with."""
        if self._is_first:
            text = text.lstrip()
            self._is_first = not text
        return text
