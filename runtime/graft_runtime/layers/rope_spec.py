"""How a model's rotary embedding is meant. Values only, so that no torch is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3"]


@dataclass(frozen=True)
class RopeSpec:
    """Base frequencies and how they are stretched to longer contexts."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    """Context length before stretching, tokens; used by ``llama3``."""
