"""Tokens to text, one token at a time, without ever cutting a character in two."""

from __future__ import annotations

from typing import Final

from graft_runtime.text.tokenizer import Tokenizer

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are not, or not yet, a character."""

LONGEST_CHARACTER_BYTES: Final = 4
"""UTF-8's limit, and so the most tokens that one unfinished character can span."""


class Detokenizer:
    """The text of a growing list of tokens.

    Each token is decoded together with the ones just before it, since many vocabularies let a
    token's text depend on its neighbour. Text that ends in an unfinished character is held back.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._given = 0
        """How many tokens at the window's start have been given out as text."""

    def push(self, id: int) -> str:
        """Add one token and return the text that became certain, often "" amid a character."""
        if self._skip_special_tokens and self._tokenizer.is_special(id):
            return ""
        self._window.append(id)
        before = self._decode(self._window[: self._given])
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            return self._give_up_on_garbage()
        if text == before:
            return self._drop_last()
        if len(text) < len(before):
            return ""
        self._window = self._window[self._given :]
        self._given = len(self._window)
        return text[len(before) :]

    def flush(self) -> str:
        """Return what is still held back; unfinished characters come out as U+FFFD."""
        text = self._beyond_given(self._window)
        self._window, self._given = [], 0
        return text

    def _drop_last(self) -> str:
        """Forget a token without text, lest a run of them grow the window without end.

        At the very start a few are kept: there a lone word mark has no text, yet gives some to the
        next token.
        """
        if self._given or len(self._window) > LONGEST_CHARACTER_BYTES:
            self._window.pop()
        return ""

    def _give_up_on_garbage(self) -> str:
        """Return text that no later token can mend, once more is held than a character can need.

        The last token starts something new exactly if the text falls apart before it: a byte that
        went on with the character before it would melt into it.
        """
        held = len(self._window) - self._given
        if held <= LONGEST_CHARACTER_BYTES:
            return ""
        head, last = self._window[:-1], self._window[-1:]
        if self._decode(head) + self._decode(last) != self._decode(self._window):
            return ""
        text = self._beyond_given(head)
        self._window, self._given = last, 0
        return text

    def _beyond_given(self, ids: list[int]) -> str:
        before = self._decode(ids[: self._given])
        text = self._decode(ids)
        if text.startswith(before):
            return text[len(before) :]
        return self._decode(ids[self._given :])

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
