"""A generation's output as tensors, collected until someone takes it.

Pure. A stream takes after each piece and gets what is new since; a whole answer takes once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from graft_runtime.server.generation import End, Job, Piece, Token
from graft_runtime.server.kserve.contract import OUTPUTS
from graft_runtime.server.kserve.tensors import Element, Tensor

UNFINISHED: Final = b"None"


@dataclass
class _Choice:
    """One of several answers to the prompt."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    cumulative: float = 0.0
    """Over all tokens so far, taken or not."""
    end: End | None = None


class Answer:
    """What all choices of one request gave."""

    def __init__(self, jobs: Sequence[Job], outputs: Sequence[str], prefix: str) -> None:
        """Begin.

        Args:
            jobs: The choices' jobs.
            outputs: Names of the tensors that are wanted.
            prefix: Put before each choice's text.
        """
        self._num_input = len(jobs[0].token_ids)
        self._num_top = jobs[0].sampling.top_logprobs
        self._are_named = bool(jobs[0].sampling.logprob_token_ids)
        """Whether the client has named the tokens that are told with each one."""
        self._has_logprobs = jobs[0].sampling.logprobs
        self._outputs = tuple(outputs)
        self._choices = [_Choice(prefix) for _ in jobs]
        self.has_news = False
        """Whether anything came since the last `take`."""

    def add(self, index: int, piece: Piece) -> None:
        """Add one choice's piece."""
        choice = self._choices[index]
        choice.text += piece.text
        choice.tokens += piece.tokens
        choice.cumulative += math.fsum(token.logprob or 0.0 for token in piece.tokens)
        choice.end = piece.end
        self.has_news = self.has_news or bool(piece.text or piece.tokens or piece.end)

    @property
    def has_ended(self) -> bool:
        """Whether no choice will get more."""
        return all(choice.end is not None for choice in self._choices)

    def take(self) -> list[Tensor]:
        """Return the wanted tensors and begin anew."""
        values = {name: self._values(name) for name in self._outputs}
        for choice in self._choices:
            choice.text = ""
            choice.tokens = []
        self.has_news = False
        return [Tensor.row(name, OUTPUTS[name], values[name]) for name in self._outputs]

    def _values(self, name: str) -> list[Element]:
        choices = self._choices
        if name == "text_output":
            return [choice.text.encode("utf-8", "replace") for choice in choices]
        if name == "finish_reason":
            return [_finish_reason(choice.end) for choice in choices]
        if name == "cumulative_logprob":
            return [choice.cumulative for choice in choices]
        if name == "logprobs":
            return [self._logprobs(choice.tokens) for choice in choices]
        if name == "num_input_tokens":
            return [self._num_input]
        return [len(choice.tokens) for choice in choices]

    def _logprobs(self, tokens: Sequence[Token]) -> bytes:
        """Return the new tokens' log probabilities as vLLM's backend writes them."""
        if not self._has_logprobs:
            return b"null"
        return msgspec.json.encode([self._entry(token) for token in tokens])

    def _entry(self, token: Token) -> dict[str, Any]:
        top = token.top if self._are_named else token.top[: self._num_top]
        ranks = [None if self._are_named else rank for rank in range(1, len(top) + 1)]
        entry = {
            str(each.id): {"logprob": each.logprob, "rank": rank, "decoded_token": each.text}
            for rank, each in zip(ranks, top, strict=True)
        }
        # A token that is not among the likeliest has a rank that nobody counted.
        own = {"logprob": token.logprob, "rank": None, "decoded_token": token.text}
        return {str(token.id): entry.get(str(token.id), own), **entry}


def _finish_reason(end: End | None) -> bytes:
    if end is None:
        return UNFINISHED
    if end.reason in ("length", "abort"):
        return end.reason.encode()
    return b"stop"
