"""One call of a tool that the client has named: all the model writes are its arguments."""

from __future__ import annotations

from graft_runtime.text.speech.events import CallArguments, CallBegun, Event


class NamedCall:
    """Reads arguments to the end."""

    def __init__(self, name: str) -> None:
        """Prepare.

        Args:
            name: The tool's.
        """
        self._name = name
        self._has_begun = False

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        if not text:
            return []
        events: list[Event] = [] if self._has_begun else [CallBegun(self._name)]
        self._has_begun = True
        return [*events, CallArguments(text)]

    def flush(self) -> list[Event]:
        """Return the rest, which is nothing."""
        return []
