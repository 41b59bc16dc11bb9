"""Calls as bare JSON, several divided by ``;``, as Llama 3 writes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from graft_runtime.text.speech.call_list import CallList
from graft_runtime.text.speech.events import Event, content

PYTHON_TAG: Final = "<|python_tag|>"


class LlamaParser:
    """Reads either calls or content to its end: what the text begins with decides."""

    def __init__(self, names: Collection[str]) -> None:
        """Prepare.

        Args:
            names: The tools; a JSON object that names none of them is content.
        """
        self._calls = CallList(frozenset(names))
        self._held = ""
        self._is_calling: bool | None = None

    def push(self, text: str) -> list[Event]:
        """Read more text."""
        text, self._held = self._held + text, ""
        if self._is_calling is None:
            bare = text.lstrip()
            if not bare or bare == "[" or (bare != PYTHON_TAG and PYTHON_TAG.startswith(bare)):
                self._held = text
                return []
            has_tag = bare.startswith(PYTHON_TAG)
            text = bare.removeprefix(PYTHON_TAG) if has_tag else text
            self._is_calling = has_tag or bare.startswith(("{", "[{"))
        return self._calls.push(text) if self._is_calling else content(text)

    def flush(self) -> list[Event]:
        """Return the rest."""
        return self._calls.flush() if self._is_calling else content(self._held)
