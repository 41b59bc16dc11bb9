"""What one request asks for single tokens: biases, bans, allowed sets, penalties. Never a tensor.

A request without any of these has no `TokenRules`, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graft_runtime.engine.counts import Counts, CountSlots
from graft_runtime.ipc.messages import Sampling
from graft_runtime.sampling.batch import FloatArray, IntArray

FORBIDDEN = float("-inf")


class TokenRules:
    """One request's rules, and where its tokens are counted for the penalties."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        stop_ids: frozenset[int],
        slots: CountSlots,
    ) -> None:
        """Prepare what stays the same from step to step.

        Args:
            sampling: What was asked.
            prompt: The prompt's tokens.
            stop_ids: What ends the output, and must not before ``min_tokens``.
            slots: Places for counts on the device.
        """
        self.sampling = sampling
        self.allowed_ids = np.array(sampling.allowed_token_ids or (), dtype=np.int64)
        self._bias = dict(sampling.logit_bias)
        self._sequences = [word for word in sampling.bad_words if len(word) > 1]
        for word in sampling.bad_words:
            if len(word) == 1:
                self._bias[word[0]] = FORBIDDEN
        self._early = dict.fromkeys(stop_ids, FORBIDDEN)
        self.counts = Counts(prompt, slots) if sampling.penalises else None
        """What the penalties need; None without any."""
        self.edits = has_edits(sampling)
        """Whether it may change single tokens' logits; penalties alone do not."""

    @classmethod
    def of(
        cls,
        sampling: Sampling,
        prompt: Sequence[int],
        stop_ids: frozenset[int],
        slots: CountSlots,
    ) -> TokenRules | None:
        """Return a request's rules, or None when it has none. Arguments as of the constructor."""
        has_rules = sampling.penalises or has_edits(sampling)
        return cls(sampling, prompt, stop_ids, slots) if has_rules else None

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

    def release(self) -> None:
        """Let another request have the place on the device."""
        if self.counts is not None:
            self.counts.release()


def has_edits(sampling: Sampling) -> bool:
    """Tell whether a bias, a ban or an allowed set is asked for."""
    return bool(
        sampling.logit_bias
        or sampling.bad_words
        or sampling.allowed_token_ids is not None
        or sampling.min_tokens > 0
    )


def as_values(bias: dict[int, float]) -> tuple[IntArray, FloatArray]:
    """Return a bias as parallel arrays."""
    ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
    return ids, np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
