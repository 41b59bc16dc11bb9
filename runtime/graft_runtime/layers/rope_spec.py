"""How a model's rotary embedding is meant. Values only, so that no torch is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "yarn"]


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
