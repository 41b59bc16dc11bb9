"""How a model's rotary embedding is meant. Values only, so that no torch is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "yarn", "dynamic", "longrope"]


@dataclass(frozen=True)
class RopeSpec:
    """Base frequencies and how they are stretched to longer contexts."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    """Context length before stretching, tokens; not used by ``default`` and ``linear``."""
    rotated_share: float = 1.0
    """Share of each head that is rotated, from its first feature on."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines: it sharpens attention over longer contexts."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """``yarn``: turns over the original length between which the stretching fades in."""
    truncate: bool = True
    """``yarn``: whether the bounds of the fading are whole frequencies."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """``longrope``: divides each frequency, within the original length and beyond it."""

    def variant(self, num_tokens: int) -> int:
        """Return which frequencies a sequence gets that may grow to ``num_tokens`` tokens; 0: base.

        A sequence keeps its variant from its first token to its last, alone or in any company:
        keys in the cache stay valid, and answers do not depend on what else is served. Up to the
        original length it is 0. Beyond it ``longrope`` takes its long factors and ``dynamic``
        stretches to the very length that prompt and requested output reach together.
        """
        if self.kind not in ("dynamic", "longrope") or num_tokens <= self.original_max_positions:
            return 0
        return 1 if self.kind == "longrope" else num_tokens


PLAIN_ROPE = RopeSpec(10_000.0)
"""Frequencies that depend on no length."""


def rotated_size(spec: RopeSpec, head_dim: int) -> int:
    """Return how many features of a head are rotated."""
    return int(head_dim * spec.rotated_share)
