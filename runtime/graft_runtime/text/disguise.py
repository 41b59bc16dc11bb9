"""Keeps control tokens in users' text apart from those that a chat template writes."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

WINDOW_CHARS: Final = 4096
"""Characters that are searched at a time, milliseconds at the worst."""


class Disguise:
    """Hides control tokens in users' text from the tokenizer while a template runs.

    Each is replaced by a mark nobody can guess; after rendering, the marks become parts of their
    own. Text without control tokens, which is nearly all text, passes unchanged in one part.
    """

    def __init__(self, special_texts: Sequence[str]) -> None:
        self._nonce = secrets.token_hex(8)
        longest_first = sorted(filter(None, special_texts), key=len, reverse=True)
        self._longest = len(longest_first[0]) if longest_first else 0
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._mark = re.compile(rf"<{self._nonce}:(\d{{1,9}})>")
        self._hidden: list[str] = []

    @property
    def end_mark(self) -> str:
        """A text that nobody can guess either, for finding a place in what is rendered."""
        return f"<{self._nonce}:end>"

    def hide(self, value: Any) -> Any:
        """Return a value with the control tokens in all its strings replaced by marks."""
        if isinstance(value, str):
            return self._hidden_in(value)
        if isinstance(value, dict):
            return {self.hide(key): self.hide(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.hide(each) for each in value]
        return value

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Split rendered text into parts; the second value tells whether it was a hidden one."""
        pieces = self._mark.split(text)
        parts = [
            (self._behind(int(piece)), True) if index % 2 else (piece, False)
            for index, piece in enumerate(pieces)
        ]
        return [part for part in parts if part[0]]

    def _behind(self, number: int) -> str:
        """Return what a mark stands for; one that a template made up stands for nothing."""
        return self._hidden[number] if number < len(self._hidden) else ""

    def _hidden_in(self, text: str) -> str:
        """Look window by window: one search keeps the interpreter to itself until it ends."""
        parts: list[str] = []
        start = at = 0
        while at < len(text):
            window = at + WINDOW_CHARS
            match = self._special.search(text, at, window + self._longest)
            if match is None or match.start() >= window:
                at = window
                continue
            self._hidden.append(match[0])
            parts += (text[start : match.start()], f"<{self._nonce}:{len(self._hidden) - 1}>")
            start = at = match.end()
        return "".join((*parts, text[start:]))
