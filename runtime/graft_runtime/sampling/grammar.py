"""Grammars over a model's tokens: which ones may come next, row by row.

Built on llguidance. Knows no tensor: masks are packed bits on the host. The engine keeps one
`GrammarState` per request; the grammar checker uses the same classes to try a grammar out.

Shape legend: G rows with a grammar, W 32-bit words that hold one bit per token of the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer

from graft_runtime.errors import GrammarError

Words = npt.NDArray[np.int32]

LIMITS: Final = LLParserLimits(verbose_errors=False)
"""The library's own bounds on states, items and work per token; errors must not quote schemas."""
_BITS: Final = 32


class Vocabulary:
    """A tokenizer as the matcher reads it."""

    def __init__(
        self, serialized: str, *, vocab_size: int | None = None, eos_ids: Sequence[int] = ()
    ) -> None:
        """Read a tokenizer. Takes about a second for 128k tokens.

        Args:
            serialized: The content of a ``tokenizer.json``.
            vocab_size: Length of a row of logits; more than the tokenizer has is padding.
            eos_ids: What ends an output; none takes the tokenizer's own end token.

        Raises:
            GrammarError: The library cannot tell what this tokenizer's tokens stand for.
        """
        try:
            self.raw = _read(serialized, vocab_size, list(eos_ids))
        except ValueError as error:
            message = f"the model's tokenizer does not support structured output: {error}"
            raise GrammarError(message) from error
        self.num_words = -(-self.raw.vocab_size // _BITS)

    @cached_property
    def _executor(self) -> LLExecutor:
        """Threads for several rows; started when there are some for the first time."""
        return LLExecutor()

    def compile(self, text: str) -> Grammar:
        """Compile a grammar; releases the interpreter's lock meanwhile.

        Raises:
            GrammarError: It is none, or too large.
        """
        matcher = LLMatcher(self.raw, text, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(first_line(matcher.get_error()))
        return Grammar(self, matcher)

    def text_of(self, token_id: int) -> bytes:
        """Return what a token adds to the text, in UTF-8; a control token is spelled out."""
        return self.raw.decode_bytes([token_id])

    def fill(self, states: Sequence[GrammarState]) -> Words:
        """Return the tokens that may come next, one bit each, the lowest bit first [G, W].

        A state whose grammar has failed allows none. Takes microseconds per row for most grammars,
        and milliseconds for the largest; several rows are done at once, without the interpreter.
        """
        words_GW = np.zeros((len(states), self.num_words), dtype=np.int32)
        jobs = [
            (state.matcher, row) for row, state in enumerate(states) if not state.matcher.is_error()
        ]
        if len(jobs) == 1:
            matcher, row = jobs[0]
            address = words_GW.ctypes.data + row * words_GW.strides[0]
            matcher.unsafe_compute_mask_ptr(address, words_GW.strides[0])
        elif jobs:
            self._executor.unsafe_compute_mask_ptr(
                jobs, words_GW.ctypes.data, words_GW.strides[0], len(states)
            )
        for matcher, row in jobs:
            if matcher.is_error():
                words_GW[row] = 0
        return words_GW


class Grammar:
    """A compiled grammar, from which each request gets a state of its own."""

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher

    def start(self) -> GrammarState:
        """Return the state before the first token."""
        return GrammarState(self._vocabulary, self._matcher.deep_copy())


class GrammarState:
    """How far one output has come in its grammar."""

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self.vocabulary = vocabulary
        self.matcher = matcher

    def advance(self, token_id: int) -> None:
        """Take the next token. One that the grammar does not allow fails it for good."""
        self.matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether the output is whole and nothing can follow it."""
        return self.matcher.is_stopped() and not self.matcher.is_error()

    @property
    def may_end(self) -> bool:
        """Whether the output would be whole if it ended here."""
        return self.matcher.is_accepting()

    @property
    def error(self) -> str | None:
        """Why no token can come next, if none can."""
        return first_line(self.matcher.get_error()) if self.matcher.is_error() else None


def first_line(text: str) -> str:
    """Return an error's own line, without the states that the library adds to it."""
    return text.strip().split("\n", 1)[0][:200]


def _read(serialized: str, vocab_size: int | None, eos_ids: list[int]) -> LLTokenizer:
    """Read a tokenizer, once where its size fits, as it does in most models."""
    if vocab_size is not None:
        with contextlib.suppress(ValueError):  # the tokenizer has more tokens than the model
            return LLTokenizer(serialized, n_vocab=vocab_size, eos_token=eos_ids or None)
    return LLTokenizer(serialized, eos_token=eos_ids or None)
