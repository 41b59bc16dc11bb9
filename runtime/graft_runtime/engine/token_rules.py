"""What one request asks for single tokens: biases, bans, allowed sets, penalties. Never a tensor.

A request without any of these has no `TokenRules`, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graft_runtime.ipc.messages import Sampling
from graft_runtime.sampling.batch import FloatArray, IntArray

FORBIDDEN = float("-inf")


class TokenRules:
    """One request's rules, and the counts of its tokens that the penalties need."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], stop_ids: frozenset[int]) -> None:
        """Prepare what stays the same from step to step.

        Args:
            sampling: What was asked.
            prompt: The prompt's tokens.
            stop_ids: What ends the output, and must not before ``min_tokens``.
        """
        self.sampling = sampling
        self.allowed_ids = np.array(sampling.allowed_token_ids or (), dtype=np.int64)
        self._bias = dict(sampling.logit_bias)
        self._sequences = [word for word in sampling.bad_words if len(word) > 1]
        for word in sampling.bad_words:
            if len(word) == 1:
                self._bias[word[0]] = FORBIDDEN
        self._early = dict.fromkeys(stop_ids, FORBIDDEN)
        self._counts = Counts(prompt) if sampling.penalises else None

    @classmethod
    def of(
        cls, sampling: Sampling, prompt: Sequence[int], stop_ids: frozenset[int]
    ) -> TokenRules | None:
        """Return a request's rules, or None when it has none."""
        has_rules = (
            sampling.penalises
            or sampling.logit_bias
            or sampling.bad_words
            or sampling.allowed_token_ids is not None
            or sampling.min_tokens > 0
        )
        return cls(sampling, prompt, stop_ids) if has_rules else None

    def add(self, token_id: int) -> None:
        """Count a generated token."""
        if self._counts is not None:
            self._counts.add(token_id)

    def bias(self, tokens: Sequence[int], num_output: int) -> dict[int, float]:
        """Return what is added to tokens' logits for the next position.

        Args:
            tokens: Prompt and output so far; a bad word may begin in the prompt.
            num_output: How many of them are output.
        """
        is_early = num_output < self.sampling.min_tokens
        if not is_early and not self._sequences:
            return self._bias
        bias = self._bias | self._early if is_early else dict(self._bias)
        for word in self._sequences:
            head = word[:-1]
            if tuple(tokens[-len(head) :]) == head:
                bias[word[-1]] = FORBIDDEN
        return bias

    def counts(self) -> tuple[IntArray, IntArray] | None:
        """Return the distinct tokens of the context and how often each was generated."""
        return None if self._counts is None else self._counts.arrays()

    def penalties(self) -> tuple[float, float, float]:
        """Return the repetition, presence and frequency penalties."""
        sampling = self.sampling
        return sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty


class Counts:
    """Distinct tokens with their counts, in arrays that grow by doubling."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids: IntArray = np.array(sorted(set(prompt)), dtype=np.int64)
        self._counts: IntArray = np.zeros(len(self._ids), dtype=np.int64)
        self._place = {id: place for place, id in enumerate(self._ids.tolist())}

    def add(self, token_id: int) -> None:
        """Count one more generated token."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == len(self._ids):
            more = np.zeros(max(16, place), dtype=np.int64)
            self._ids = np.concatenate((self._ids, more))
            self._counts = np.concatenate((self._counts, more))
        self._ids[place] = token_id
        self._counts[place] += 1

    def arrays(self) -> tuple[IntArray, IntArray]:
        """Return ids and counts."""
        size = len(self._place)
        return self._ids[:size], self._counts[:size]


def as_values(bias: dict[int, float]) -> tuple[IntArray, FloatArray]:
    """Return a bias as parallel arrays."""
    ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
    return ids, np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
